// SPDX-License-Identifier: Apache-2.0
// moe_checkpoint_open on a folder of two good shards (a, b in s1; c in s2) and any bytes as index:
// it opens exactly the tensors of the shards that the index names, or not at all.
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "moe/io.h"

#define INDEX_NAME "model.safetensors.index.json"

static char folder[256];

static const char *in_folder(const char *name)
{
    static char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *name, const void *bytes, size_t size)
{
    FILE *f = fopen(in_folder(name), "wb");
    FUZZ_REQUIRE(f != NULL && fwrite(bytes, 1, size, f) == size && fclose(f) == 0);
}

static void write_shard(const char *name, const char *header, size_t data)
{
    uint8_t bytes[256] = {0};
    const int length = snprintf((char *)bytes + 8, sizeof bytes - 8, "%s", header);
    bytes[0] = (uint8_t)length;
    write_file(name, bytes, 8 + (size_t)length + data);
}

static void remove_folder(void)
{
    (void)unlink(in_folder("s1"));
    (void)unlink(in_folder("s2"));
    (void)unlink(in_folder(INDEX_NAME));
    (void)rmdir(folder);
}

static void make_folder(void)
{
    const char *base = getenv("TMPDIR");
    (void)snprintf(folder, sizeof folder, "%s/moe-fuzz-XXXXXX", base != NULL ? base : "/tmp");
    FUZZ_REQUIRE(mkdtemp(folder) != NULL);
    (void)atexit(remove_folder);
    write_shard("s1",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},"
                "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                2);
    write_shard("s2", "{\"c\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"b", "a", "c"};
    if (folder[0] == '\0') {
        make_folder();
    }
    write_file(INDEX_NAME, data, size);
    moe_checkpoint *checkpoint = NULL;
    const moe_status status = moe_checkpoint_open(folder, MOE_FILE_DEFAULT, &checkpoint);
    FUZZ_REQUIRE((status == MOE_OK) == (checkpoint != NULL));
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_MALFORMED || status == MOE_E_LIMIT ||
                 status == MOE_E_NOT_FOUND || status == MOE_E_IO);
    // Without c the second shard is not opened, without a and b the first is not.
    const size_t count = moe_checkpoint_count(checkpoint);
    FUZZ_REQUIRE((status == MOE_OK) == (count > 0) && count <= 3);
    for (size_t i = 0; i < count; i++) {
        moe_tensor view;
        const char *name = moe_checkpoint_name(checkpoint, i);
        FUZZ_REQUIRE(name != NULL && strcmp(name, names[count == 1 ? 2 : i]) == 0);
        FUZZ_REQUIRE(moe_checkpoint_tensor(checkpoint, name, &view) == MOE_OK);
    }
    moe_checkpoint_close(checkpoint);
    return 0;
}
