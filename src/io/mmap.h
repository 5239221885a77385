// SPDX-License-Identifier: Apache-2.0
// A regular file as bytes: mapped read-only, or read into memory.
#ifndef MOEI_IO_MMAP_H
#define MOEI_IO_MMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/status.h"

/// Alignment of data that were read instead of mapped: what mapped ones have at least.
#define MOEI_MAP_ALIGN 4096

struct moei_map {
    const unsigned char *data; ///< NULL when size is 0
    size_t size;               ///< from fstat, at open
    bool mapped;               ///< munmap at close, else free
};

enum {
    MOEI_MAP_READ = 1, ///< read into memory aligned to MOEI_MAP_ALIGN
};

/// Opens a regular file (symbolic links are followed; folders, pipes and devices are refused).
/// A file that another process truncates while it is mapped raises SIGBUS on access, as any
/// mapping does; MOEI_MAP_READ is immune.
/// @param[in]  call   prefix of messages: the public function
/// @param[in]  limit  largest size, else LIMIT
/// @param[out] out    untouched on failure
/// Errors: IO, LIMIT, NO_MEMORY.
moe_status moei_map_open(const char *call, const char *path, uint32_t flags, uint64_t limit,
                         struct moei_map *out);

/// Releases the bytes; a zeroed struct is fine.
void moei_map_close(struct moei_map *map);

#endif
