// SPDX-License-Identifier: Apache-2.0
// moe_packed_open_memory on any bytes: as they are, and as the head of a file of two pages more
// whose checksum is right, so that what lies behind it is reached. What opens lies within the file.
#include <string.h>

#include "fuzz.h"
#include "io/packed_file.h"
#include "moe/io.h"

static void walk(const uint8_t *bytes, size_t size)
{
    moe_packed *file = NULL;
    const moe_status status = moe_packed_open_memory(bytes, size, "fuzz", NULL, &file);
    FUZZ_REQUIRE((status == MOE_OK) == (file != NULL));
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_MALFORMED || status == MOE_E_LIMIT ||
                 status == MOE_E_VERSION || status == MOE_E_UNSUPPORTED);
    int32_t before = -1;
    for (size_t i = 0; i < moe_packed_count(file); i++) {
        moe_packed_part part;
        FUZZ_REQUIRE(moe_packed_part_at(file, i, &part) == MOE_OK && part.layer > before);
        const uint8_t *data = part.data;
        FUZZ_REQUIRE(data >= bytes && part.bytes <= (size_t)(bytes + size - data));
        FUZZ_REQUIRE(strlen(part.layout) < size);
        const moe_status verified = moe_packed_verify(file, part.layer);
        FUZZ_REQUIRE(verified == MOE_OK || verified == MOE_E_MALFORMED);
        before = part.layer;
    }
    for (size_t i = 0; i < moe_packed_sources(file); i++) {
        moe_packed_source source;
        FUZZ_REQUIRE(moe_packed_source_at(file, i, &source) == MOE_OK);
        FUZZ_REQUIRE(strlen(source.name) < size);
    }
    moe_packed_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct moei_pack_header header;
    walk(data, size);
    if (size < sizeof header) {
        return 0;
    }
    const size_t head = (size + MOEI_PACK_ALIGN - 1) / MOEI_PACK_ALIGN * MOEI_PACK_ALIGN;
    uint8_t *file = calloc(1, head + 2 * MOEI_PACK_ALIGN);
    FUZZ_REQUIRE(file != NULL);
    memcpy(file, data, size);
    memcpy(&header, file, sizeof header);
    if (header.head_bytes >= sizeof header && header.head_bytes <= head) {
        header.checksum = moei_pack_head_checksum(file, header);
    }
    memcpy(file, &header, sizeof header);
    walk(file, head + 2 * MOEI_PACK_ALIGN);
    free(file);
    return 0;
}
