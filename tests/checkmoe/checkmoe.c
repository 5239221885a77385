// SPDX-License-Identifier: Apache-2.0
// Counting, skipping, globbing, guard pages.
#define _GNU_SOURCE
#include "checkmoe/checkmoe.h"

#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_PRINTED 40

bool moec_check(moec_run *run, bool ok, const char *repro, const char *format, ...)
{
    if (ok) {
        run->counts->passed++;
        return true;
    }
    run->counts->failed++;
    if (run->counts->failed <= MAX_PRINTED) {
        va_list args;
        va_start(args, format);
        (void)fprintf(run->out, "FAILED: ");
        (void)vfprintf(run->out, format, args);
        va_end(args);
        (void)fprintf(run->out, "\n  repeat: %s check%s%s --seed %llu\n",
                      run->options->program != NULL ? run->options->program : "moe",
                      repro[0] != '\0' ? " --kernel " : "", repro,
                      (unsigned long long)run->options->seed);
    }
    return false;
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
