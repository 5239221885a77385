// SPDX-License-Identifier: Apache-2.0
// Checkpoints: one file, a folder with one file, a folder with an index and shards; index and
// shards that disagree are refused in the words given here.
//
// With MOE_TEST_WRAP_ALLOC defined, libmoe_io linked statically and the linker given
//   --wrap=malloc --wrap=calloc --wrap=realloc --wrap=aligned_alloc --wrap=strdup
// every allocation is also made to fail in turn.
#define _GNU_SOURCE
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moe/io.h"
#include "st_image.h"
#include "test.h"

static moe_checkpoint *const not_touched = (moe_checkpoint *)(uintptr_t)64;

struct index_case {
    const char *index;
    moe_status status;
    const char *message; // after the path
};

#define MAP(members) "{\"metadata\":{\"total_size\":1},\"weight_map\":{" members "}}"
#define REST         "\"b\":\"s1\",\"c\":\"s2\""

static const struct index_case index_cases[] = {
    {MAP("\"a\":\"s1\"," REST), MOE_OK, NULL},
    {"{\"weight_map\":{\"a\":\"s1\"," REST "}}", MOE_OK, NULL},
    {MAP("\"\\u0061\":\"\\u00731\"," REST), MOE_OK, NULL},
    {MAP("\"a\":\"../s1\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"../s1\", not a plain file name"},
    {MAP("\"a\":\"./s1\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"./s1\", not a plain file name"},
    {MAP("\"a\":\"..\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"..\", not a plain file name"},
    {MAP("\"a\":\".\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \".\", not a plain file name"},
    {MAP("\"a\":\"/etc/passwd\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"/etc/passwd\", not a plain file name"},
    {MAP("\"a\":\"x\\u002fs1\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"x/s1\", not a plain file name"},
    {MAP("\"a\":\"x\\\\s1\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"x\\\\s1\", not a plain file name"},
    {MAP("\"a\":\"\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"\", not a plain file name"},
    {MAP("\"a\":\"s1\\u001b\"," REST), MOE_E_MALFORMED,
     "weight_map: \"a\" is in \"s1\\x1b\", not a plain file name"},
    {MAP("\"a\":\"s1\\u0000\"," REST), MOE_E_MALFORMED, NULL},
    {MAP("\"a\":7," REST), MOE_E_MALFORMED, "weight_map: \"a\" is 7, expected a file name"},
    {MAP("\"a\":null," REST), MOE_E_MALFORMED, "weight_map: \"a\" is null, expected a file name"},
    {MAP("\"a\":\"s3\"," REST), MOE_E_NOT_FOUND, NULL},
    {MAP("\"a\":\"s2\"," REST), MOE_E_MALFORMED, "the tensor \"a\" is not in the shard \"s2\""},
    {MAP("\"a\":\"s1\",\"d\":\"s1\"," REST), MOE_E_MALFORMED,
     "the tensor \"d\" is not in the shard \"s1\""},
    {MAP(REST), MOE_E_MALFORMED, "the shard \"s1\" holds the tensor \"a\", placed in \"no shard\""},
    {MAP("\"a\":\"s1\",\"b\":\"s1\",\"c\":\"s4\""), MOE_OK, NULL},
    {MAP("\"a\":\"s1\"," REST ",\"d\":\"s5\""), MOE_E_MALFORMED,
     "the shard \"s5\" holds the tensor \"c\", placed in \"s2\""},
    {MAP("\"a\":\"s1\",\"a\":\"s1\"," REST), MOE_E_MALFORMED, NULL},
    {MAP("\"a\":\"s1\",\"\\u0061\":\"s1\"," REST), MOE_E_MALFORMED, NULL},
    {"{\"weight_map\":{" REST "},\"weight_map\":{" REST "}}", MOE_E_MALFORMED, NULL},
    {"{\"weight_map\":{}}", MOE_E_MALFORMED, "weight_map is empty"},
    {"{\"weight_map\":[]}", MOE_E_MALFORMED, "\"weight_map\" is an array, expected an object"},
    {"{\"metadata\":{}}", MOE_E_MALFORMED, "\"weight_map\" is missing, expected an object"},
    {"[]", MOE_E_MALFORMED, "an array, expected an object"},
    {"", MOE_E_MALFORMED, NULL},
    {MAP("\"a\":\"s1\"," REST) "x", MOE_E_MALFORMED, NULL},
    {MAP("\"a\":\"bad\"," REST), MOE_E_MALFORMED, NULL},
    {MAP("\"a\":\"sub\"," REST), MOE_E_IO, NULL},
};

static void check_index(void)
{
    static const char index_name[] = "model.safetensors.index.json";
    write_shard("s1", "{" T("a", "U8", "1", 1, 2) "," T("b", "U8", "1", 0, 1) "}", 2);
    write_shard("s2", "{" T("c", "U8", "2", 0, 2) "}", 2);
    write_shard("s4", "{" T("c", "C64", "1", 0, 8) "}", 8);
    write_shard("s5", "{" T("c", "U8", "1", 0, 1) "," T("d", "U8", "1", 1, 2) "}", 2);
    write_file("bad", "\1\0\0\0\0\0\0\0{", 9);
    (void)mkdir(in_folder("sub"), 0700);
    for (size_t i = 0; i < COUNT(index_cases); i++) {
        const struct index_case *c = &index_cases[i];
        write_file(index_name, c->index, strlen(c->index));
        for (uint32_t flags = 0; flags < 2; flags++) {
            moe_checkpoint *checkpoint = not_touched;
            const moe_status status = moe_checkpoint_open(folder, flags, &checkpoint);
            CHECK(status == c->status, "%s: %s", c->index, moe_last_error());
            if (status != MOE_OK) {
                CHECK(checkpoint == not_touched, "%s: out was touched", c->index);
            } else {
                moe_checkpoint_close(checkpoint);
            }
            if (c->message != NULL) {
                char expected[512];
                (void)snprintf(expected, sizeof expected, ": %s", c->message);
                check_message(in_folder(index_name), expected);
            }
        }
    }
    write_file(index_name, index_cases[0].index, strlen(index_cases[0].index));
    moe_checkpoint *checkpoint = NULL;
    moe_tensor v;
    if (CHECK(moe_checkpoint_open(folder, 0, &checkpoint) == MOE_OK, "%s", moe_last_error())) {
        static const char *const names[] = {"b", "a", "c"};
        CHECK(moe_checkpoint_count(checkpoint) == 3, "%zu", moe_checkpoint_count(checkpoint));
        for (size_t i = 0; i < 3; i++) {
            const char *name = moe_checkpoint_name(checkpoint, i);
            CHECK(name != NULL && strcmp(name, names[i]) == 0, "%zu: %s", i, name);
            CHECK(moe_checkpoint_tensor(checkpoint, names[i], &v) == MOE_OK, "%s", names[i]);
            CHECK(((const unsigned char *)v.data)[0] == (i == 1), "%s: value", names[i]);
        }
        CHECK(moe_checkpoint_name(checkpoint, 3) == NULL, "a name past the end");
        CHECK(moe_checkpoint_tensor(checkpoint, "d", &v) == MOE_E_NOT_FOUND, "d");
        check_message(folder, ": no tensor \"d\"");
        CHECK(moe_checkpoint_tensor(NULL, "a", &v) == MOE_E_ARGUMENT, "NULL");
        CHECK(moe_checkpoint_tensor(checkpoint, NULL, &v) == MOE_E_ARGUMENT, "NULL");
        CHECK(moe_checkpoint_tensor(checkpoint, "a", NULL) == MOE_E_ARGUMENT, "NULL");
        moe_checkpoint_close(checkpoint);
    }
    // Two answers to one question.
    write_shard("model.safetensors", "{" T("z", "U8", "1", 0, 1) "}", 1);
    checkpoint = not_touched;
    CHECK(moe_checkpoint_open(folder, 0, &checkpoint) == MOE_E_MALFORMED, "ambiguous");
    check_message(folder,
                  ": holds model.safetensors and model.safetensors.index.json, which does not "
                  "name it; open one file");
    // The same file as shard of the index.
    static const char same[] = MAP("\"z\":\"model.safetensors\"");
    write_file(index_name, same, sizeof same - 1);
    CHECK(moe_checkpoint_open(folder, 0, &checkpoint) == MOE_OK, "%s", moe_last_error());
    moe_checkpoint_close(checkpoint);
    // An index alone that is a broken link.
    remove_file(index_name);
    CHECK(symlink("absent", in_folder(index_name)) == 0, "symlink");
    CHECK(moe_checkpoint_open(folder, 0, &checkpoint) == MOE_E_IO, "broken link");
    remove_file(index_name);
    // One file in a folder, one file, none.
    const char *const single[] = {folder, in_folder("model.safetensors")};
    for (size_t i = 0; i < 2; i++) {
        CHECK(moe_checkpoint_open(single[i], 0, &checkpoint) == MOE_OK, "%s", moe_last_error());
        CHECK(moe_checkpoint_count(checkpoint) == 1, "one tensor");
        CHECK(strcmp(moe_checkpoint_name(checkpoint, 0), "z") == 0, "its name");
        CHECK(moe_checkpoint_tensor(checkpoint, "z", &v) == MOE_OK, "%s", moe_last_error());
        moe_checkpoint_close(checkpoint);
    }
    remove_file("model.safetensors");
    checkpoint = not_touched;
    CHECK(moe_checkpoint_open(folder, 0, &checkpoint) == MOE_E_NOT_FOUND, "nothing there");
    check_message(folder, ": holds neither model.safetensors.index.json nor model.safetensors");
    CHECK(moe_checkpoint_open(in_folder("absent"), 0, &checkpoint) == MOE_E_IO, "absent");
    CHECK(moe_checkpoint_open(in_folder("bad"), 0, &checkpoint) == MOE_E_MALFORMED, "bad");
    CHECK(moe_checkpoint_open(NULL, 0, &checkpoint) == MOE_E_ARGUMENT, "path NULL");
    CHECK(moe_checkpoint_open(folder, 0, NULL) == MOE_E_ARGUMENT, "out NULL");
    CHECK(moe_checkpoint_open(folder, 4, &checkpoint) == MOE_E_ARGUMENT, "unknown flag");
    CHECK(checkpoint == not_touched, "out was touched");
    moe_checkpoint_close(NULL);
    CHECK(moe_checkpoint_count(NULL) == 0 && moe_checkpoint_name(NULL, 0) == NULL, "NULL");
    remove_file("s1");
    remove_file("s2");
    remove_file("s4");
    remove_file("s5");
    remove_file("bad");
    (void)rmdir(in_folder("sub"));
}

// Files of the folder that the index does not name.
static void check_extra(void)
{
    static const struct {
        const char *name;
        int refused;
    } cases[] = {
        {"model-00003-of-00002.safetensors", 1},
        {"model-1-of-2.safetensors", 1},
        {"reference.safetensors", 0},
        {"other-00001-of-00002.safetensors", 0},
        {"model-of-00002.safetensors", 0},
        {"model-00003-of-.safetensors", 0},
        {"model-00003-of-00002.safetensors.part", 0},
    };
    static const char index[] = MAP("\"a\":\"model-00001-of-00002.safetensors\","
                                    "\"c\":\"model-00002-of-00002.safetensors\"");
    write_shard("model-00001-of-00002.safetensors", "{" T("a", "U8", "1", 0, 1) "}", 1);
    write_shard("model-00002-of-00002.safetensors", "{" T("c", "U8", "1", 0, 1) "}", 1);
    write_file("model.safetensors.index.json", index, sizeof index - 1);
    for (size_t i = 0; i < COUNT(cases); i++) {
        moe_checkpoint *checkpoint = not_touched;
        char expected[256];
        write_shard(cases[i].name, "{" T("x", "U8", "1", 0, 1) "}", 1);
        const moe_status status = moe_checkpoint_open(folder, 0, &checkpoint);
        CHECK(status == (cases[i].refused ? MOE_E_MALFORMED : MOE_OK), "%s: %s", cases[i].name,
              moe_last_error());
        if (status == MOE_OK) {
            moe_checkpoint_close(checkpoint);
        } else {
            (void)snprintf(expected, sizeof expected,
                           ": holds the shard \"%s\", which the index does not name",
                           cases[i].name);
            check_message(folder, expected);
        }
        remove_file(cases[i].name);
    }
    remove_file("model-00001-of-00002.safetensors");
    remove_file("model-00002-of-00002.safetensors");
    remove_file("model.safetensors.index.json");
}

#ifdef MOE_TEST_WRAP_ALLOC
static long fail_at; // allocations until one fails; 0: none fails

static bool fails(void)
{
    return fail_at > 0 && --fail_at == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}
void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(align, size);
}
char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

static void check_allocations(void)
{
    static const char index[] = MAP("\"a\":\"s1\"," REST);
    json_set_alloc_funcs(__wrap_malloc, free);
    write_shard(
        "s1",
        "{\"__metadata__\":{\"k\":\"v\"}," T("a", "U8", "1", 1, 2) "," T("b", "U8", "1", 0, 1) "}",
        2);
    write_shard("s2", "{" T("c", "U8", "2", 0, 2) "}", 2);
    write_file("model.safetensors.index.json", index, sizeof index - 1);
    for (uint32_t flags = 0; flags < 2; flags++) {
        moe_status status = MOE_E_NO_MEMORY;
        long n = 0;
        while (status != MOE_OK && n < 1000) {
            moe_checkpoint *checkpoint = not_touched;
            fail_at = ++n;
            status = moe_checkpoint_open(folder, flags, &checkpoint);
            const bool reached = fail_at == 0;
            fail_at = 0;
            if (status == MOE_OK) {
                CHECK(!reached, "allocation %ld failed and the open did not", n);
                moe_checkpoint_close(checkpoint);
            } else {
                CHECK(status == MOE_E_NO_MEMORY, "allocation %ld: %s", n, moe_last_error());
                CHECK(checkpoint == not_touched, "allocation %ld: out was touched", n);
            }
        }
        CHECK(n > 20, "only %ld allocations were made", n);
    }
    remove_file("s1");
    remove_file("s2");
    remove_file("model.safetensors.index.json");
}
#endif

int main(void)
{
    folder_make();
    check_index();
    check_extra();
#ifdef MOE_TEST_WRAP_ALLOC
    check_allocations();
#endif
    folder_remove();
    return test_summary();
}
