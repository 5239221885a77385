// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target without libFuzzer:
//   fuzz_x FILE|FOLDER...                        each file once; folders are walked
//   fuzz_x --mutate SECONDS SEED FILE|FOLDER...  then mutations of them, the same for equal seeds
// A mutation that ends the program is left in the working folder as crash-SEED-NUMBER.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define MAX_BYTES 65536U

struct input {
    uint8_t *bytes;
    size_t size;
};

static struct input *corpus;
static size_t corpus_count;

// The input that runs, for the handler of its failure.
static const uint8_t *volatile current;
static volatile size_t current_size;
static char crash_name[64];

static void out_of_memory(void)
{
    (void)fprintf(stderr, "out of memory\n");
    exit(1);
}

static void save_current(void)
{
    const uint8_t *bytes = current;
    if (bytes == NULL || crash_name[0] == '\0') {
        return;
    }
    current = NULL;
    const int fd = open(crash_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd >= 0) {
        (void)!write(fd, bytes, current_size);
        (void)close(fd);
    }
}

static void on_signal(int number)
{
    save_current();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

// Present where a sanitizer's run-time is linked, which ends the program without a signal.
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

// The target gets memory of exactly the input's size, so that a sanitizer sees a read past it.
static void run(const uint8_t *bytes, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        out_of_memory();
    }
    if (size > 0) {
        memcpy(copy, bytes, size);
    }
    current_size = size;
    current = copy;
    (void)LLVMFuzzerTestOneInput(copy, size);
    current = NULL;
    free(copy);
}

static int add_file(const char *path, size_t size)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = malloc(size > 0 ? size : 1);
    struct input *larger = realloc(corpus, (corpus_count + 1) * sizeof corpus[0]);
    if (bytes == NULL || larger == NULL) {
        out_of_memory();
    }
    corpus = larger;
    if (f == NULL || fread(bytes, 1, size, f) != size) {
        perror(path);
        free(bytes);
        if (f != NULL) {
            (void)fclose(f);
        }
        return 1;
    }
    (void)fclose(f);
    corpus[corpus_count++] = (struct input){.bytes = bytes, .size = size};
    return 0;
}

static int add_path(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        perror(path);
        return 1;
    }
    if (!S_ISDIR(info.st_mode)) {
        return add_file(path, (size_t)info.st_size);
    }
    struct dirent **names = NULL;
    const int count = scandir(path, &names, NULL, alphasort);
    int failed = count < 0;
    for (int i = 0; i < count; i++) {
        char inner[4096];
        if (names[i]->d_name[0] != '.') {
            (void)snprintf(inner, sizeof inner, "%s/%s", path, names[i]->d_name);
            failed |= add_path(inner);
        }
        free(names[i]);
    }
    free(names);
    return failed;
}

// splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
static uint64_t state;

static uint64_t random64(void)
{
    uint64_t z = (state += 0x9E3779B97F4A7C15U);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static size_t below(size_t n)
{
    return (size_t)(random64() % (n > 0 ? n : 1));
}

// Replaces bytes[at..at+removed) by text[0..added), within MAX_BYTES.
static size_t replace(uint8_t *bytes, size_t size, size_t at, size_t removed, const uint8_t *text,
                      size_t added)
{
    if (size - removed + added > MAX_BYTES) {
        return size;
    }
    memmove(bytes + at + added, bytes + at + removed, size - at - removed);
    memcpy(bytes + at, text, added);
    return size - removed + added;
}

static size_t mutate(uint8_t *bytes, size_t size)
{
    static const char *const words[] = {"{",
                                        "}",
                                        "[",
                                        "]",
                                        ",",
                                        ":",
                                        "\"",
                                        "\\",
                                        "\\u0000",
                                        "\\ud800",
                                        "\\u0061",
                                        "\xff",
                                        "\xc3",
                                        "null",
                                        "true",
                                        "-",
                                        ".5",
                                        "e9",
                                        "0",
                                        "9223372036854775807",
                                        "9223372036854775808",
                                        "18446744073709551615",
                                        "18446744073709551616",
                                        "4294967296",
                                        "__metadata__",
                                        "dtype",
                                        "shape",
                                        "data_offsets",
                                        "F4",
                                        "weight_map",
                                        "..",
                                        "/",
                                        "NaN",
                                        "Infinity"};
    uint8_t piece[64] = {0};
    const size_t at = below(size + 1);
    const size_t left = size - at;
    const char *word = words[below(sizeof words / sizeof words[0])];
    const struct input *other = &corpus[below(corpus_count)];
    switch (below(8)) {
    case 0: // one bit
        if (left > 0) {
            bytes[at] ^= (uint8_t)(1U << below(8));
        }
        return size;
    case 1: // one byte
        if (left > 0) {
            bytes[at] = (uint8_t)random64();
        }
        return size;
    case 2: // a word in between
        return replace(bytes, size, at, 0, (const uint8_t *)word, strlen(word));
    case 3: // a word instead of as many bytes
        return replace(bytes, size, at, left < strlen(word) ? left : strlen(word),
                       (const uint8_t *)word, strlen(word));
    case 4: // a hole
        return replace(bytes, size, at, below(left < 16 ? left + 1 : 16), piece, 0);
    case 5: { // a piece of itself again
        const size_t length = below((left < sizeof piece ? left : sizeof piece) + 1);
        memcpy(piece, bytes + at, length);
        return replace(bytes, size, below(size + 1), 0, piece, length);
    }
    case 6: { // the end of another input
        const size_t from = below(other->size + 1);
        return replace(bytes, size, at, left, other->bytes + from, other->size - from);
    }
    default: // one digit more or less
        for (size_t i = at; i < size; i++) {
            if (bytes[i] >= '0' && bytes[i] <= '9') {
                bytes[i] = (uint8_t)('0' + below(10));
                break;
            }
        }
        return size;
    }
}

static void mutations(double seconds, uint64_t seed)
{
    static uint8_t bytes[MAX_BYTES];
    struct timespec start;
    struct timespec now;
    unsigned long count = 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        // Every mutation has its own state, so that a single one can be made again.
        state = seed + count * 0xD1342543DE82EF95U;
        const struct input *from = &corpus[below(corpus_count)];
        size_t size = from->size < MAX_BYTES ? from->size : MAX_BYTES;
        if (size > 0) {
            memcpy(bytes, from->bytes, size);
        }
        for (size_t steps = 1 + below(6); steps > 0; steps--) {
            size = mutate(bytes, size);
        }
        (void)snprintf(crash_name, sizeof crash_name, "crash-%llu-%lu", (unsigned long long)seed,
                       count);
        run(bytes, size);
        count++;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - start.tv_sec) + 1e-9 * (double)(now.tv_nsec - start.tv_nsec) <
             seconds);
    crash_name[0] = '\0';
    (void)printf("%lu mutations with seed %llu, no failure\n", count, (unsigned long long)seed);
}

int main(int argc, char **argv)
{
    const bool mutating = argc > 4 && strcmp(argv[1], "--mutate") == 0;
    const int first = mutating ? 4 : 1;
    int failed = 0;
    if (argc <= first || (!mutating && argv[1][0] == '-')) {
        (void)fprintf(stderr, "usage: %s [--mutate SECONDS SEED] FILE|FOLDER...\n", argv[0]);
        return 2;
    }
    for (int i = first; i < argc; i++) {
        failed |= add_path(argv[i]);
    }
    if (corpus_count == 0) {
        (void)fprintf(stderr, "%s: no inputs\n", argv[0]);
        return 1;
    }
    for (size_t i = 0; i < corpus_count; i++) {
        run(corpus[i].bytes, corpus[i].size);
    }
    (void)printf("%zu inputs, no failure\n", corpus_count);
    if (mutating) {
        static const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
        for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
            (void)signal(numbers[i], on_signal);
        }
        if (__sanitizer_set_death_callback != NULL) {
            __sanitizer_set_death_callback(save_current);
        }
        mutations(strtod(argv[2], NULL), strtoull(argv[3], NULL, 10));
    }
    for (size_t i = 0; i < corpus_count; i++) {
        free(corpus[i].bytes);
    }
    free(corpus);
    return failed;
}
