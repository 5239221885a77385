// SPDX-License-Identifier: Apache-2.0
// Packed files: a layer that is adopted from one runs with the bits of one that is packed anew, and
// whatever is wrong with a file is refused by name. Nothing is left of a file that could not be
// written.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "io/packed_file.h"
#include "moe/io.h"
#include "moe/moe.h"
#include "st_image.h"
#include "unit/far_device.h"

#define LAYERS 4
#define TOKENS 3
#define OUT    "out.moepack"

// ---- failures on demand ------------------------------------------------------------------------

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__real_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset);
int __real_posix_fallocate(int fd, off_t offset, off_t size);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset);
int __wrap_posix_fallocate(int fd, off_t offset, off_t size);

static long until_failure = -1; // below 0: none fails

static bool fails(void)
{
    return until_failure >= 0 && until_failure-- == 0;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(align, bytes);
}

void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
    errno = ENOMEM;
    return fails() ? MAP_FAILED : __real_mmap(at, bytes, prot, flags, fd, offset);
}

int __wrap_posix_fallocate(int fd, off_t offset, off_t size)
{
    return fails() ? ENOSPC : __real_posix_fallocate(fd, offset, size);
}

// ---- the model ---------------------------------------------------------------------------------

/// A checkpoint with plans for its layers.
struct model {
    moe_checkpoint *checkpoint;
    moe_context *ctx;
    moe_layer_desc desc;
    moe_packed_entry entries[LAYERS];
    moe_plan *plans[LAYERS];
};

static char *read_text(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    char *text = calloc(1, 1 << 16);
    *size = f != NULL && text != NULL ? fread(text, 1, 1 << 16, f) : 0;
    if (f != NULL) {
        (void)fclose(f);
    }
    return text;
}

static bool open_model_as(const char *dir, uint32_t flags, moe_context *ctx, moe_quant_spec act,
                          struct model *m)
{
    char path[4096];
    size_t size = 0;
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    char *config = read_text(path, &size);
    memset(m, 0, sizeof *m);
    m->ctx = ctx;
    bool good =
        CHECK(moe_checkpoint_open(dir, flags, &m->checkpoint) == MOE_OK, "%s", moe_last_error());
    for (int32_t i = 0; i < LAYERS && good; i++) {
        moe_checkpoint_layer *layer = NULL;
        moe_layer_desc d = moe_layer_desc_default();
        good = CHECK(moe_checkpoint_layer_open(m->checkpoint, config, size, i, &layer) == MOE_OK &&
                         moe_checkpoint_layer_desc(layer, &d) == MOE_OK,
                     "%s", moe_last_error());
        d.x_dtype = MOE_F32;
        d.max_tokens = TOKENS;
        d.gemm[0].act.spec = d.gemm[1].act.spec = act;
        good =
            good && CHECK(moe_plan_create(ctx, &d, &m->plans[i]) == MOE_OK, "%s", moe_last_error());
        m->desc = d;
        m->entries[i] = (moe_packed_entry){i, layer, m->plans[i]};
    }
    free(config);
    return good;
}

static bool open_model(const char *dir, moe_context *ctx, moe_quant_spec act, struct model *m)
{
    return open_model_as(dir, MOE_FILE_DEFAULT, ctx, act, m);
}

static void close_model(struct model *m)
{
    for (int i = 0; i < LAYERS; i++) {
        moe_plan_destroy(m->plans[i]);
        moe_checkpoint_layer_close((moe_checkpoint_layer *)(uintptr_t)m->entries[i].source);
    }
    moe_checkpoint_close(m->checkpoint);
}

static void *aligned(size_t bytes, size_t align)
{
    void *p = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (p == NULL) {
        abort();
    }
    return p;
}

static void run(const struct model *m, int layer, const moe_weights *weights, float *y)
{
    float x[TOKENS * 512];
    float logits[TOKENS * 64];
    size_t bytes = 0;
    size_t align = 0;
    moe_run_args args = moe_run_args_default();
    for (size_t i = 0; i < COUNT(x); i++) {
        x[i] = (float)((int)(i * 37 % 101) - 50) / 50.0f;
    }
    for (size_t i = 0; i < COUNT(logits); i++) {
        logits[i] = (float)(i * 29 % 67) / 10.0f;
    }
    args.num_tokens = TOKENS;
    args.x = moe_tensor_2d(x, MOE_F32, TOKENS, m->desc.hidden);
    args.logits = moe_tensor_2d(logits, MOE_F32, TOKENS, m->desc.num_experts);
    args.out = moe_tensor_2d(y, MOE_F32, TOKENS, m->desc.hidden);
    CHECK(moe_plan_workspace(m->plans[layer], TOKENS, &bytes, &align) == MOE_OK, "%s",
          moe_last_error());
    void *workspace = aligned(bytes, align);
    CHECK(moe_run(m->plans[layer], weights, &args, workspace, bytes, NULL) == MOE_OK, "%s",
          moe_last_error());
    free(workspace);
}

// The outputs of a layer that is packed anew, whose bytes are compared, too.
static void run_fresh(const struct model *m, int layer, const moe_packed_part *part, float *y)
{
    size_t bytes = 0;
    size_t align = 0;
    moe_weights *weights = NULL;
    CHECK(moe_weights_bytes(m->plans[layer], &bytes, &align) == MOE_OK && bytes == part->bytes,
          "%zu bytes, %zu in the file", bytes, part->bytes);
    void *memory = aligned(bytes, align);
    memset(memory, 0, bytes);
    if (CHECK(moe_checkpoint_layer_load(m->entries[layer].source, m->plans[layer], memory, bytes,
                                        &weights) == MOE_OK,
              "%s", moe_last_error())) {
        CHECK(memcmp(memory, part->data, bytes) == 0, "layer %d: other bytes in the file", layer);
        run(m, layer, weights, y);
    }
    moe_weights_destroy(weights);
    free(memory);
}

static int files_in_folder(void)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (const struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        n += e->d_name[0] != '.';
    }
    (void)closedir(dir);
    return n;
}

// ---- what is right -----------------------------------------------------------------------------

static void count_layer(void *self, size_t i)
{
    size_t *count = self;
    CHECK(i == *count, "layer %zu is done, %zu are", i, *count);
    ++*count;
}

static void test_round(const struct model *m)
{
    static float y[2][TOKENS * 512];
    moe_packed *file = NULL;
    size_t done = 0;
    CHECK(moe_packed_write(in_folder(OUT), m->checkpoint, m->entries, LAYERS, count_layer, &done) ==
                  MOE_OK &&
              done == LAYERS,
          "%zu: %s", done, moe_last_error());
    for (uint32_t flags = 0; flags <= MOE_FILE_NO_MMAP; flags++) {
        if (!CHECK(moe_packed_open(in_folder(OUT), m->checkpoint, flags, &file) == MOE_OK, "%s",
                   moe_last_error())) {
            continue;
        }
        CHECK(moe_packed_count(file) == LAYERS && moe_packed_sources(file) == 2, "%zu layers",
              moe_packed_count(file));
        for (int i = 0; i < LAYERS; i++) {
            moe_packed_part part = {0};
            moe_weights *weights = NULL;
            char layout[2048];
            CHECK(moe_packed_part_at(file, (size_t)i, &part) == MOE_OK && part.layer == i, "%s",
                  moe_last_error());
            CHECK(moe_weights_layout(m->plans[i], layout, sizeof layout, NULL) == MOE_OK &&
                      strcmp(layout, part.layout) == 0,
                  "%s, the plan's is %s", part.layout, layout);
            CHECK(moe_packed_verify(file, i) == MOE_OK, "%s", moe_last_error());
            run_fresh(m, i, &part, y[0]);
            memset(y[1], 0, sizeof y[1]);
            if (CHECK(moe_packed_adopt(file, i, m->plans[i], &weights) == MOE_OK, "%s",
                      moe_last_error())) {
                run(m, i, weights, y[1]);
                CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0, "layer %d gives other bits", i);
            }
            moe_weights_destroy(weights);
        }
        moe_packed_close(file);
    }
}

static struct image read_image(void)
{
    FILE *f = fopen(in_folder(OUT), "rb");
    struct image image = {.bytes = NULL};
    if (CHECK(f != NULL && fseek(f, 0, SEEK_END) == 0, "%s", in_folder(OUT))) {
        image = image_alloc((size_t)ftell(f)); // of whole pages, hence aligned
        rewind(f);
        CHECK(fread(image.bytes, 1, image.size, f) == image.size, "reading back");
        (void)fclose(f);
    }
    return image;
}

// The same arguments give the same bytes, and who has the old file keeps it.
static void test_again(const struct model *m, const struct image *image)
{
    moe_packed *old = NULL;
    CHECK(moe_packed_open(in_folder(OUT), m->checkpoint, 0, &old) == MOE_OK, "%s",
          moe_last_error());
    CHECK(moe_packed_write(in_folder(OUT), m->checkpoint, m->entries + 1, 1, NULL, NULL) == MOE_OK,
          "%s", moe_last_error());
    for (int i = 0; i < LAYERS; i++) {
        CHECK(moe_packed_verify(old, i) == MOE_OK, "%s", moe_last_error());
    }
    moe_packed_close(old);
    CHECK(moe_packed_open(in_folder(OUT), m->checkpoint, 0, &old) == MOE_OK &&
              moe_packed_count(old) == 1 && moe_packed_verify(old, 1) == MOE_OK &&
              moe_packed_verify(old, 0) == MOE_E_NOT_FOUND &&
              strstr(moe_last_error(), "no layer 0 among 1") != NULL,
          "%s", moe_last_error());
    moe_packed_close(old);
    CHECK(moe_packed_write(in_folder(OUT), m->checkpoint, m->entries, LAYERS, NULL, NULL) == MOE_OK,
          "%s", moe_last_error());
    struct image other = read_image();
    CHECK(other.size == image->size && memcmp(other.bytes, image->bytes, image->size) == 0,
          "other bytes the second time");
    image_free(other);
    CHECK(files_in_folder() == 1, "%d files", files_in_folder());
}

// ---- what is wrong with a file -----------------------------------------------------------------

static void check_refused(const struct image *image, size_t size, moe_status want, const char *says)
{
    moe_packed *file = NULL;
    const moe_status status = moe_packed_open_memory(image->bytes, size, "image", NULL, &file);
    CHECK(status == want && file == NULL && strstr(moe_last_error(), "image") != NULL &&
              strstr(moe_last_error(), says) != NULL,
          "status %d, expected %d and \"%s\": %s", (int)status, (int)want, says, moe_last_error());
    moe_packed_close(file);
}

static void test_bytes_of_head(const struct image *image)
{
    const struct moei_pack_header *h = (const void *)image->bytes;
    const size_t head = (size_t)h->head_bytes;
    int refused = 0;
    for (size_t i = 0; i < head; i++) {
        moe_packed *file = NULL;
        image->bytes[i] ^= 0x10;
        refused += moe_packed_open_memory(image->bytes, image->size, NULL, NULL, &file) != MOE_OK;
        image->bytes[i] ^= 0x10;
        moe_packed_close(file);
    }
    CHECK((size_t)refused == head, "%d of %zu damaged bytes of the head are refused", refused,
          head);
}

static void test_sizes(const struct image *image)
{
    for (size_t size = 0; size < sizeof(struct moei_pack_header); size++) {
        check_refused(image, size, MOE_E_MALFORMED, "the header alone takes 64");
    }
    check_refused(image, sizeof(struct moei_pack_header), MOE_E_MALFORMED, "written were");
    check_refused(image, image->size / 2, MOE_E_MALFORMED, "written were");
    check_refused(image, image->size - 1, MOE_E_MALFORMED, "written were");
}

/// Changes of a head under a checksum that is right.
enum change {
    MAGIC,
    OTHER_ORDER,
    VERSION,
    FILE_BYTES,
    HEAD_SHORT,
    HEAD_ODD,
    HEAD_LONG,
    HEAD_HUGE,
    MANY_PARTS,
    MANY_SOURCES,
    NO_PARTS,
    PART_AT,
    PART_EMPTY,
    PART_LONG,
    PART_HUGE,
    PART_LAYER,
    PART_NEGATIVE,
    LAYOUT_AT,
    LAYOUT_LONG,
    LAYOUT_SHORT,
    NAME_AT,
    NUM_CHANGES
};

static void change_head(unsigned char *bytes, enum change what)
{
    struct moei_pack_header h;
    struct moei_pack_part part[2];
    struct moei_pack_source source;
    memcpy(&h, bytes, sizeof h);
    unsigned char *const sources = bytes + sizeof h;
    unsigned char *const parts = sources + h.sources * sizeof source;
    memcpy(&source, sources, sizeof source);
    memcpy(part, parts, sizeof part);
    const uint64_t head = h.head_bytes;
    switch (what) {
    case MAGIC:
        h.magic[7]++;
        break;
    case OTHER_ORDER:
        h.byte_order = __builtin_bswap32(h.byte_order);
        break;
    case VERSION:
        h.version++;
        break;
    case FILE_BYTES:
        h.file_bytes += MOEI_PACK_ALIGN;
        break;
    case HEAD_SHORT:
        h.head_bytes = 0;
        break;
    case HEAD_ODD:
        h.head_bytes -= 8;
        break;
    case HEAD_LONG:
        h.head_bytes = h.file_bytes + MOEI_PACK_ALIGN;
        break;
    case HEAD_HUGE:
        h.head_bytes = UINT64_MAX - MOEI_PACK_ALIGN + 1;
        break;
    case MANY_PARTS:
        h.parts = UINT32_MAX;
        break;
    case MANY_SOURCES:
        h.sources = UINT32_MAX;
        break;
    case NO_PARTS:
        h.parts = 0;
        break;
    case PART_AT:
        part[0].at += MOEI_PACK_ALIGN;
        break;
    case PART_EMPTY:
        part[0].bytes = 0;
        break;
    case PART_LONG:
        part[0].bytes += MOEI_PACK_ALIGN;
        break;
    case PART_HUGE:
        part[0].bytes = UINT64_MAX;
        break;
    case PART_LAYER:
        part[1].layer = part[0].layer;
        break;
    case PART_NEGATIVE:
        part[0].layer = -1;
        break;
    case LAYOUT_AT:
        part[0].layout.at = UINT32_MAX;
        break;
    case LAYOUT_LONG:
        part[0].layout.bytes = UINT32_MAX;
        break;
    case LAYOUT_SHORT:
        part[0].layout.bytes--;
        break;
    default:
        source.name.at = (uint32_t)head;
        break;
    }
    memcpy(sources, &source, sizeof source);
    memcpy(parts, part, sizeof part);
    h.checksum = h.head_bytes == head ? moei_pack_head_checksum(bytes, h) : 0;
    memcpy(bytes, &h, sizeof h);
}

static void test_changed_heads(const struct image *image)
{
    static const struct {
        const char *says;
        moe_status status;
    } want[NUM_CHANGES] = {
        [MAGIC] = {"begins with \"moe-pacl\", a packed file with \"moe-pack\"", MOE_E_MALFORMED},
        [OTHER_ORDER] = {"byte order 04030201, this machine's is 01020304", MOE_E_UNSUPPORTED},
        [VERSION] = {"version 2 of the format, this library reads 1", MOE_E_VERSION},
        [FILE_BYTES] = {"written were", MOE_E_MALFORMED},
        [HEAD_SHORT] = {"a head of 0 bytes with 2 sources and 4 layers", MOE_E_MALFORMED},
        [HEAD_ODD] = {"a head of", MOE_E_MALFORMED},
        [HEAD_LONG] = {"a head of", MOE_E_MALFORMED},
        [HEAD_HUGE] = {"the limit is", MOE_E_LIMIT},
        [MANY_PARTS] = {"4294967295 layers", MOE_E_MALFORMED},
        [MANY_SOURCES] = {"4294967295 sources", MOE_E_MALFORMED},
        [NO_PARTS] = {"the last layer ends at", MOE_E_MALFORMED},
        [PART_AT] = {"layer 0 has", MOE_E_MALFORMED},
        [PART_EMPTY] = {"layer 0 has 0 bytes", MOE_E_MALFORMED},
        [PART_LONG] = {"layer 1 has", MOE_E_MALFORMED},
        [PART_HUGE] = {"layer 0 has 18446744073709551615 bytes", MOE_E_MALFORMED},
        [PART_LAYER] = {"layer 0 has", MOE_E_MALFORMED},
        [PART_NEGATIVE] = {"layer -1 has", MOE_E_MALFORMED},
        [LAYOUT_AT] = {"the layout of layer 0 is no text", MOE_E_MALFORMED},
        [LAYOUT_LONG] = {"the layout of layer 0 is no text", MOE_E_MALFORMED},
        [LAYOUT_SHORT] = {"the layout of layer 0 is no text", MOE_E_MALFORMED},
        [NAME_AT] = {"the name of source 0 is no text", MOE_E_MALFORMED},
    };
    const struct moei_pack_header *h = (const void *)image->bytes;
    const size_t head = (size_t)h->head_bytes;
    unsigned char *good = malloc(head);
    if (good == NULL) {
        abort();
    }
    memcpy(good, image->bytes, head);
    for (int i = 0; i < NUM_CHANGES; i++) {
        change_head(image->bytes, (enum change)i);
        check_refused(image, image->size, want[i].status, want[i].says);
        memcpy(image->bytes, good, head);
    }
    free(good);
}

// Damage to a layer shows when it is adopted; the others are as they were.
static void test_damaged_layer(const struct model *m, const struct image *image)
{
    moe_packed *file = NULL;
    moe_packed_part part[2] = {{0}, {0}};
    if (!CHECK(moe_packed_open_memory(image->bytes, image->size, "image", m->checkpoint, &file) ==
                       MOE_OK &&
                   moe_packed_part_at(file, 1, &part[0]) == MOE_OK &&
                   moe_packed_part_at(file, 2, &part[1]) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    const size_t begin = (size_t)((const unsigned char *)part[0].data - image->bytes);
    const size_t end = (size_t)((const unsigned char *)part[1].data - image->bytes);
    const size_t places[] = {begin, begin + part[0].bytes / 2, begin + part[0].bytes - 1, end - 1};
    for (size_t i = 0; i < COUNT(places); i++) {
        moe_weights *weights = NULL;
        image->bytes[places[i]] ^= 1;
        CHECK(moe_packed_verify(file, 1) == MOE_E_MALFORMED &&
                  strstr(moe_last_error(), "layer 1 has the checksum") != NULL,
              "byte %zu: %s", places[i], moe_last_error());
        CHECK(moe_packed_adopt(file, 1, m->plans[1], &weights) == MOE_E_MALFORMED &&
                  weights == NULL,
              "byte %zu: %s", places[i], moe_last_error());
        for (int layer = 0; layer < LAYERS; layer += 2) {
            CHECK(moe_packed_verify(file, layer) == MOE_OK, "%s", moe_last_error());
        }
        image->bytes[places[i]] ^= 1;
    }
    CHECK(moe_packed_verify(file, 1) == MOE_OK, "%s", moe_last_error());
    moe_packed_close(file);
}

static void test_uses(const struct model *m, const struct image *image)
{
    moe_plan *other = NULL;
    moe_layer_desc d = m->desc;
    moe_packed *file = NULL;
    moe_weights *none = NULL;
    moe_packed_part part;
    moe_packed_source source = {0};
    if (CHECK(moe_packed_open_memory(image->bytes, image->size, NULL, NULL, &file) == MOE_OK, "%s",
              moe_last_error())) {
        CHECK(moe_packed_adopt(file, 0, m->plans[0], &none) == MOE_E_STATE && none == NULL &&
                  strstr(moe_last_error(), "opened without the checkpoint") != NULL,
              "%s", moe_last_error());
        CHECK(moe_packed_part_at(file, LAYERS, &part) == MOE_E_ARGUMENT &&
                  moe_packed_part_at(file, 0, NULL) == MOE_E_ARGUMENT &&
                  moe_packed_source_at(file, 2, &source) == MOE_E_ARGUMENT,
              "an index too large");
        CHECK(moe_packed_source_at(file, 1, &source) == MOE_OK && source.bytes == 11714328 &&
                  strcmp(source.name, "model-00002-of-00002.safetensors") == 0,
              "%s of %llu bytes", source.name, (unsigned long long)source.bytes);
        moe_packed_close(file);
    }
    if (CHECK(moe_packed_open_memory(image->bytes, image->size, NULL, m->checkpoint, &file) ==
                  MOE_OK,
              "%s", moe_last_error())) {
        d.inter += 32;
        CHECK(moe_plan_create(m->ctx, &d, &other) == MOE_OK, "%s", moe_last_error());
        CHECK(moe_packed_adopt(file, 0, other, &none) == MOE_E_UNSUPPORTED && none == NULL &&
                  strstr(moe_last_error(), "have gate_up.n=576, the plan's weights have "
                                           "gate_up.n=640; pack again with this plan") != NULL,
              "another layout: %s", moe_last_error());
        moe_plan_destroy(other);
        CHECK(moe_packed_adopt(file, LAYERS, m->plans[0], &none) == MOE_E_NOT_FOUND &&
                  strstr(moe_last_error(), "no layer 4 among 4") != NULL,
              "%s", moe_last_error());
        CHECK(moe_packed_adopt(file, 0, NULL, &none) == MOE_E_ARGUMENT &&
                  moe_packed_adopt(file, 0, m->plans[0], NULL) == MOE_E_ARGUMENT &&
                  moe_packed_adopt(NULL, 0, m->plans[0], &none) == MOE_E_ARGUMENT,
              "NULL");
        moe_packed_close(file);
    }
    CHECK(moe_packed_open(NULL, NULL, 0, &file) == MOE_E_ARGUMENT &&
              moe_packed_open(in_folder(OUT), NULL, 0, NULL) == MOE_E_ARGUMENT &&
              moe_packed_open(in_folder(OUT), NULL, 2, &file) == MOE_E_ARGUMENT &&
              moe_packed_open_memory(NULL, 1, NULL, NULL, &file) == MOE_E_ARGUMENT &&
              moe_packed_open(in_folder("absent"), NULL, 0, &file) == MOE_E_IO,
          "%s", moe_last_error());
    moe_packed_close(NULL);
}

// ---- the checkpoint ----------------------------------------------------------------------------

static void check_stale(const struct image *image, const char *path, const char *says)
{
    moe_checkpoint *checkpoint = NULL;
    moe_packed *file = NULL;
    if (CHECK(moe_checkpoint_open(path, 0, &checkpoint) == MOE_OK, "%s", moe_last_error())) {
        CHECK(moe_packed_open_memory(image->bytes, image->size, NULL, checkpoint, &file) ==
                      MOE_E_STATE &&
                  file == NULL && strstr(moe_last_error(), says) != NULL &&
                  strstr(moe_last_error(), "pack again") != NULL,
              "expected \"%s\": %s", says, moe_last_error());
    }
    moe_checkpoint_close(checkpoint);
}

// Copies the first shard of the model with `byte` bytes from its end changed; 0: whole.
static void copy_shard(const char *dir, const char *name, size_t byte)
{
    char path[4096];
    static unsigned char bytes[12 << 20];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    const size_t size = f != NULL ? fread(bytes, 1, sizeof bytes, f) : 0;
    CHECK(size > byte && size < sizeof bytes, "%s: %zu bytes", path, size);
    if (f != NULL) {
        (void)fclose(f);
    }
    if (byte > 0) {
        bytes[size - byte] ^= 1;
    }
    write_file(name, bytes, size);
}

static void test_checkpoints(const char *dir, const struct image *image)
{
    static const char *const names[] = {"model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors"};
    static const char index_name[] = "model.safetensors.index.json";
    char path[4096];
    size_t size = 0;
    (void)snprintf(path, sizeof path, "%s/%s", dir, names[0]);
    check_stale(image, path, "made from 2 files, the checkpoint has 1");
    (void)snprintf(path, sizeof path, "%s/%s", dir, index_name);
    char *index = read_text(path, &size);
    write_file(index_name, index, size);
    copy_shard(dir, names[0], 0);
    copy_shard(dir, names[1], 1); // the last byte is in the last sample
    check_stale(image, folder,
                "made from \"model-00002-of-00002.safetensors\" with 11714328 bytes");
    // Another name for the same bytes.
    write_file(index_name, index, size);
    copy_shard(dir, names[1], 0);
    for (char *at = index; (at = strstr(at, names[0])) != NULL; at++) {
        memcpy(at, "model-00000-of-00002", 20);
    }
    write_file(index_name, index, size);
    (void)snprintf(path, sizeof path, "%s", in_folder(names[0]));
    CHECK(rename(path, in_folder("model-00000-of-00002.safetensors")) == 0, "rename");
    check_stale(image, folder,
                "made from the file \"model-00001-of-00002.safetensors\", the checkpoint has "
                "\"model-00000-of-00002.safetensors\"");
    remove_file(index_name);
    remove_file("model-00000-of-00002.safetensors");
    remove_file(names[1]);
    free(index);
}

// ---- writing that fails ------------------------------------------------------------------------

static void check_write(const struct model *m, const moe_packed_entry *entries, size_t count,
                        moe_status want, const char *says)
{
    const int files = files_in_folder();
    const moe_status status =
        moe_packed_write(in_folder("new"), m->checkpoint, entries, count, NULL, NULL);
    CHECK(status == want && strstr(moe_last_error(), says) != NULL && files_in_folder() == files,
          "status %d, %d files, expected %d and \"%s\": %s", (int)status, files_in_folder(),
          (int)want, says, moe_last_error());
}

static void test_write_refusals(const struct model *m, const struct model *other)
{
    moe_packed_entry e[2] = {m->entries[0], m->entries[1]};
    check_write(m, NULL, 1, MOE_E_ARGUMENT, "entries is NULL, count is 1");
    check_write(m, e, 0, MOE_E_ARGUMENT, "count is 0");
    e[1].layer = 0;
    check_write(m, e, 2, MOE_E_ARGUMENT, "entry 1: layer 0, must be above 0");
    e[1] = m->entries[1];
    e[1].plan = NULL;
    check_write(m, e, 2, MOE_E_ARGUMENT, "entry 1: plan is NULL");
    e[1] = other->entries[1];
    check_write(m, e, 2, MOE_E_ARGUMENT, "entry 1: the layer is of another checkpoint");
    moe_layer_desc d = m->desc;
    moe_plan *plan = NULL;
    d.hidden += 32;
    CHECK(moe_plan_create(m->ctx, &d, &plan) == MOE_OK, "%s", moe_last_error());
    e[1] = m->entries[1];
    e[1].plan = plan;
    check_write(m, e, 2, MOE_E_SHAPE, "moe_checkpoint_layer_load: the plan has hidden = 320");
    moe_plan_destroy(plan);
    CHECK(moe_packed_write(NULL, m->checkpoint, e, 1, NULL, NULL) == MOE_E_ARGUMENT &&
              moe_packed_write("x", NULL, e, 1, NULL, NULL) == MOE_E_ARGUMENT &&
              moe_packed_write(in_folder("absent/x"), m->checkpoint, e, 1, NULL, NULL) == MOE_E_IO,
          "%s", moe_last_error());
    // A limit of the process stands for a full disk.
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0, "getrlimit");
    const struct rlimit few = {65536, limit.rlim_max};
    (void)signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &few) == 0, "setrlimit");
    check_write(m, m->entries, 1, MOE_E_IO, strerror(EFBIG));
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
}

// Every allocation, mapping and reservation fails once.
static void test_failures(const struct model *m)
{
    const int files = files_in_folder();
    moe_status status = MOE_E_NO_MEMORY;
    long n = 0;
    for (; n < 1000 && status != MOE_OK; n++) {
        until_failure = n;
        status = moe_packed_write(in_folder("new"), m->checkpoint, m->entries, 1, NULL, NULL);
        CHECK(until_failure < 0 || status == MOE_OK, "failure %ld is not reached", n);
        until_failure = -1;
        CHECK(status == MOE_OK ||
                  ((status == MOE_E_NO_MEMORY || status == MOE_E_IO) && files_in_folder() == files),
              "failure %ld of writing: status %d, %d files: %s", n, (int)status, files_in_folder(),
              moe_last_error());
    }
    CHECK(n > 8 && n < 1000, "%ld failures", n);
    status = MOE_E_NO_MEMORY;
    for (n = 0; n < 1000 && status != MOE_OK; n++) {
        moe_packed *file = NULL;
        moe_weights *weights = NULL;
        until_failure = n;
        status = moe_packed_open(in_folder("new"), m->checkpoint, (uint32_t)n % 2, &file);
        if (status == MOE_OK) {
            status = moe_packed_adopt(file, 0, m->plans[0], &weights);
        } else {
            CHECK(file == NULL, "failure %ld gives a file", n);
        }
        until_failure = -1;
        CHECK(status == MOE_OK || (status == MOE_E_NO_MEMORY && weights == NULL),
              "failure %ld of opening: status %d: %s", n, (int)status, moe_last_error());
        moe_weights_destroy(weights);
        moe_packed_close(file);
    }
    CHECK(n > 4 && n < 1000, "%ld failures", n);
    remove_file("new");
}

// ---- threads -----------------------------------------------------------------------------------

// Experts are packed by several threads; the first one that is refused is named, whoever finds it.
static void test_refused_experts(const char *dir)
{
    static const int32_t bad[] = {29, 7, 8, 20};
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    struct model m;
    moe_tensor scales;
    desc.num_threads = 4;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return;
    }
    if (open_model_as(dir, MOE_FILE_NO_MMAP, ctx, MOE_QUANT_NONE, &m) &&
        CHECK(moe_checkpoint_tensor(m.checkpoint, "model.layers.0.mlp.experts.down_proj_scales",
                                    &scales) == MOE_OK,
              "%s", moe_last_error())) {
        for (size_t i = 0; i < COUNT(bad); i++) {
            char says[64];
            const int32_t first = i == 0 ? 29 : 7;
            unsigned char *data = (unsigned char *)scales.data + scales.byte_offset;
            data[bad[i] * scales.stride[0] + 5] = 0xFF; // NaN
            (void)snprintf(says, sizeof says, "down scales of expert %d:", (int)first);
            check_write(&m, m.entries, 1, MOE_E_VALUE, says);
        }
    }
    close_model(&m);
    moe_context_destroy(ctx);
}

// ---- a device ----------------------------------------------------------------------------------

// Packed there, the bytes are those of the host; adopted they are from a copy there.
static void test_device(const char *dir, moe_context *host, const struct image *image)
{
    far_device *far = far_device_make(host->backend, (size_t)64 << 20);
    moe_context device = *host;
    struct model m;
    moe_packed *file = NULL;
    moe_packed *of_host = NULL;
    if (!CHECK(far != NULL, "no address space")) {
        return;
    }
    device.backend = &far->backend;
    if (open_model(dir, &device, MOE_QUANT_NONE, &m) &&
        CHECK(moe_packed_write(in_folder("new"), m.checkpoint, m.entries, LAYERS, NULL, NULL) ==
                      MOE_OK &&
                  moe_packed_open(in_folder("new"), m.checkpoint, 0, &file) == MOE_OK &&
                  moe_packed_open_memory(image->bytes, image->size, NULL, NULL, &of_host) == MOE_OK,
              "%s", moe_last_error())) {
        moe_packed_part part[2] = {{0}, {0}};
        moe_weights *weights = NULL;
        void *there = NULL;
        CHECK(moe_packed_part_at(file, 3, &part[0]) == MOE_OK &&
                  moe_packed_part_at(of_host, 3, &part[1]) == MOE_OK &&
                  part[0].bytes == part[1].bytes &&
                  memcmp(part[0].data, part[1].data, part[0].bytes) == 0,
              "other bytes from the device: %s", moe_last_error());
        CHECK(moe_packed_adopt(file, 3, m.plans[3], &weights) == MOE_E_UNSUPPORTED &&
                  strstr(moe_last_error(), "copy the layer there") != NULL,
              "%s", moe_last_error());
        CHECK(moe_memory_alloc(&device, part[0].bytes, &there) == MOE_OK &&
                  moe_memory_copy(&device, there, part[0].data, part[0].bytes, MOE_COPY_TO_DEVICE,
                                  NULL) == MOE_OK &&
                  moe_weights_adopt(m.plans[3], there, part[0].bytes, part[0].layout, &weights) ==
                      MOE_OK,
              "%s", moe_last_error());
        moe_weights_destroy(weights);
        moe_memory_free(&device, there, part[0].bytes);
        CHECK(far->live == 0, "%zu bytes of the device are not given back", far->live);
    }
    moe_packed_close(file);
    moe_packed_close(of_host);
    close_model(&m);
    far_device_free();
    remove_file("new");
}

int main(int argc, char **argv)
{
    static const moe_quant_spec acts[] = {MOE_QUANT_NONE, MOE_QUANT_I8B32};
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    struct model m[2];
    desc.num_threads = 1;
    folder_make();
    if (!CHECK(argc == 2 && moe_context_create(&desc, &ctx) == MOE_OK, "usage: DIR; %s",
               moe_last_error()) ||
        !open_model(argv[1], ctx, acts[0], &m[0]) || !open_model(argv[1], ctx, acts[1], &m[1])) {
        return test_summary();
    }
    test_round(&m[1]);
    test_round(&m[0]);
    const struct image image = read_image();
    test_again(&m[0], &image);
    test_bytes_of_head(&image);
    test_sizes(&image);
    test_changed_heads(&image);
    test_damaged_layer(&m[0], &image);
    test_uses(&m[0], &image);
    test_checkpoints(argv[1], &image);
    test_write_refusals(&m[0], &m[1]);
    test_failures(&m[0]);
    test_refused_experts(argv[1]);
    test_device(argv[1], ctx, &image);
    image_free(image);
    remove_file(OUT);
    folder_remove();
    close_model(&m[0]);
    close_model(&m[1]);
    moe_context_destroy(ctx);
    return test_summary();
}
