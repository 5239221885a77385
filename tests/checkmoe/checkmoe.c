// SPDX-License-Identifier: Apache-2.0
// Counting, skipping, globbing, guard pages.
#define _GNU_SOURCE
#include "checkmoe/checkmoe.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/registry.h"

#define MAX_PRINTED 40
#define MAX_CASES   32768 // of a row, that are compared with other rows

const char *moec_device_option(const moec_options *options, char *text, size_t size)
{
    const bool other = options->device != MOE_DEVICE_UNSET && options->device != MOE_DEVICE_CPU;
    text[0] = '\0';
    if (other) {
        (void)snprintf(text, size, " --device %s", moe_device_name(options->device));
    }
    return text;
}

void moec_repro(const moec_run *run, const char *name, char *text, size_t size)
{
    const moec_options *o = run->options;
    const char *isa = run->isa != NULL ? run->isa : o->isa;
    const char *quote = strpbrk(name, "*?") != NULL ? "'" : "";
    char threads[32] = "";
    char device[32];
    char delay[64] = "";
    if (o->threads > 0) {
        (void)snprintf(threads, sizeof threads, " --threads %d", (int)o->threads);
    }
    if (o->delay != 0) {
        (void)snprintf(delay, sizeof delay, " --delay %llu --runs %d", (unsigned long long)o->delay,
                       (int)o->delay_runs);
    }
    (void)snprintf(text, size, "%s check%s%s%s%s%s%s%s%s%s%s --seed %llu",
                   o->program != NULL ? o->program : "moe",
                   moec_device_option(o, device, sizeof device),
                   name[0] != '\0' ? " --kernel " : "", quote, name, quote,
                   isa != NULL ? " --isa " : "", isa != NULL ? isa : "", threads, delay,
                   o->apart ? " --apart" : "", (unsigned long long)o->seed);
}

uint32_t moec_delay(const moec_options *options, int32_t run)
{
    moec_rng rng = {options->delay + ((uint64_t)(uint32_t)run << 32)};
    return (uint32_t)moec_next(&rng) | 1;
}

bool moec_wants_case(const moec_run *run, int number)
{
    const uint64_t every = run->options->every > 1 ? (uint64_t)run->options->every : 1;
    return (uint64_t)number % every == run->options->seed % every;
}

bool moec_check(moec_run *run, bool ok, const char *repro, const char *format, ...)
{
    if (ok) {
        run->counts->passed++;
        return true;
    }
    run->counts->failed++;
    if (run->counts->failed <= MAX_PRINTED) {
        char command[320];
        va_list args;
        va_start(args, format);
        (void)fprintf(run->out, "FAILED: ");
        (void)vfprintf(run->out, format, args);
        va_end(args);
        moec_repro(run, repro, command, sizeof command);
        (void)fprintf(run->out, "\n  repeat with  %s\n", command);
        (void)fflush(run->out); // a later case may end the program
    }
    return false;
}

static void fail_compare(moec_run *run, const moec_compare *compare, const char *repro,
                         const char *format, va_list args)
{
    char label[1024];
    char command[320];
    moec_compare c = *compare;
    run->counts->failed++;
    if (run->counts->failed > MAX_PRINTED) {
        return;
    }
    (void)vsnprintf(label, sizeof label, format, args);
    moec_repro(run, repro, command, sizeof command);
    c.label = label;
    c.repro = command;
    c.out = run->out;
    if (moec_report_compare(&c, NULL) != MOEC_FAIL) {
        (void)fprintf(run->out,
                      "FAILED: %s: the report finds nothing beyond its bound\n"
                      "  repeat with  %s\n",
                      label, command);
    }
}

void moec_fail_compare(moec_run *run, const moec_compare *compare, const char *repro,
                       const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail_compare(run, compare, repro, format, args);
    va_end(args);
}

bool moec_check_same(moec_run *run, moe_dtype dtype, int64_t rows, int64_t columns,
                     const void *actual, const void *expected, const char *repro,
                     const char *format, ...)
{
    const size_t bytes = (size_t)(rows * columns) * (size_t)moe_dtype_bits(dtype) / 8;
    if (bytes == 0 || memcmp(actual, expected, bytes) == 0) {
        run->counts->passed++;
        return true;
    }
    const moec_compare c = {.actual = moe_tensor_2d(actual, dtype, rows, columns),
                            .expected = moe_tensor_2d(expected, dtype, rows, columns),
                            .exact = 1};
    va_list args;
    va_start(args, format);
    fail_compare(run, &c, repro, format, args);
    va_end(args);
    return false;
}

moec_seen *moec_seen_at(const moec_run *run, const moei_kernel *kernel, int number)
{
    const size_t kind = kernel->op == MOEI_OP_GGEMM ? (size_t)MOEI_NUM_OPS + (size_t)kernel->arith
                                                    : (size_t)kernel->op;
    return run->seen == NULL || number >= MAX_CASES ? NULL
                                                    : &run->seen[kind * MAX_CASES + (size_t)number];
}

bool moec_seen_begin(moec_run *run)
{
    run->seen = calloc((size_t)(MOEI_NUM_OPS + MOEI_NUM_ARITH) * MAX_CASES, sizeof *run->seen);
    return run->seen != NULL;
}

void moec_list_bits(const moec_run *run, const char *name, uint64_t hash, const char *text)
{
    if (run->options->bits != NULL) {
        (void)fprintf(run->options->bits, "%s %016llx %s\n", name, (unsigned long long)hash, text);
    }
}

void moec_seen_keep(moec_run *run, const moei_kernel *kernel, int number, uint64_t hash,
                    const char *text)
{
    moec_seen *seen = moec_seen_at(run, kernel, number);
    if (seen->kernel == NULL) {
        char name[64];
        (void)snprintf(name, sizeof name, "%s-%d",
                       kernel->op == MOEI_OP_GGEMM ? moei_arith_get(kernel->arith)->name
                                                   : moei_op_name(kernel->op),
                       number);
        moec_list_bits(run, name, hash, text);
    }
    *seen = (moec_seen){kernel, hash};
    run->counts->passed++;
}

void moec_pair_glob(const char *a, const char *b, char *glob, size_t size)
{
    size_t prefix = 0;
    size_t suffix = 0;
    const size_t length_a = strlen(a);
    const size_t length_b = strlen(b);
    while (a[prefix] != '\0' && a[prefix] == b[prefix]) {
        prefix++;
    }
    while (suffix < length_a - prefix && suffix < length_b - prefix &&
           a[length_a - suffix - 1] == b[length_b - suffix - 1]) {
        suffix++;
    }
    (void)snprintf(glob, size, "%.*s*%s", (int)prefix, a, a + length_a - suffix);
}

void moec_skip(moec_run *run, const char *format, ...)
{
    va_list args;
    run->counts->skipped++;
    va_start(args, format);
    (void)fprintf(run->out, "skipped: ");
    (void)vfprintf(run->out, format, args);
    va_end(args);
    (void)fprintf(run->out, "\n");
}

bool moec_glob(const char *pattern, const char *text)
{
    if (pattern == NULL) {
        return true;
    }
    for (; *pattern != '\0'; pattern++, text++) {
        if (*pattern == '*') {
            do {
                if (moec_glob(pattern + 1, text)) {
                    return true;
                }
            } while (*text++ != '\0');
            return false;
        }
        if (*text == '\0' || (*pattern != '?' && *pattern != *text)) {
            return false;
        }
    }
    return *text == '\0';
}

// Mappings of buffers that were freed, for others of as many pages: the kernel stops every thread
// of the process to take one back.
#define MAX_KEPT       128
#define MAX_KEPT_BYTES ((size_t)1 << 18) // of one

static struct {
    void *map; // NULL: none
    size_t bytes;
} kept[MAX_KEPT];
static size_t kept_next; // which is replaced
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

static void *take_kept(size_t bytes)
{
    void *map = NULL;
    (void)pthread_mutex_lock(&kept_lock);
    for (size_t i = 0; i < MAX_KEPT && map == NULL; i++) {
        if (kept[i].map != NULL && kept[i].bytes == bytes) {
            map = kept[i].map;
            kept[i].map = NULL;
        }
    }
    (void)pthread_mutex_unlock(&kept_lock);
    return map;
}

static void keep(void *map, size_t bytes)
{
    void *old = map;
    size_t old_bytes = bytes;
    if (bytes <= MAX_KEPT_BYTES) {
        (void)pthread_mutex_lock(&kept_lock);
        old = kept[kept_next].map;
        old_bytes = kept[kept_next].bytes;
        kept[kept_next].map = map;
        kept[kept_next].bytes = bytes;
        kept_next = (kept_next + 1) % MAX_KEPT;
        (void)pthread_mutex_unlock(&kept_lock);
    }
    if (old != NULL) {
        (void)munmap(old, old_bytes);
    }
}

// `inside` bytes that may be used, zero, between two pages that may not. NULL: the system refuses.
static void *map_guarded(size_t page, size_t inside)
{
    const size_t bytes = inside + 2 * page;
    void *map = take_kept(bytes);
    if (map != NULL) {
        memset((unsigned char *)map + page, 0, inside);
        return map;
    }
    map = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        return NULL;
    }
    if (inside > 0 && mprotect((unsigned char *)map + page, inside, PROT_READ | PROT_WRITE) != 0) {
        (void)munmap(map, bytes);
        return NULL;
    }
    return map;
}

bool moec_guard_alloc(moec_guard *guard, size_t bytes, bool at_end)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inside = (bytes + page - 1) / page * page;
    guard->map_bytes = inside + 2 * page;
    guard->map = map_guarded(page, inside);
    if (guard->map == NULL) {
        return false;
    }
    unsigned char *begin = (unsigned char *)guard->map + page;
    guard->data = at_end ? begin + inside - bytes : begin;
    guard->bytes = bytes;
    return true;
}

void moec_guard_free(moec_guard *guard)
{
    if (guard->map != NULL) {
        keep(guard->map, guard->map_bytes);
        memset(guard, 0, sizeof *guard);
    }
}

uint64_t moec_hash(const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    uint64_t hash = 0xCBF29CE484222325u;
    size_t i = 0;
    for (; i + sizeof hash <= size; i += sizeof hash) {
        uint64_t word;
        memcpy(&word, p + i, sizeof word);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32; // else low bits would know nothing of high ones
    }
    for (; i < size; i++) {
        hash = (hash ^ p[i]) * 0x100000001B3u;
    }
    return hash;
}
