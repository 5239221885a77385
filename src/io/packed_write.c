// SPDX-License-Identifier: Apache-2.0
// Writes packed files: the file gets its full size at once, is mapped, and each layer is packed
// where it will lie. The head, which has the checksums, comes last.
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/checkpoint.h"
#include "io/dialects.h"
#include "io/packed_file.h"
#include "io/text.h"
#include "io/write_whole.h"

#define CALL "moe_packed_write"

/// What is written, and how writing went.
struct writing {
    const moe_packed_entry *entries;
    size_t count;
    const moe_checkpoint *checkpoint;
    unsigned char *head;
    struct moei_pack_header header;
    struct moei_pack_source *sources;
    struct moei_pack_part *parts;
    size_t text_end; // in the head
    void (*done)(void *self, size_t i);
    void *self;
    moe_status status; // of what was not writing itself, with its message
    char message[512];
};

// ---- the head ----------------------------------------------------------------------------------

static moe_status check_entries(const struct writing *w)
{
    for (size_t i = 0; i < w->count; i++) {
        const moe_packed_entry *e = &w->entries[i];
        MOE_REQUIRE(e->source != NULL && e->plan != NULL, MOE_E_ARGUMENT,
                    CALL ": entry %zu: %s is NULL", i, e->source == NULL ? "source" : "plan");
        MOE_REQUIRE(e->source->checkpoint == w->checkpoint, MOE_E_ARGUMENT,
                    CALL ": entry %zu: the layer is of another checkpoint", i);
        MOE_REQUIRE(e->layer >= 0 && (i == 0 || e->layer > e[-1].layer), MOE_E_ARGUMENT,
                    CALL ": entry %zu: layer %" PRId32 ", must be above %" PRId32, i, e->layer,
                    i == 0 ? -1 : e[-1].layer);
    }
    return MOE_OK;
}

static void put_text(struct writing *w, const char *text, size_t size, struct moei_pack_text *out)
{
    *out = (struct moei_pack_text){(uint32_t)w->text_end, (uint32_t)size};
    if (w->head != NULL && text != NULL) {
        memcpy(w->head + w->text_end, text, size + 1);
    }
    w->text_end = moei_size_add(w->text_end, size + 1);
}

// Without a head, texts are only measured.
static moe_status put_part(struct writing *w, size_t i, size_t at)
{
    const moe_packed_entry *e = &w->entries[i];
    struct moei_pack_part *part = &w->parts[i];
    size_t size = 0;
    size_t bytes = 0;
    size_t align = 0;
    MOE_TRY(moe_weights_bytes(e->plan, &bytes, &align));
    MOE_TRY(moe_weights_layout(e->plan, NULL, 0, &size));
    *part = (struct moei_pack_part){.at = at, .bytes = bytes, .layer = e->layer};
    if (w->head != NULL) {
        MOE_TRY(moe_weights_layout(e->plan, (char *)w->head + w->text_end, size + 1, NULL));
    }
    put_text(w, NULL, size, &part->layout);
    return MOE_OK;
}

// One walk that measures the head, or fills it but for the checksums.
static moe_status put_head(struct writing *w)
{
    size_t at = (size_t)w->header.head_bytes;
    w->text_end = sizeof w->header + w->header.sources * sizeof w->sources[0] +
                  w->header.parts * sizeof w->parts[0];
    for (size_t i = 0; i < w->header.sources; i++) {
        const struct moei_identity id = moei_checkpoint_identity(w->checkpoint, i);
        w->sources[i] = (struct moei_pack_source){.bytes = id.bytes, .identity = id.hash};
        put_text(w, id.name, strlen(id.name), &w->sources[i].name);
    }
    for (size_t i = 0; i < w->count; i++) {
        MOE_TRY(put_part(w, i, at));
        at = moei_size_add(at, moei_size_align((size_t)w->parts[i].bytes, MOEI_PACK_ALIGN));
    }
    const size_t end = moei_size_align(w->text_end, MOEI_PACK_ALIGN);
    MOE_REQUIRE(end <= MOEI_PACK_MAX_HEAD, MOE_E_LIMIT,
                CALL ": a head of %zu bytes, the limit is %u", end, MOEI_PACK_MAX_HEAD);
    MOE_REQUIRE(at <= (size_t)INT64_MAX - MOEI_PACK_MAX_HEAD, MOE_E_OVERFLOW,
                CALL ": the layers exceed %" PRId64 " bytes", INT64_MAX - MOEI_PACK_MAX_HEAD);
    w->header.head_bytes = end;
    w->header.file_bytes = at;
    return MOE_OK;
}

static moe_status make_head(struct writing *w)
{
    const size_t files = moei_checkpoint_files(w->checkpoint);
    MOE_REQUIRE(w->count <= MOEI_PACK_MAX_HEAD && files <= MOEI_PACK_MAX_HEAD, MOE_E_LIMIT,
                CALL ": %zu layers of %zu files", w->count, files);
    memcpy(w->header.magic, MOE_PACKED_MAGIC, sizeof w->header.magic);
    w->header.byte_order = MOEI_PACK_BYTE_ORDER;
    w->header.version = MOEI_PACK_VERSION;
    w->header.sources = (uint32_t)files;
    w->header.parts = (uint32_t)w->count;
    w->sources = calloc(files + 1, sizeof w->sources[0]);
    w->parts = calloc(w->count + 1, sizeof w->parts[0]);
    MOE_REQUIRE(w->sources != NULL && w->parts != NULL, MOE_E_NO_MEMORY, CALL ": out of memory");
    MOE_TRY(put_head(w));
    w->head = calloc(1, (size_t)w->header.head_bytes);
    MOE_REQUIRE(w->head != NULL, MOE_E_NO_MEMORY, CALL ": no memory for %" PRIu64 " bytes",
                w->header.head_bytes);
    return put_head(w);
}

static void finish_head(struct writing *w)
{
    const size_t source_bytes = w->header.sources * sizeof w->sources[0];
    memcpy(w->head + sizeof w->header, w->sources, source_bytes);
    memcpy(w->head + sizeof w->header + source_bytes, w->parts,
           w->header.parts * sizeof w->parts[0]);
    w->header.checksum = moei_pack_head_checksum(w->head, w->header);
    memcpy(w->head, &w->header, sizeof w->header);
}

// ---- the layers --------------------------------------------------------------------------------

static moe_status load(const moe_packed_entry *e, void *memory, size_t bytes)
{
    moe_weights *weights = NULL;
    MOE_TRY(moe_checkpoint_layer_load(e->source, e->plan, memory, bytes, &weights));
    moe_weights_destroy(weights);
    return MOE_OK;
}

// Packs on the device and fetches the bytes; those between matrices are the zeros of `to`.
static moe_status load_on_device(const moe_packed_entry *e, void *to, size_t bytes)
{
    const moe_context *ctx = moe_plan_context(e->plan);
    void *memory = NULL;
    MOE_TRY(moe_memory_alloc(ctx, bytes, &memory));
    moe_status status = moe_memory_copy(ctx, memory, to, bytes, MOE_COPY_TO_DEVICE, NULL);
    status = status == MOE_OK ? load(e, memory, bytes) : status;
    status = status == MOE_OK ? moe_memory_copy(ctx, to, memory, bytes, MOE_COPY_FROM_DEVICE, NULL)
                              : status;
    moe_memory_free(ctx, memory, bytes);
    return status;
}

static moe_status put_layers(struct writing *w, unsigned char *file)
{
    for (size_t i = 0; i < w->count; i++) {
        const moe_packed_entry *e = &w->entries[i];
        struct moei_pack_part *part = &w->parts[i];
        unsigned char *to = file + part->at;
        MOE_TRY((moe_context_host_memory(moe_plan_context(e->plan)) != 0 ? load : load_on_device)(
            e, to, (size_t)part->bytes));
        part->checksum = XXH3_64bits(to, moei_size_align((size_t)part->bytes, MOEI_PACK_ALIGN));
        if (w->done != NULL) {
            w->done(w->self, i);
        }
    }
    return MOE_OK;
}

// The room is taken before the file is mapped: a page that the disk has none for ends a process.
static bool put_file(FILE *file, void *arg)
{
    struct writing *w = arg;
    const int fd = fileno(file);
    const size_t size = (size_t)w->header.file_bytes;
    errno = posix_fallocate(fd, 0, (off_t)size);
    if (errno != 0) {
        return false;
    }
    unsigned char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        return false;
    }
    w->status = put_layers(w, map);
    if (w->status != MOE_OK) {
        (void)snprintf(w->message, sizeof w->message, "%s", moe_last_error());
    } else {
        finish_head(w);
        memcpy(map, w->head, (size_t)w->header.head_bytes);
    }
    const bool unmapped = munmap(map, size) == 0;
    return unmapped && w->status == MOE_OK;
}

moe_status moe_packed_write(const char *path, const moe_checkpoint *checkpoint,
                            const moe_packed_entry *entries, size_t count,
                            void (*done)(void *self, size_t i), void *self)
{
    struct writing w = {
        .entries = entries, .count = count, .checkpoint = checkpoint, .done = done, .self = self};
    MOE_REQUIRE(path != NULL && checkpoint != NULL, MOE_E_ARGUMENT, CALL ": %s is NULL",
                path == NULL ? "path" : "checkpoint");
    MOE_REQUIRE(entries != NULL && count > 0, MOE_E_ARGUMENT, CALL ": entries is %s, count is %zu",
                entries == NULL ? "NULL" : "given", count);
    MOE_TRY(check_entries(&w));
    moe_status status = make_head(&w);
    status = status == MOE_OK ? moei_write_whole(CALL, path, put_file, &w) : status;
    if (w.status != MOE_OK) {
        status = moe_fail(w.status, "%s", w.message);
    }
    free(w.head);
    free(w.sources);
    free(w.parts);
    return status;
}
