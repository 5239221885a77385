// SPDX-License-Identifier: Apache-2.0
// Safetensors images for the tests of libmoe_io, in memory and in a temporary folder.
#ifndef MOE_TESTS_UNIT_ST_IMAGE_H
#define MOE_TESTS_UNIT_ST_IMAGE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "moe/status.h"
#include "test.h"

// A tensor's entry; the shape is text without its brackets.
#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin        \
    "," #end "]}"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

// An image in memory that ends where a page without access begins.
struct image {
    unsigned char *bytes;
    size_t size;
    void *map;
    size_t map_size;
};

static inline struct image image_alloc(size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t used = (size + page - 1) / page * page;
    struct image image = {.size = size, .map_size = used + page};
    image.map =
        mmap(NULL, image.map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (image.map == MAP_FAILED || mprotect((char *)image.map + used, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(1);
    }
    image.bytes = (unsigned char *)image.map + used - size;
    return image;
}

static inline void image_free(struct image image)
{
    munmap(image.map, image.map_size);
}

// The length field, a header of `size` bytes, and data bytes 0, 1, 2, ...
static inline struct image image_make(const char *header, size_t size, size_t data)
{
    struct image image = image_alloc(8 + size + data);
    for (size_t i = 0; i < 8; i++) {
        image.bytes[i] = (unsigned char)((uint64_t)size >> 8 * i);
    }
    memcpy(image.bytes + 8, header, size);
    for (size_t i = 0; i < data; i++) {
        image.bytes[8 + size + i] = (unsigned char)i;
    }
    return image;
}

// The temporary folder, made by folder_make.
static char folder[128];

static inline const char *in_folder(const char *name)
{
    static char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static inline void write_file(const char *name, const void *bytes, size_t size)
{
    FILE *f = fopen(in_folder(name), "wb");
    if (f == NULL || fwrite(bytes, 1, size, f) != size || fclose(f) != 0) {
        perror(name);
        exit(1);
    }
}

static inline void write_shard(const char *name, const char *header, size_t data)
{
    struct image image = image_make(header, strlen(header), data);
    write_file(name, image.bytes, image.size);
    image_free(image);
}

static inline void remove_file(const char *name)
{
    (void)unlink(in_folder(name));
}

/// Checks that the last message is the call, then `path`, then `rest`.
static inline void check_message(const char *path, const char *rest)
{
    char expected[1024];
    (void)snprintf(expected, sizeof expected, "%s%s", path, rest);
    const char *space = strchr(moe_last_error(), ' ');
    CHECK(space != NULL && strcmp(space + 1, expected) == 0, "says %s, expected %s",
          moe_last_error(), expected);
}

static inline void folder_make(void)
{
    const char *base = getenv("TMPDIR");
    (void)snprintf(folder, sizeof folder, "%s/moe-test-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        exit(1);
    }
}

/// Removes the folder, which must be empty again.
static inline void folder_remove(void)
{
    CHECK(rmdir(folder) == 0, "%s is not empty", folder);
}

#endif
