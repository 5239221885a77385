// SPDX-License-Identifier: Apache-2.0
// An open safetensors file: u64 little-endian header length, a JSON header (safetensors_header.c),
// the tensors' bytes. Everything is checked at open; lookups are binary searches.
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/mmap.h"
#include "io/text.h"

#define LENGTH_BYTES 8          // of the header length at the start of the file
#define MAX_HEADER   100000000U // MAX_HEADER_SIZE of the format's tensor.rs
#define SAMPLES      64         // of a file's data, for its identity
#define SAMPLE_BYTES 4096

struct moe_file {
    struct moei_map map;          // zeroed when the bytes are the caller's
    const unsigned char *data;    // the tensors' bytes: offset 0
    struct moei_st_header header; // tensors in file order, metadata in ascending keys
    const struct moei_st_tensor **by_name;
    struct moei_quote label;
};

static int compare_offsets(const void *a, const void *b)
{
    const struct moei_st_tensor *x = a;
    const struct moei_st_tensor *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    if (x->end != y->end) {
        return x->end < y->end ? -1 : 1;
    }
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
    const struct moei_st_tensor *const *x = a;
    const struct moei_st_tensor *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_keys(const void *a, const void *b)
{
    const struct moei_st_pair *x = a;
    const struct moei_st_pair *y = b;
    return strcmp(x->key, y->key);
}

static struct moei_quote shown(const char *name)
{
    return moei_quote_head(name, strlen(name));
}

// Tensors in file order must cover the data from 0 to their end exactly.
static moe_status check_cover(const char *call, const moe_file *file, uint64_t data_size)
{
    const struct moei_st_header *header = &file->header;
    uint64_t end = 0;
    for (size_t i = 0; i < header->count; i++) {
        const struct moei_st_tensor *t = &header->tensors[i];
        MOE_REQUIRE(t->begin == end, MOE_E_MALFORMED,
                    "%s: %s: tensor \"%s\" begins at %llu, %s%s%s ends at %llu (%s)", call,
                    file->label.text, shown(t->name).text, (unsigned long long)t->begin,
                    i > 0 ? "tensor \"" : "the header",
                    i > 0 ? shown(header->tensors[i - 1].name).text : "", i > 0 ? "\"" : "",
                    (unsigned long long)end, t->begin > end ? "a hole" : "an overlap");
        end = t->end;
    }
    MOE_REQUIRE(end == data_size, MOE_E_MALFORMED,
                "%s: %s: the last tensor ends at %llu, the file's data at %llu", call,
                file->label.text, (unsigned long long)end, (unsigned long long)data_size);
    return MOE_OK;
}

// Sorts for the lookups; equal neighbours are duplicates, however they were spelt.
static moe_status index_tensors(const char *call, moe_file *file)
{
    const struct moei_st_header *header = &file->header;
    if (header->count == 0) {
        return MOE_OK;
    }
    qsort(header->tensors, header->count, sizeof header->tensors[0], compare_offsets);
    file->by_name = malloc(moei_size_mul(header->count, sizeof(const struct moei_st_tensor *)));
    MOE_REQUIRE(file->by_name != NULL, MOE_E_NO_MEMORY, "%s: %s: out of memory at %zu tensors",
                call, file->label.text, header->count);
    for (size_t i = 0; i < header->count; i++) {
        file->by_name[i] = &header->tensors[i];
    }
    qsort(file->by_name, header->count, sizeof(const struct moei_st_tensor *), compare_names);
    for (size_t i = 1; i < header->count; i++) {
        MOE_REQUIRE(strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) != 0,
                    MOE_E_MALFORMED, "%s: %s: the tensor \"%s\" occurs twice", call,
                    file->label.text, shown(file->by_name[i]->name).text);
    }
    return MOE_OK;
}

static moe_status index_metadata(const char *call, moe_file *file)
{
    const struct moei_st_header *header = &file->header;
    if (header->metadata_count == 0) {
        return MOE_OK;
    }
    qsort(header->metadata, header->metadata_count, sizeof header->metadata[0], compare_keys);
    for (size_t i = 1; i < header->metadata_count; i++) {
        MOE_REQUIRE(strcmp(header->metadata[i - 1].key, header->metadata[i].key) != 0,
                    MOE_E_MALFORMED, "%s: %s: __metadata__: the key \"%s\" occurs twice", call,
                    file->label.text, shown(header->metadata[i].key).text);
    }
    return MOE_OK;
}

// Reads and checks the whole image into a zeroed file, whose allocations are the caller's to free,
// failed or not.
static moe_status read_image(const char *call, moe_file *file, const unsigned char *bytes,
                             size_t size)
{
    MOE_REQUIRE(size >= LENGTH_BYTES, MOE_E_MALFORMED,
                "%s: %s: %zu bytes, the header length alone takes %d", call, file->label.text, size,
                LENGTH_BYTES);
    uint64_t length = 0;
    for (unsigned i = 0; i < LENGTH_BYTES; i++) {
        length |= (uint64_t)bytes[i] << 8 * i;
    }
    MOE_REQUIRE(length <= MAX_HEADER, MOE_E_LIMIT,
                "%s: %s: a header of %llu bytes, the limit is %u", call, file->label.text,
                (unsigned long long)length, MAX_HEADER);
    MOE_REQUIRE(length <= size - LENGTH_BYTES, MOE_E_MALFORMED,
                "%s: %s: a header of %llu bytes, the file has %zu after its length", call,
                file->label.text, (unsigned long long)length, size - LENGTH_BYTES);
    const unsigned char *text = bytes + LENGTH_BYTES;
    const uint64_t data_size = size - LENGTH_BYTES - length;
    MOE_TRY(moei_st_header_read(call, file->label.text, text, (size_t)length, data_size,
                                &file->header));
    MOE_TRY(index_tensors(call, file));
    MOE_TRY(index_metadata(call, file));
    MOE_TRY(check_cover(call, file, data_size));
    file->data = text + length;
    return MOE_OK;
}

void moe_file_close(moe_file *file)
{
    if (file == NULL) {
        return;
    }
    free(file->by_name);
    moei_st_header_free(&file->header);
    moei_map_close(&file->map);
    free(file);
}

// Takes over the map (zeroed for the caller's memory), which it releases on failure too.
static moe_status open_image(const char *call, struct moei_quote label, struct moei_map map,
                             const unsigned char *bytes, size_t size, moe_file **out)
{
    moe_file *file = calloc(1, sizeof *file);
    if (file == NULL) {
        moei_map_close(&map);
        return moe_fail(MOE_E_NO_MEMORY, "%s: %s: out of memory", call, label.text);
    }
    file->map = map;
    file->label = label;
    const moe_status status = read_image(call, file, bytes, size);
    if (status != MOE_OK) {
        moe_file_close(file);
        return status;
    }
    *out = file;
    return MOE_OK;
}

moe_status moei_file_open(const char *call, const char *path, uint32_t flags, moe_file **out)
{
    struct moei_map map;
    MOE_TRY(moei_map_open(call, path, (flags & MOE_FILE_NO_MMAP) ? MOEI_MAP_READ : 0, UINT64_MAX,
                          &map));
    return open_image(call, moei_quote_tail(path, strlen(path)), map, map.data, map.size, out);
}

moe_status moe_file_open(const char *path, uint32_t flags, moe_file **out)
{
    MOE_REQUIRE(path != NULL, MOE_E_ARGUMENT, "moe_file_open: path is NULL");
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "moe_file_open: out is NULL");
    MOE_REQUIRE((flags & ~(uint32_t)MOE_FILE_NO_MMAP) == 0, MOE_E_ARGUMENT,
                "moe_file_open: flags = %u has bits that are not known, known is %u", flags,
                (unsigned)MOE_FILE_NO_MMAP);
    return moei_file_open("moe_file_open", path, flags, out);
}

moe_status moe_file_open_memory(const void *bytes, size_t size, const char *label, moe_file **out)
{
    MOE_REQUIRE(bytes != NULL || size == 0, MOE_E_ARGUMENT,
                "moe_file_open_memory: bytes is NULL, size is %zu", size);
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "moe_file_open_memory: out is NULL");
    if (label == NULL) {
        label = "memory";
    }
    const struct moei_map map = {.data = NULL, .size = 0, .mapped = false};
    return open_image("moe_file_open_memory", moei_quote_tail(label, strlen(label)), map, bytes,
                      size, out);
}

size_t moe_file_count(const moe_file *file)
{
    return file == NULL ? 0 : file->header.count;
}

const char *moe_file_name(const moe_file *file, size_t i)
{
    return i < moe_file_count(file) ? file->header.tensors[i].name : NULL;
}

const struct moei_st_tensor *moei_file_at(const moe_file *file, size_t i)
{
    MOE_ASSERT(i < file->header.count);
    return &file->header.tensors[i];
}

const struct moei_st_tensor *moei_file_find(const moe_file *file, const char *name)
{
    const struct moei_st_tensor key = {.name = name};
    const struct moei_st_tensor *const wanted = &key;
    if (file->header.count == 0) {
        return NULL;
    }
    const struct moei_st_tensor *const *found =
        bsearch(&wanted, file->by_name, file->header.count, sizeof(const struct moei_st_tensor *),
                compare_names);
    return found == NULL ? NULL : *found;
}

uint64_t moei_file_identity(const moe_file *file, uint64_t *bytes)
{
    const size_t head = (size_t)(file->data - file->map.data);
    const size_t data = file->map.size - head;
    const bool few = data <= (size_t)SAMPLES * SAMPLE_BYTES;
    *bytes = file->map.size;
    uint64_t hash = XXH3_64bits(file->map.data, few ? head + data : head);
    for (size_t i = 0; i < SAMPLES && !few; i++) {
        const uint64_t at = (uint64_t)(data - SAMPLE_BYTES) * i / (SAMPLES - 1);
        hash = XXH3_64bits_withSeed(file->data + at, SAMPLE_BYTES, hash);
    }
    return hash;
}

moe_status moei_file_view(const char *call, const moe_file *file,
                          const struct moei_st_tensor *tensor, moe_tensor *out)
{
    const struct moei_st_dtype *row = &moei_st_dtypes[tensor->dtype];
    MOE_REQUIRE(row->dtype != MOE_DTYPE_UNSET, MOE_E_DTYPE,
                "%s: %s: tensor \"%s\" is %s, which has no moe_dtype", call, file->label.text,
                shown(tensor->name).text, row->name);
    *out = moe_tensor_make(file->data + tensor->begin, row->dtype, tensor->ndim, tensor->shape);
    out->device = MOE_DEVICE_CPU;
    return MOE_OK;
}

moe_status moe_file_tensor(const moe_file *file, const char *name, moe_tensor *out)
{
    MOE_REQUIRE(file != NULL, MOE_E_ARGUMENT, "moe_file_tensor: file is NULL");
    MOE_REQUIRE(name != NULL, MOE_E_ARGUMENT, "moe_file_tensor: name is NULL");
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "moe_file_tensor: out is NULL");
    const struct moei_st_tensor *tensor = moei_file_find(file, name);
    MOE_REQUIRE(tensor != NULL, MOE_E_NOT_FOUND, "moe_file_tensor: %s: no tensor \"%s\"",
                file->label.text, shown(name).text);
    return moei_file_view("moe_file_tensor", file, tensor, out);
}

const char *moe_file_metadata(const moe_file *file, const char *key)
{
    if (file == NULL || key == NULL || file->header.metadata_count == 0) {
        return NULL;
    }
    const struct moei_st_pair wanted = {.key = key, .value = NULL};
    const struct moei_st_pair *found =
        bsearch(&wanted, file->header.metadata, file->header.metadata_count,
                sizeof file->header.metadata[0], compare_keys);
    return found == NULL ? NULL : found->value;
}
