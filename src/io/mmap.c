// SPDX-License-Identifier: Apache-2.0
#define _DEFAULT_SOURCE // madvise
#include "io/mmap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/check.h"
#include "core/huge.h"
#include "core/safemath.h"
#include "io/text.h"

// glibc (2.32 on) keeps strerror's buffer per thread, and the text is copied at once.
static moe_status fail_errno(const char *call, const char *path, const char *what, int error)
{
    return moe_fail(error == ENOMEM ? MOE_E_NO_MEMORY : MOE_E_IO, "%s: %s: %s%s", call,
                    moei_quote_tail(path, strlen(path)).text, what, strerror(error));
}

// read() may return less than asked for (2 GiB at most on Linux) and may be interrupted.
static moe_status read_all(const char *call, const char *path, int fd, unsigned char *data,
                           size_t size)
{
    size_t at = 0;
    while (at < size) {
        const ssize_t got = read(fd, data + at, size - at);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return fail_errno(call, path, "", errno);
        }
        MOE_REQUIRE(got > 0, MOE_E_IO, "%s: %s: ends after %zu bytes, %zu at open", call,
                    moei_quote_tail(path, strlen(path)).text, at, size);
        at += (size_t)got;
    }
    return MOE_OK;
}

static moe_status load(const char *call, const char *path, int fd, uint32_t flags, uint64_t limit,
                       struct moei_map *out)
{
    struct stat info;
    if (fstat(fd, &info) != 0) {
        return fail_errno(call, path, "", errno);
    }
    if (S_ISDIR(info.st_mode)) {
        return fail_errno(call, path, "", EISDIR);
    }
    MOE_REQUIRE(S_ISREG(info.st_mode) && info.st_size >= 0, MOE_E_IO, "%s: %s: not a regular file",
                call, moei_quote_tail(path, strlen(path)).text);
    const uint64_t size = (uint64_t)info.st_size;
    MOE_REQUIRE(size <= limit && size <= SIZE_MAX - MOEI_MAP_ALIGN, MOE_E_LIMIT,
                "%s: %s: %llu bytes, the limit is %llu", call,
                moei_quote_tail(path, strlen(path)).text, (unsigned long long)size,
                (unsigned long long)limit);
    if (size == 0) {
        *out = (struct moei_map){.data = NULL, .size = 0, .mapped = false};
        return MOE_OK;
    }
    if (flags & MOEI_MAP_READ) {
        unsigned char *data =
            aligned_alloc(MOEI_MAP_ALIGN, moei_size_align((size_t)size, MOEI_MAP_ALIGN));
        if (data == NULL) {
            return fail_errno(call, path, "", ENOMEM);
        }
        moei_ask_huge_pages(data, (size_t)size);
        const moe_status status = read_all(call, path, fd, data, (size_t)size);
        if (status != MOE_OK) {
            free(data);
            return status;
        }
        *out = (struct moei_map){.data = data, .size = (size_t)size, .mapped = false};
        return MOE_OK;
    }
    void *data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        return fail_errno(call, path, "mmap: ", errno);
    }
    moei_ask_huge_pages(data, (size_t)size);
    *out = (struct moei_map){.data = data, .size = (size_t)size, .mapped = true};
    return MOE_OK;
}

moe_status moei_map_open(const char *call, const char *path, uint32_t flags, uint64_t limit,
                         struct moei_map *out)
{
    int fd;
    // O_NONBLOCK: opening a pipe must not wait for a writer; regular files ignore it.
    do {
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return fail_errno(call, path, "", errno);
    }
    const moe_status status = load(call, path, fd, flags, limit, out);
    (void)close(fd);
    return status;
}

void moei_map_close(struct moei_map *map)
{
    if (map->mapped) {
        (void)munmap((void *)(uintptr_t)map->data, map->size);
    } else {
        free((void *)(uintptr_t)map->data);
    }
    *map = (struct moei_map){.data = NULL, .size = 0, .mapped = false};
}
