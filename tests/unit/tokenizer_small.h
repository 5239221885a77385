// SPDX-License-Identifier: Apache-2.0
// A small tokenizer.json, and changes to it by path.
#ifndef MOE_TESTS_UNIT_TOKENIZER_SMALL_H
#define MOE_TESTS_UNIT_TOKENIZER_SMALL_H

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "unit/test.h"

static const char small[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    "{\"id\":6,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true},"
    "{\"id\":7,\"content\":\"<y>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":true,\"special\":false}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s\"},\"behavior\":\"Isolated\",\"invert\":"
    "false},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]"
    "},"
    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":null,\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"ignore_merges\":false,"
    "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5},"
    "\"merges\":[[\"b\",\"c\"],[\"a\",\"b\"],[\"ab\",\"c\"]]}}";

static inline json_t *small_json(void)
{
    return json_loads(small, 0, NULL);
}

// Sets the value at a path such as "model.vocab.a"; NULL removes it.
static inline void set_path(json_t *root, const char *path, json_t *value)
{
    char key[64];
    json_t *at = root;
    for (const char *dot = strchr(path, '.'); dot != NULL; dot = strchr(path, '.')) {
        (void)snprintf(key, sizeof key, "%.*s", (int)(dot - path), path);
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
        path = dot + 1;
    }
    const int rc = value == NULL       ? json_object_del(at, path)
                   : json_is_array(at) ? json_array_set_new(at, (size_t)atoi(path), value)
                                       : json_object_set_new(at, path, value);
    CHECK(rc == 0, "no such path: %s", path);
}

#endif
