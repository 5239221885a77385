// SPDX-License-Identifier: Apache-2.0
// Files that moe bench --json wrote.
#include <stdlib.h>

#include "bench.h"

#define MOST_BYTES ((size_t)64 << 20)

bool bench_results_open(const char *path, bench_results *out)
{
    size_t size = 0;
    *out = (bench_results){.text = cli_read_file(path, MOST_BYTES, &size)};
    if (out->text == NULL) {
        return false;
    }
    moe_status status = moei_json_parse(&out->doc, "moe bench", path, out->text, size, 0);
    if (status == MOE_OK) {
        status = moei_json_array(&out->doc, out->doc.root, "rows", &out->rows);
    }
    if (status != MOE_OK) {
        (void)cli_failed(status);
    }
    return status == MOE_OK;
}

void bench_results_close(bench_results *r)
{
    moei_json_free(&r->doc);
    free(r->text);
}
