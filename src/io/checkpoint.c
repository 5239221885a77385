// SPDX-License-Identifier: Apache-2.0
// A checkpoint is one safetensors file, or a folder with either model.safetensors or an index:
//   model.safetensors.index.json   {"metadata": {..}, "weight_map": {tensor: shard file, ..}}
// The index is not trusted: a shard's name must be a plain file name, and index and shards must
// name exactly the same tensors in the same places. Shards that no tensor is in are not opened.
// A file whose name makes it one more shard of the same set is refused as well; other safetensors
// files in the folder are not the checkpoint's.
// The index's total_size is not compared: public checkpoints count it in different ways.
#define _POSIX_C_SOURCE 200809L
#include "io/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/json.h"
#include "io/mmap.h"
#include "io/safetensors.h"
#include "io/text.h"

#define CALL        "moe_checkpoint_open"
#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME  "model.safetensors.index.json"

struct shard {
    char *name; // NULL for a checkpoint of one file
    moe_file *file;
    size_t first; // index of its first tensor among all
};

// One tensor, in the sorted table of all.
struct entry {
    const struct moei_st_tensor *tensor;
    size_t shard;
};

struct moe_checkpoint {
    struct shard *shards; // ascending names
    size_t shard_count;
    struct entry *by_name;
    size_t count;
    struct moei_quote label;
};

// "folder/name" in new memory, NULL when there is none.
static char *join(const char *folder, const char *name)
{
    const size_t size = moei_size_add(moei_size_add(strlen(folder), strlen(name)), 2);
    char *path = malloc(size);
    if (path != NULL) {
        (void)snprintf(path, size, "%s/%s", folder, name);
    }
    return path;
}

static moe_status no_memory(const char *path)
{
    return moe_fail(MOE_E_NO_MEMORY, CALL ": %s: out of memory",
                    moei_quote_tail(path, strlen(path)).text);
}

static struct moei_quote shown(const char *name)
{
    return moei_quote_head(name, strlen(name));
}

// A name that stays in its folder: one path component. Backslashes and control characters have no
// place in it either; they would be separators or terminal escapes elsewhere.
static bool plain_name(const char *name)
{
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return false;
    }
    for (const char *c = name; *c != '\0'; c++) {
        if (*c == '/' || *c == '\\' || (unsigned char)*c < 0x20 || *c == 0x7F) {
            return false;
        }
    }
    return true;
}

static int compare_strings(const void *a, const void *b)
{
    const char *const *x = a;
    const char *const *y = b;
    return strcmp(*x, *y);
}

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

static int compare_shards(const void *a, const void *b)
{
    const struct shard *x = a;
    const struct shard *y = b;
    return strcmp(x->name, y->name);
}

// Fills checkpoint->shards with the distinct names of the map's values, ascending.
static moe_status list_shards(moe_checkpoint *checkpoint, const moei_json *index, const json_t *map)
{
    moe_status status = MOE_OK;
    const size_t size = json_object_size(map);
    size_t distinct = 0;
    MOE_REQUIRE(size > 0, MOE_E_MALFORMED, CALL ": %s: weight_map is empty", index->label);
    const char **names = malloc(moei_size_mul(size, sizeof names[0]));
    if (names == NULL) {
        return moe_fail(MOE_E_NO_MEMORY, CALL ": %s: out of memory", index->label);
    }
    size_t used = 0;
    struct moei_json_iter iter = {.object = map};
    while (moei_json_next(&iter)) {
        const char *name = json_string_value(iter.value);
        if (name == NULL) {
            status = moe_fail(
                MOE_E_MALFORMED, CALL ": %s: weight_map: \"%s\" is %s, expected a file name",
                index->label, shown(iter.key).text, moei_json_describe(iter.value).text);
            goto out;
        }
        if (!plain_name(name)) {
            status = moe_fail(MOE_E_MALFORMED,
                              CALL ": %s: weight_map: \"%s\" is in \"%s\", not a plain file name",
                              index->label, shown(iter.key).text, shown(name).text);
            goto out;
        }
        names[used++] = name;
    }
    MOE_ASSERT(used == size);
    qsort(names, used, sizeof names[0], compare_strings);
    for (size_t i = 0; i < used; i++) {
        if (i == 0 || strcmp(names[distinct - 1], names[i]) != 0) {
            names[distinct++] = names[i];
        }
    }
    checkpoint->shards = calloc(distinct, sizeof checkpoint->shards[0]);
    if (checkpoint->shards == NULL) {
        status = moe_fail(MOE_E_NO_MEMORY, CALL ": %s: out of memory", index->label);
        goto out;
    }
    for (size_t i = 0; i < distinct; i++) {
        struct shard *shard = &checkpoint->shards[checkpoint->shard_count++];
        shard->name = strdup(names[i]);
        if (shard->name == NULL) {
            status = moe_fail(MOE_E_NO_MEMORY, CALL ": %s: out of memory", index->label);
            goto out;
        }
    }
out:
    free(names);
    return status;
}

static moe_status open_shards(moe_checkpoint *checkpoint, const char *folder, uint32_t flags)
{
    for (size_t i = 0; i < checkpoint->shard_count; i++) {
        struct shard *shard = &checkpoint->shards[i];
        struct stat info;
        char *path = join(folder, shard->name);
        if (path == NULL) {
            return no_memory(folder);
        }
        moe_status status;
        if (stat(path, &info) != 0 && errno == ENOENT) {
            status = moe_fail(
                MOE_E_NOT_FOUND, CALL ": %s: the index names the shard \"%s\", which is missing",
                moei_quote_tail(folder, strlen(folder)).text, shown(shard->name).text);
        } else {
            status = moei_file_open(CALL, path, flags, &shard->file);
        }
        free(path);
        MOE_TRY(status);
        shard->first = checkpoint->count;
        checkpoint->count = moei_size_add(checkpoint->count, moe_file_count(shard->file));
    }
    return MOE_OK;
}

// Every tensor of the map lies in the shard it says, and the shards hold no others.
static moe_status check_places(const moe_checkpoint *checkpoint, const moei_json *index,
                               const json_t *map)
{
    struct moei_json_iter iter = {.object = map};
    MOE_ASSERT(checkpoint->shards != NULL);
    while (moei_json_next(&iter)) {
        char *name = (char *)(uintptr_t)json_string_value(iter.value);
        MOE_ASSERT(name != NULL);
        const struct shard key = {.name = name};
        const struct shard *shard = bsearch(&key, checkpoint->shards, checkpoint->shard_count,
                                            sizeof checkpoint->shards[0], compare_shards);
        MOE_ASSERT(shard != NULL);
        MOE_REQUIRE(moei_file_find(shard->file, iter.key) != NULL, MOE_E_MALFORMED,
                    CALL ": %s: the tensor \"%s\" is not in the shard \"%s\"", index->label,
                    shown(iter.key).text, shown(name).text);
    }
    for (size_t i = 0; i < checkpoint->shard_count; i++) {
        const struct shard *shard = &checkpoint->shards[i];
        for (size_t t = 0; t < moe_file_count(shard->file); t++) {
            const char *name = moe_file_name(shard->file, t);
            const char *place = json_string_value(json_object_get(map, name));
            MOE_REQUIRE(place != NULL && strcmp(place, shard->name) == 0, MOE_E_MALFORMED,
                        CALL ": %s: the shard \"%s\" holds the tensor \"%s\", placed in \"%s\"",
                        index->label, shown(shard->name).text, shown(name).text,
                        shown(place == NULL ? "no shard" : place).text);
        }
    }
    return MOE_OK;
}

// The sorted table of all tensors.
static moe_status index_names(moe_checkpoint *checkpoint, const char *path)
{
    if (checkpoint->count == 0) {
        return MOE_OK;
    }
    checkpoint->by_name = malloc(moei_size_mul(checkpoint->count, sizeof checkpoint->by_name[0]));
    if (checkpoint->by_name == NULL) {
        return no_memory(path);
    }
    size_t used = 0;
    for (size_t i = 0; i < checkpoint->shard_count; i++) {
        for (size_t t = 0; t < moe_file_count(checkpoint->shards[i].file); t++) {
            checkpoint->by_name[used++] = (struct entry){
                .tensor = moei_file_at(checkpoint->shards[i].file, t),
                .shard = i,
            };
        }
    }
    qsort(checkpoint->by_name, used, sizeof checkpoint->by_name[0], compare_entries);
    return MOE_OK;
}

static moe_status open_index(moe_checkpoint *checkpoint, const char *folder, const char *path,
                             uint32_t flags)
{
    const struct moei_quote label = moei_quote_tail(path, strlen(path));
    struct moei_map text;
    moei_json index = {.root = NULL};
    const json_t *map = NULL;
    // Read, not mapped: jansson must see bytes that stay as they are.
    MOE_TRY(moei_map_open(CALL, path, MOEI_MAP_READ, MOEI_JSON_MAX_BYTES, &text));
    moe_status status = moei_json_parse(&index, CALL, label.text, text.data, text.size, 0);
    moei_map_close(&text);
    MOE_TRY(status);
    status = moei_json_object(&index, index.root, "weight_map", &map);
    if (status == MOE_OK) {
        status = list_shards(checkpoint, &index, map);
    }
    if (status == MOE_OK) {
        status = open_shards(checkpoint, folder, flags);
    }
    if (status == MOE_OK) {
        status = check_places(checkpoint, &index, map);
    }
    moei_json_free(&index);
    return status;
}

static moe_status open_single(moe_checkpoint *checkpoint, const char *path, uint32_t flags)
{
    checkpoint->shards = calloc(1, sizeof checkpoint->shards[0]);
    if (checkpoint->shards == NULL) {
        return no_memory(path);
    }
    checkpoint->shard_count = 1;
    MOE_TRY(moei_file_open(CALL, path, flags, &checkpoint->shards[0].file));
    checkpoint->count = moe_file_count(checkpoint->shards[0].file);
    return MOE_OK;
}

static bool has_shard(const moe_checkpoint *checkpoint, const char *name)
{
    for (size_t i = 0; i < checkpoint->shard_count; i++) {
        if (strcmp(checkpoint->shards[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

// Bytes of what is before "-N-of-M.safetensors"; 0: not the name of a shard.
static size_t shard_stem(const char *name)
{
    static const char ending[] = ".safetensors";
    const size_t size = strlen(name);
    size_t at = size > sizeof ending - 1 ? size - (sizeof ending - 1) : 0;
    if (at == 0 || strcmp(name + at, ending) != 0) {
        return 0;
    }
    for (int part = 0; part < 2; part++) {
        const size_t end = at;
        while (at > 0 && name[at - 1] >= '0' && name[at - 1] <= '9') {
            at--;
        }
        const char *mark = part == 0 ? "-of-" : "-";
        const size_t length = strlen(mark);
        if (at == end || at <= length || strncmp(name + at - length, mark, length) != 0) {
            return 0;
        }
        at -= length;
    }
    return at;
}

// A shard of the index's own set that the index does not name: a download gone wrong, or two mixed.
static moe_status check_extra(const moe_checkpoint *checkpoint, const char *folder)
{
    moe_status status = MOE_OK;
    DIR *dir = opendir(folder);
    MOE_REQUIRE(dir != NULL, MOE_E_IO, CALL ": %s: %s",
                moei_quote_tail(folder, strlen(folder)).text, strerror(errno));
    for (const struct dirent *e = readdir(dir); e != NULL && status == MOE_OK; e = readdir(dir)) {
        const size_t stem = shard_stem(e->d_name);
        bool same_set = false;
        for (size_t i = 0; i < checkpoint->shard_count && stem > 0; i++) {
            const char *name = checkpoint->shards[i].name;
            same_set =
                same_set || (shard_stem(name) == stem && strncmp(name, e->d_name, stem) == 0);
        }
        if (same_set && !has_shard(checkpoint, e->d_name)) {
            status = moe_fail(MOE_E_MALFORMED,
                              CALL ": %s: holds the shard \"%s\", which the index does not name",
                              moei_quote_tail(folder, strlen(folder)).text, shown(e->d_name).text);
        }
    }
    (void)closedir(dir);
    return status;
}

static moe_status open_folder(moe_checkpoint *checkpoint, const char *folder, uint32_t flags)
{
    struct stat info;
    moe_status status;
    char *index = join(folder, INDEX_NAME);
    char *single = join(folder, SINGLE_NAME);
    if (index == NULL || single == NULL) {
        status = no_memory(folder);
        goto out;
    }
    // lstat: a link whose target is missing is a broken folder, not one without the file.
    const bool has_single = lstat(single, &info) == 0;
    if (lstat(index, &info) == 0) {
        status = open_index(checkpoint, folder, index, flags);
        if (status == MOE_OK && has_single && !has_shard(checkpoint, SINGLE_NAME)) {
            status = moe_fail(MOE_E_MALFORMED,
                              CALL ": %s: holds " SINGLE_NAME " and " INDEX_NAME
                                   ", which does not name it; open one file",
                              moei_quote_tail(folder, strlen(folder)).text);
        }
        if (status == MOE_OK) {
            status = check_extra(checkpoint, folder);
        }
    } else if (has_single) {
        status = open_single(checkpoint, single, flags);
    } else {
        status =
            moe_fail(MOE_E_NOT_FOUND, CALL ": %s: holds neither " INDEX_NAME " nor " SINGLE_NAME,
                     moei_quote_tail(folder, strlen(folder)).text);
    }
out:
    free(index);
    free(single);
    return status;
}

void moe_checkpoint_close(moe_checkpoint *checkpoint)
{
    if (checkpoint == NULL) {
        return;
    }
    for (size_t i = 0; i < checkpoint->shard_count; i++) {
        moe_file_close(checkpoint->shards[i].file);
        free(checkpoint->shards[i].name);
    }
    free(checkpoint->shards);
    free(checkpoint->by_name);
    free(checkpoint);
}

moe_status moe_checkpoint_open(const char *path, uint32_t flags, moe_checkpoint **out)
{
    struct stat info;
    MOE_REQUIRE(path != NULL, MOE_E_ARGUMENT, CALL ": path is NULL");
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, CALL ": out is NULL");
    MOE_REQUIRE((flags & ~(uint32_t)MOE_FILE_NO_MMAP) == 0, MOE_E_ARGUMENT,
                CALL ": flags = %u has bits that are not known, known is %u", flags,
                (unsigned)MOE_FILE_NO_MMAP);
    moe_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL) {
        return no_memory(path);
    }
    checkpoint->label = moei_quote_tail(path, strlen(path));
    // A path that cannot be examined goes to open(), whose errno says why.
    const bool folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    moe_status status =
        folder ? open_folder(checkpoint, path, flags) : open_single(checkpoint, path, flags);
    if (status == MOE_OK) {
        status = index_names(checkpoint, path);
    }
    if (status != MOE_OK) {
        moe_checkpoint_close(checkpoint);
        return status;
    }
    *out = checkpoint;
    return MOE_OK;
}

size_t moe_checkpoint_count(const moe_checkpoint *checkpoint)
{
    return checkpoint == NULL ? 0 : checkpoint->count;
}

const char *moe_checkpoint_name(const moe_checkpoint *checkpoint, size_t i)
{
    if (i >= moe_checkpoint_count(checkpoint)) {
        return NULL;
    }
    // The last shard whose first tensor is not past i; empty shards share their successor's.
    size_t low = 0;
    size_t high = checkpoint->shard_count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (checkpoint->shards[middle].first <= i) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return moe_file_name(checkpoint->shards[low].file, i - checkpoint->shards[low].first);
}

moe_status moe_checkpoint_tensor(const moe_checkpoint *checkpoint, const char *name,
                                 moe_tensor *out)
{
    MOE_REQUIRE(checkpoint != NULL, MOE_E_ARGUMENT, "moe_checkpoint_tensor: checkpoint is NULL");
    MOE_REQUIRE(name != NULL, MOE_E_ARGUMENT, "moe_checkpoint_tensor: name is NULL");
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "moe_checkpoint_tensor: out is NULL");
    const struct moei_st_tensor tensor = {.name = name};
    const struct entry key = {.tensor = &tensor, .shard = 0};
    const struct entry *found = checkpoint->count == 0
                                    ? NULL
                                    : bsearch(&key, checkpoint->by_name, checkpoint->count,
                                              sizeof checkpoint->by_name[0], compare_entries);
    MOE_REQUIRE(found != NULL, MOE_E_NOT_FOUND, "moe_checkpoint_tensor: %s: no tensor \"%s\"",
                checkpoint->label.text, shown(name).text);
    return moei_file_view("moe_checkpoint_tensor", checkpoint->shards[found->shard].file,
                          found->tensor, out);
}

const char *moei_checkpoint_sorted(const moe_checkpoint *checkpoint, size_t i)
{
    return checkpoint->by_name[i].tensor->name;
}

moe_status moei_checkpoint_view(const char *call, const moe_checkpoint *checkpoint, size_t i,
                                moe_tensor *out)
{
    const struct entry *entry = &checkpoint->by_name[i];
    return moei_file_view(call, checkpoint->shards[entry->shard].file, entry->tensor, out);
}

size_t moei_checkpoint_lower(const moe_checkpoint *checkpoint, const char *prefix)
{
    size_t low = 0;
    size_t high = checkpoint->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (strcmp(checkpoint->by_name[middle].tensor->name, prefix) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

size_t moei_checkpoint_files(const moe_checkpoint *checkpoint)
{
    return checkpoint->shard_count;
}

struct moei_identity moei_checkpoint_identity(const moe_checkpoint *checkpoint, size_t i)
{
    const struct shard *shard = &checkpoint->shards[i];
    struct moei_identity id = {.name = shard->name != NULL ? shard->name : ""};
    id.hash = moei_file_identity(shard->file, &id.bytes);
    return id;
}

const char *moei_checkpoint_label(const moe_checkpoint *checkpoint)
{
    return checkpoint->label.text;
}
