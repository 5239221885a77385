// SPDX-License-Identifier: Apache-2.0
// Counting, skipping, globbing, guard pages.
#define _GNU_SOURCE
#include "checkmoe/checkmoe.h"

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

bool moec_guard_alloc(moec_guard *guard, size_t bytes, bool at_end)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inside = (bytes + page - 1) / page * page;
    guard->map_bytes = inside + 2 * page;
    guard->map = mmap(NULL, guard->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard->map == MAP_FAILED) {
        return false;
    }
    unsigned char *begin = (unsigned char *)guard->map + page;
    if (inside > 0 && mprotect(begin, inside, PROT_READ | PROT_WRITE) != 0) {
        (void)munmap(guard->map, guard->map_bytes);
        return false;
    }
    guard->data = at_end ? begin + inside - bytes : begin;
    guard->bytes = bytes;
    return true;
}

void moec_guard_free(moec_guard *guard)
{
    if (guard->map != NULL) {
        (void)munmap(guard->map, guard->map_bytes);
        memset(guard, 0, sizeof *guard);
    }
}

uint64_t moec_hash(const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ p[i]) * 0x100000001B3u;
    }
    return hash;
}
