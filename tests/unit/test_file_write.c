// SPDX-License-Identifier: Apache-2.0
// moe_file_write: what is read back is what was written, in bytes that do not depend on the order
// of the entries; nothing is left of a file that could not be written.
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "moe/io.h"
#include "st_image.h"
#include "test.h"

static const char out_name[] = "out.safetensors";

static size_t read_back(unsigned char *to, size_t room)
{
    FILE *f = fopen(in_folder(out_name), "rb");
    const size_t size = f == NULL ? 0 : fread(to, 1, room, f);
    if (f != NULL) {
        (void)fclose(f);
    }
    return size;
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

static void check_bytes(void)
{
    static const char expected[] =
        "{\"__metadata__\":{\"a\\\"b\":\"1\\u000a2\"},"
        "\"z\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]},"
        "\"n\":{\"dtype\":\"U8\",\"shape\":[0,3],\"data_offsets\":[9,9]},"
        "\"f\":{\"dtype\":\"F4\",\"shape\":[2,2],\"data_offsets\":[9,11]}}";
    static const float z[2] = {1.0f, -2.0f};
    static const unsigned char b = 7;
    static const unsigned char f4[2] = {0x21, 0x43};
    moe_file_entry entries[] = {
        {"f", moe_tensor_2d(f4, MOE_E2M1, 2, 2)},
        {"n", moe_tensor_2d(NULL, MOE_U8, 0, 3)},
        {"z", moe_tensor_1d(z, MOE_F32, 2)},
        {"b", moe_tensor_make(&b, MOE_U8, 0, NULL)},
    };
    static const moe_file_pair pair = {"a\"b", "1\n2"};
    for (int order = 0; order < 2; order++) {
        unsigned char bytes[1024];
        CHECK(moe_file_write(in_folder(out_name), entries, 4, &pair, 1) == MOE_OK, "%s",
              moe_last_error());
        const size_t size = read_back(bytes, sizeof bytes);
        const size_t text = sizeof expected - 1;
        const size_t padded = (text + 7) / 8 * 8;
        CHECK(size == 8 + padded + 11 && bytes[0] == (padded & 255) && bytes[1] == padded >> 8,
              "%zu bytes", size);
        CHECK(memcmp(bytes + 8, expected, text) == 0, "header %.*s", (int)text,
              (const char *)bytes + 8);
        CHECK(memcmp(bytes + 8 + padded, z, 8) == 0 && bytes[16 + padded] == 7 &&
                  memcmp(bytes + 17 + padded, f4, 2) == 0,
              "data");
        const moe_file_entry swap = entries[0];
        entries[0] = entries[3];
        entries[3] = swap;
    }
    struct stat info;
    const mode_t mask = umask(0);
    (void)umask(mask);
    CHECK(stat(in_folder(out_name), &info) == 0 && (info.st_mode & 0777) == (0666 & ~mask),
          "mode %o", (unsigned)info.st_mode);
    CHECK(files_in_folder() == 1, "%d files", files_in_folder());
    remove_file(out_name);
}

// Rows apart, columns apart, and a stride of 0.
static void check_strides(void)
{
    static const uint16_t wide[24] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    static const struct {
        int64_t shape[2], stride[2];
        uint16_t want[6];
    } cases[] = {
        {{2, 3}, {4, 1}, {0, 1, 2, 4, 5, 6}},
        {{3, 2}, {1, 4}, {0, 4, 1, 5, 2, 6}},
        {{2, 3}, {0, 1}, {0, 1, 2, 0, 1, 2}},
        {{2, 3}, {5, 2}, {0, 2, 4, 5, 7, 9}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        moe_file_entry e = {"t",
                            moe_tensor_2d(wide, MOE_U16, cases[i].shape[0], cases[i].shape[1])};
        moe_file *file = NULL;
        moe_tensor t;
        e.tensor.stride[0] = cases[i].stride[0];
        e.tensor.stride[1] = cases[i].stride[1];
        CHECK(moe_file_write(in_folder(out_name), &e, 1, NULL, 0) == MOE_OK, "%s",
              moe_last_error());
        CHECK(moe_file_open(in_folder(out_name), MOE_FILE_NO_MMAP, &file) == MOE_OK, "%s",
              moe_last_error());
        CHECK(moe_file_tensor(file, "t", &t) == MOE_OK && t.shape[0] == cases[i].shape[0] &&
                  memcmp(t.data, cases[i].want, sizeof cases[i].want) == 0,
              "case %zu", i);
        moe_file_close(file);
    }
    remove_file(out_name);
}

static void check_refusals(void)
{
    static const unsigned char bytes[64] = {0};
    const moe_tensor good = moe_tensor_1d(bytes, MOE_U8, 4);
    const moe_tensor int4 = moe_tensor_1d(bytes, MOE_INT4, 4);
    const moe_tensor half = moe_tensor_1d(bytes, MOE_E2M1, 3);
    const moe_tensor none = moe_tensor_1d(NULL, MOE_U8, 4);
    const moe_tensor huge = moe_tensor_2d(bytes, MOE_F64, INT64_MAX / 8, 16);
    moe_tensor negative = good;
    moe_tensor spread = moe_tensor_2d(bytes, MOE_E2M1, 2, 2);
    negative.shape[0] = -1;
    spread.stride[0] = 4;
    const struct {
        moe_file_entry entries[2];
        moe_status status;
        const char *text;
    } cases[] = {
        {{{"a", good}, {"a", good}}, MOE_E_ARGUMENT, "\"a\" occurs twice"},
        {{{"a", good}, {"__metadata__", good}}, MOE_E_ARGUMENT, "__metadata__"},
        {{{"a", good}, {NULL, good}}, MOE_E_ARGUMENT, "NULL"},
        {{{"a", good}, {"\xff", good}}, MOE_E_ARGUMENT, "not UTF-8"},
        {{{"a", good}, {"b", int4}}, MOE_E_DTYPE, "\"b\" is int4"},
        {{{"a", good}, {"b", half}}, MOE_E_SHAPE, "\"b\" has 12 bits"},
        {{{"a", good}, {"b", spread}}, MOE_E_SHAPE, "must be compact"},
        {{{"a", good}, {"b", none}}, MOE_E_ARGUMENT, "\"b\" has no data"},
        {{{"a", good}, {"b", huge}}, MOE_E_OVERFLOW, "\"b\" exceeds"},
        {{{"a", good}, {"b", negative}}, MOE_E_SHAPE, "size -1"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const moe_status status = moe_file_write(in_folder(out_name), cases[i].entries, 2, NULL, 0);
        CHECK(status == cases[i].status && strstr(moe_last_error(), cases[i].text) != NULL,
              "case %zu: %s", i, moe_last_error());
    }
    static const moe_file_pair twice[2] = {{"k", "1"}, {"k", "2"}};
    static const moe_file_pair null[1] = {{"k", NULL}};
    const moe_file_entry entry = {"a", good};
    CHECK(moe_file_write(in_folder(out_name), &entry, 1, twice, 2) == MOE_E_ARGUMENT, "twice");
    CHECK(moe_file_write(in_folder(out_name), &entry, 1, null, 1) == MOE_E_ARGUMENT, "NULL");
    CHECK(moe_file_write(NULL, &entry, 1, NULL, 0) == MOE_E_ARGUMENT, "NULL");
    CHECK(moe_file_write(in_folder(out_name), NULL, 1, NULL, 0) == MOE_E_ARGUMENT, "NULL");
    CHECK(moe_file_write(in_folder("absent/x"), &entry, 1, NULL, 0) == MOE_E_IO, "no folder");
    CHECK(files_in_folder() == 0, "%d files are left", files_in_folder());
    // A folder of the name: the new file is made, cannot take its place, and goes.
    CHECK(mkdir(in_folder(out_name), 0700) == 0, "mkdir");
    CHECK(moe_file_write(in_folder(out_name), &entry, 1, NULL, 0) == MOE_E_IO, "a folder");
    CHECK(files_in_folder() == 1, "%d files are left", files_in_folder());
    CHECK(rmdir(in_folder(out_name)) == 0, "rmdir");
}

// A file system that takes no more: the old file stays, whole, and nothing is beside it.
static void check_full(void)
{
    static unsigned char bytes[1 << 16];
    const moe_file_entry small = {"a", moe_tensor_1d(bytes, MOE_U8, 4)};
    const moe_file_entry large = {"a", moe_tensor_1d(bytes, MOE_U8, sizeof bytes)};
    struct rlimit old;
    struct rlimit few;
    moe_file *file = NULL;
    moe_tensor t;
    CHECK(moe_file_write(in_folder(out_name), &small, 1, NULL, 0) == MOE_OK, "%s",
          moe_last_error());
    (void)signal(SIGXFSZ, SIG_IGN);
    (void)getrlimit(RLIMIT_FSIZE, &old);
    few = old;
    few.rlim_cur = 8192;
    (void)setrlimit(RLIMIT_FSIZE, &few);
    const moe_status status = moe_file_write(in_folder(out_name), &large, 1, NULL, 0);
    (void)setrlimit(RLIMIT_FSIZE, &old);
    CHECK(status == MOE_E_IO && strstr(moe_last_error(), "File too large") != NULL, "%s",
          moe_last_error());
    CHECK(files_in_folder() == 1, "%d files are left", files_in_folder());
    CHECK(moe_file_open(in_folder(out_name), 0, &file) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_file_tensor(file, "a", &t) == MOE_OK && t.shape[0] == 4, "the old file");
    moe_file_close(file);
    remove_file(out_name);
}

int main(void)
{
    folder_make();
    check_bytes();
    check_strides();
    check_refusals();
    check_full();
    folder_remove();
    return test_summary();
}
