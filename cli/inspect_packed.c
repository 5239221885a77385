// SPDX-License-Identifier: Apache-2.0
// moe inspect of a packed file: what it was made from, its layers, and whether they are whole.
#include <inttypes.h>
#include <string.h>

#include "cli.h"

bool cli_is_packed(const char *path)
{
    char magic[sizeof MOE_PACKED_MAGIC - 1] = "";
    FILE *file = fopen(path, "rb");
    const bool is = file != NULL && fread(magic, 1, sizeof magic, file) == sizeof magic &&
                    memcmp(magic, MOE_PACKED_MAGIC, sizeof magic) == 0;
    if (file != NULL) {
        (void)fclose(file);
    }
    return is;
}

static void print_sources(const moe_packed *file, bool json)
{
    for (size_t i = 0; i < moe_packed_sources(file); i++) {
        moe_packed_source s;
        (void)moe_packed_source_at(file, i, &s);
        if (json) {
            (void)printf("%s{\"name\": ", i > 0 ? ", " : "");
            cli_json_string(s.name);
            (void)printf(", \"bytes\": %" PRIu64 ", \"identity\": \"%016" PRIx64 "\"}", s.bytes,
                         s.identity);
        } else {
            (void)printf("made from   ");
            cli_plain_string(s.name[0] != '\0' ? s.name : "a single file");
            (void)printf(", %" PRIu64 " bytes, identity %016" PRIx64 "\n", s.bytes, s.identity);
        }
    }
}

// A layout is printed where it is another one than that of the layer before.
static bool print_part(const moe_packed *file, size_t i, const char **before, bool json)
{
    moe_packed_part part;
    char text[32];
    (void)moe_packed_part_at(file, i, &part);
    const bool whole = moe_packed_verify(file, part.layer) == MOE_OK;
    if (json) {
        (void)printf("%s{\"layer\": %" PRId32 ", \"bytes\": %zu, \"checksum\": \"%016" PRIx64
                     "\", \"whole\": %s, \"layout\": ",
                     i > 0 ? ", " : "", part.layer, part.bytes, part.checksum,
                     whole ? "true" : "false");
        cli_json_string(part.layout);
        (void)printf("}");
        return whole;
    }
    (void)printf("layer %-5" PRId32 " %s, checksum %016" PRIx64 " %s\n", part.layer,
                 cli_size_text(part.bytes, text), part.checksum, whole ? "ok" : "WRONG");
    if (*before == NULL || strcmp(*before, part.layout) != 0) {
        (void)printf("            ");
        cli_plain_string(part.layout);
        (void)printf("\n");
    }
    *before = part.layout;
    return whole;
}

int cli_inspect_packed(const char *path, uint32_t flags, bool json)
{
    moe_packed *file = NULL;
    const char *layout = NULL;
    size_t damaged = 0;
    const moe_status status = moe_packed_open(path, NULL, flags, &file);
    if (status != MOE_OK) {
        return cli_failed(status);
    }
    (void)printf("%s", json ? "{\"packed\": true, \"sources\": [" : "");
    print_sources(file, json);
    (void)printf("%s", json ? "], \"layers\": [" : "");
    for (size_t i = 0; i < moe_packed_count(file); i++) {
        damaged += !print_part(file, i, &layout, json);
    }
    if (json) {
        (void)printf("], \"damaged\": %zu}\n", damaged);
    } else {
        (void)printf("layers      %zu, damaged %zu\n", moe_packed_count(file), damaged);
    }
    moe_packed_close(file);
    return damaged > 0 ? CLI_FAILED : CLI_OK;
}
