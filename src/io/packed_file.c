// SPDX-License-Identifier: Apache-2.0
// Reads packed files. At open the head is checked, whole; a layer's bytes when they are adopted,
// which reads them anyway.
#include "io/packed_file.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/checkpoint.h"
#include "io/mmap.h"
#include "io/text.h"

#define CALL "moe_packed_open"

struct moe_packed {
    struct moei_map map; // zeroed when the bytes are the caller's
    const unsigned char *bytes;
    size_t size;
    struct moei_pack_header header;
    struct moei_pack_source *sources;
    struct moei_pack_part *parts;
    bool has_checkpoint; // and it is the one that the file was made from
    struct moei_quote label;
};

// ---- the head ----------------------------------------------------------------------------------

static moe_status check_header(const moe_packed *p)
{
    const struct moei_pack_header *h = &p->header;
    const char *label = p->label.text;
    MOE_REQUIRE(memcmp(h->magic, MOE_PACKED_MAGIC, sizeof h->magic) == 0, MOE_E_MALFORMED,
                CALL ": %s: begins with \"%s\", a packed file with \"" MOE_PACKED_MAGIC "\"", label,
                moei_quote_head(h->magic, sizeof h->magic).text);
    MOE_REQUIRE(h->byte_order == MOEI_PACK_BYTE_ORDER, MOE_E_UNSUPPORTED,
                CALL ": %s: byte order %08" PRIx32 ", this machine's is %08" PRIx32
                     "; pack on a machine of its order",
                label, h->byte_order, (uint32_t)MOEI_PACK_BYTE_ORDER);
    MOE_REQUIRE(h->version == MOEI_PACK_VERSION, MOE_E_VERSION,
                CALL ": %s: version %" PRIu32 " of the format, this library reads %" PRIu32
                     "; pack again",
                label, h->version, (uint32_t)MOEI_PACK_VERSION);
    MOE_REQUIRE(h->file_bytes == p->size, MOE_E_MALFORMED,
                CALL ": %s: %zu bytes, written were %" PRIu64, label, p->size, h->file_bytes);
    MOE_REQUIRE(h->head_bytes <= MOEI_PACK_MAX_HEAD, MOE_E_LIMIT,
                CALL ": %s: a head of %" PRIu64 " bytes, the limit is %u", label, h->head_bytes,
                MOEI_PACK_MAX_HEAD);
    // Both counts are below 2^32, their records below 2^6 bytes.
    const uint64_t least = sizeof *h + h->sources * sizeof(struct moei_pack_source) +
                           h->parts * sizeof(struct moei_pack_part);
    MOE_REQUIRE(h->head_bytes >= least && h->head_bytes <= p->size &&
                    h->head_bytes % MOEI_PACK_ALIGN == 0,
                MOE_E_MALFORMED,
                CALL ": %s: a head of %" PRIu64 " bytes with %" PRIu32 " sources and %" PRIu32
                     " layers in %zu bytes",
                label, h->head_bytes, h->sources, h->parts, p->size);
    const uint64_t found = moei_pack_head_checksum(p->bytes, *h);
    MOE_REQUIRE(found == h->checksum, MOE_E_MALFORMED,
                CALL ": %s: the head has the checksum %016" PRIx64 ", written was %016" PRIx64,
                label, found, h->checksum);
    return MOE_OK;
}

// NULL where the text is none.
static const char *text_of(const moe_packed *p, struct moei_pack_text text)
{
    const uint64_t end = (uint64_t)text.at + text.bytes;
    const char *bytes = (const char *)p->bytes + text.at;
    return end < p->header.head_bytes &&
                   memchr(bytes, 0, (size_t)text.bytes + 1) == bytes + text.bytes
               ? bytes
               : NULL;
}

// Parts fill the file from the head to its end.
static moe_status check_parts(const moe_packed *p)
{
    uint64_t at = p->header.head_bytes;
    for (uint32_t i = 0; i < p->header.parts; i++) {
        const struct moei_pack_part *part = &p->parts[i];
        MOE_REQUIRE(part->at == at && part->bytes > 0 && part->bytes <= p->size - at &&
                        (i == 0 || part->layer > part[-1].layer) && part->layer >= 0,
                    MOE_E_MALFORMED,
                    CALL ": %s: layer %" PRId32 " has %" PRIu64 " bytes at %" PRIu64 ", %" PRIu64
                         " of %zu bytes are taken",
                    p->label.text, part->layer, part->bytes, part->at, at, p->size);
        MOE_REQUIRE(text_of(p, part->layout) != NULL, MOE_E_MALFORMED,
                    CALL ": %s: the layout of layer %" PRId32 " is no text", p->label.text,
                    part->layer);
        at += moei_size_align((size_t)part->bytes, MOEI_PACK_ALIGN);
    }
    MOE_REQUIRE(at == p->size, MOE_E_MALFORMED,
                CALL ": %s: the last layer ends at %" PRIu64 ", the file at %zu", p->label.text, at,
                p->size);
    for (uint32_t i = 0; i < p->header.sources; i++) {
        MOE_REQUIRE(text_of(p, p->sources[i].name) != NULL, MOE_E_MALFORMED,
                    CALL ": %s: the name of source %" PRIu32 " is no text", p->label.text, i);
    }
    return MOE_OK;
}

static moe_status read_head(moe_packed *p)
{
    MOE_REQUIRE(p->size >= sizeof p->header, MOE_E_MALFORMED,
                CALL ": %s: %zu bytes, the header alone takes %zu", p->label.text, p->size,
                sizeof p->header);
    memcpy(&p->header, p->bytes, sizeof p->header);
    MOE_TRY(check_header(p));
    const size_t source_bytes = p->header.sources * sizeof p->sources[0];
    const size_t part_bytes = p->header.parts * sizeof p->parts[0];
    p->sources = malloc(source_bytes + 1);
    p->parts = malloc(part_bytes + 1);
    MOE_REQUIRE(p->sources != NULL && p->parts != NULL, MOE_E_NO_MEMORY, CALL ": %s: out of memory",
                p->label.text);
    memcpy(p->sources, p->bytes + sizeof p->header, source_bytes);
    memcpy(p->parts, p->bytes + sizeof p->header + source_bytes, part_bytes);
    return check_parts(p);
}

// ---- the checkpoint ----------------------------------------------------------------------------

static moe_status check_source(const moe_packed *p, const moe_checkpoint *checkpoint)
{
    const char *label = p->label.text;
    const size_t files = moei_checkpoint_files(checkpoint);
    MOE_REQUIRE(files == p->header.sources, MOE_E_STATE,
                CALL ": %s: made from %" PRIu32 " files, the checkpoint has %zu; pack again", label,
                p->header.sources, files);
    for (size_t i = 0; i < files; i++) {
        const struct moei_pack_source *s = &p->sources[i];
        const struct moei_identity id = moei_checkpoint_identity(checkpoint, i);
        const char *name = text_of(p, s->name);
        MOE_REQUIRE(strcmp(name, id.name) == 0, MOE_E_STATE,
                    CALL ": %s: made from the file \"%s\", the checkpoint has \"%s\"; pack again",
                    label, moei_quote_head(name, s->name.bytes).text,
                    moei_quote_head(id.name, strlen(id.name)).text);
        MOE_REQUIRE(s->bytes == id.bytes && s->identity == id.hash, MOE_E_STATE,
                    CALL ": %s: made from \"%s\" with %" PRIu64 " bytes and identity %016" PRIx64
                         ", the checkpoint's has %" PRIu64 " and %016" PRIx64 "; pack again",
                    label, moei_quote_head(name, s->name.bytes).text, s->bytes, s->identity,
                    id.bytes, id.hash);
    }
    return MOE_OK;
}

// ---- open --------------------------------------------------------------------------------------

void moe_packed_close(moe_packed *packed)
{
    if (packed != NULL) {
        free(packed->sources);
        free(packed->parts);
        moei_map_close(&packed->map);
        free(packed);
    }
}

// Takes over the map, which it releases on failure too.
static moe_status open_image(struct moei_quote label, struct moei_map map,
                             const unsigned char *bytes, size_t size,
                             const moe_checkpoint *checkpoint, moe_packed **out)
{
    moe_packed *p = calloc(1, sizeof *p);
    if (p == NULL) {
        moei_map_close(&map);
        return moe_fail(MOE_E_NO_MEMORY, CALL ": %s: out of memory", label.text);
    }
    p->map = map;
    p->bytes = bytes;
    p->size = size;
    p->label = label;
    p->has_checkpoint = checkpoint != NULL;
    moe_status status = read_head(p);
    if (status == MOE_OK && checkpoint != NULL) {
        status = check_source(p, checkpoint);
    }
    if (status != MOE_OK) {
        moe_packed_close(p);
        return status;
    }
    *out = p;
    return MOE_OK;
}

moe_status moe_packed_open(const char *path, const moe_checkpoint *checkpoint, uint32_t flags,
                           moe_packed **out)
{
    struct moei_map map;
    MOE_REQUIRE(path != NULL, MOE_E_ARGUMENT, CALL ": path is NULL");
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, CALL ": out is NULL");
    MOE_REQUIRE((flags & ~(uint32_t)MOE_FILE_NO_MMAP) == 0, MOE_E_ARGUMENT,
                CALL ": flags = %u has bits that are not known, known is %u", flags,
                (unsigned)MOE_FILE_NO_MMAP);
    const uint32_t how = (flags & MOE_FILE_NO_MMAP) != 0 ? MOEI_MAP_READ : 0;
    MOE_TRY(moei_map_open(CALL, path, how, UINT64_MAX, &map));
    return open_image(moei_quote_tail(path, strlen(path)), map, map.data, map.size, checkpoint,
                      out);
}

moe_status moe_packed_open_memory(const void *bytes, size_t size, const char *label,
                                  const moe_checkpoint *checkpoint, moe_packed **out)
{
    const struct moei_map none = {.data = NULL, .size = 0, .mapped = false};
    MOE_REQUIRE(bytes != NULL || size == 0, MOE_E_ARGUMENT,
                "moe_packed_open_memory: bytes is NULL, size is %zu", size);
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "moe_packed_open_memory: out is NULL");
    label = label == NULL ? "memory" : label;
    return open_image(moei_quote_tail(label, strlen(label)), none, bytes, size, checkpoint, out);
}

// ---- what is in it -----------------------------------------------------------------------------

size_t moe_packed_count(const moe_packed *packed)
{
    return packed == NULL ? 0 : packed->header.parts;
}

static moe_packed_part part_of(const moe_packed *p, const struct moei_pack_part *part)
{
    return (moe_packed_part){part->layer, text_of(p, part->layout), p->bytes + part->at,
                             (size_t)part->bytes, part->checksum};
}

moe_status moe_packed_part_at(const moe_packed *packed, size_t i, moe_packed_part *out)
{
    MOE_REQUIRE(i < moe_packed_count(packed) && out != NULL, MOE_E_ARGUMENT,
                "moe_packed_part_at: layer %zu of %zu, out is %s", i, moe_packed_count(packed),
                out == NULL ? "NULL" : "given");
    *out = part_of(packed, &packed->parts[i]);
    return MOE_OK;
}

size_t moe_packed_sources(const moe_packed *packed)
{
    return packed == NULL ? 0 : packed->header.sources;
}

moe_status moe_packed_source_at(const moe_packed *packed, size_t i, moe_packed_source *out)
{
    MOE_REQUIRE(i < moe_packed_sources(packed) && out != NULL, MOE_E_ARGUMENT,
                "moe_packed_source_at: file %zu of %zu, out is %s", i, moe_packed_sources(packed),
                out == NULL ? "NULL" : "given");
    const struct moei_pack_source *s = &packed->sources[i];
    *out = (moe_packed_source){text_of(packed, s->name), s->bytes, s->identity};
    return MOE_OK;
}

static moe_status find(const moe_packed *packed, int32_t layer, const char *call,
                       const struct moei_pack_part **out)
{
    MOE_REQUIRE(packed != NULL, MOE_E_ARGUMENT, "%s: packed is NULL", call);
    for (uint32_t i = 0; i < packed->header.parts; i++) {
        if (packed->parts[i].layer == layer) {
            *out = &packed->parts[i];
            return MOE_OK;
        }
    }
    return moe_fail(MOE_E_NOT_FOUND, "%s: %s: no layer %" PRId32 " among %" PRIu32, call,
                    packed->label.text, layer, packed->header.parts);
}

static moe_status verify(const moe_packed *packed, const struct moei_pack_part *part,
                         const char *call)
{
    const uint64_t found = XXH3_64bits(packed->bytes + part->at,
                                       moei_size_align((size_t)part->bytes, MOEI_PACK_ALIGN));
    MOE_REQUIRE(found == part->checksum, MOE_E_MALFORMED,
                "%s: %s: layer %" PRId32 " has the checksum %016" PRIx64
                ", written was %016" PRIx64,
                call, packed->label.text, part->layer, found, part->checksum);
    return MOE_OK;
}

moe_status moe_packed_verify(const moe_packed *packed, int32_t layer)
{
    const struct moei_pack_part *part = NULL;
    MOE_TRY(find(packed, layer, "moe_packed_verify", &part));
    return verify(packed, part, "moe_packed_verify");
}

moe_status moe_packed_adopt(const moe_packed *packed, int32_t layer, const moe_plan *plan,
                            moe_weights **out)
{
    const char *call = "moe_packed_adopt";
    const struct moei_pack_part *found = NULL;
    MOE_TRY(find(packed, layer, call, &found));
    MOE_REQUIRE(plan != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                plan == NULL ? "plan" : "out");
    MOE_REQUIRE(packed->has_checkpoint, MOE_E_STATE,
                "%s: %s: opened without the checkpoint that it was made from", call,
                packed->label.text);
    MOE_REQUIRE(moe_context_host_memory(moe_plan_context(plan)) != 0, MOE_E_UNSUPPORTED,
                "%s: %s: the plan's device has memory of its own; copy the layer there and use "
                "moe_weights_adopt",
                call, packed->label.text);
    const moe_packed_part part = part_of(packed, found);
    moe_weights *weights = NULL;
    MOE_TRY(moe_weights_adopt(plan, part.data, part.bytes, part.layout, &weights));
    const moe_status status = verify(packed, found, call);
    if (status != MOE_OK) {
        moe_weights_destroy(weights);
        return status;
    }
    *out = weights;
    return MOE_OK;
}
