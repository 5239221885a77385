// SPDX-License-Identifier: Apache-2.0
// The format of packed files, in the writer's byte order. docs/packed-files.md
//   header, sources, parts, texts, zeros to 4096     the head, under one checksum
//   layer, zeros to 4096                             a part, under a checksum of its own
//   ...
#ifndef MOEI_IO_PACKED_FILE_H
#define MOEI_IO_PACKED_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

#include "moe/io.h"

#define MOEI_PACK_BYTE_ORDER 0x01020304u
#define MOEI_PACK_VERSION    1u
#define MOEI_PACK_ALIGN      4096u // of parts, and of what checksums cover
#define MOEI_PACK_MAX_HEAD   (64u << 20)

struct moei_pack_header {
    char magic[8];
    uint32_t byte_order, version;
    uint64_t file_bytes;
    uint64_t head_bytes;
    uint64_t checksum; // of the head
    uint32_t sources, parts;
    uint64_t zero[2];
};

/// A text, ended by a NUL that does not count.
struct moei_pack_text {
    uint32_t at, bytes;
};

struct moei_pack_source {
    uint64_t bytes, identity;
    struct moei_pack_text name;
};

struct moei_pack_part {
    uint64_t at, bytes;
    uint64_t checksum; // of the bytes and the zeros after them
    int32_t layer;
    uint32_t zero;
    struct moei_pack_text layout;
};

/// Checksum of a head whose header, as it stands in the file, is `header`.
static inline uint64_t moei_pack_head_checksum(const unsigned char *head,
                                               struct moei_pack_header header)
{
    header.checksum = 0;
    return XXH3_64bits_withSeed(head + sizeof header, (size_t)header.head_bytes - sizeof header,
                                XXH3_64bits(&header, sizeof header));
}

#endif
