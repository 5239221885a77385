// SPDX-License-Identifier: Apache-2.0
// `moe check` on a backend with memory of its own: the walks pass on a toy device as it is, and
// notice every mistake that it is told to make.
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "checkmoe/checkmoe.h"
#include "unit/test.h"
#include "unit/toy_device.h"

static toy_device *toy;

static void move(moe_context *ctx)
{
    ctx->backend = &toy->backend;
}

// Runs rows; returns what was printed, to be freed.
static char *check(const char *kernel, moec_counts *counts)
{
    const moec_options o = {
        .kernel = kernel, .threads = 2, .program = "moe", .quick = true, .spoil = move};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    memset(counts, 0, sizeof *counts);
    if (out == NULL) {
        abort();
    }
    CHECK(moec_kernels_run(&o, out, counts) == 0, "%s: %s", kernel, moe_last_error());
    (void)fclose(out);
    return text;
}

static void test_sound(void)
{
    static const char *const rows[] = {
        "moek_route_*__ref",    "moek_place_*__ref", "moek_sort_*__ref",
        "moek_quantize_*__ref", "moek_glu_*__ref",   "moek_combine_*__ref",
        "*__ref_fma_b32",       "*__ref_fma_b128",   "*__ref_fma_i32"};
    moec_counts counts;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const unsigned long calls = toy->calls;
        char *text = check(rows[i], &counts);
        CHECK(counts.failed == 0 && counts.skipped == 0 && counts.passed > 100 &&
                  toy->calls > calls,
              "%s: %s", rows[i], text);
        free(text);
    }
    CHECK(toy->misuses == 0 && toy->live == 0, "%d misuses, %d pieces of memory left", toy->misuses,
          toy->live);
}

static void test_mistakes(void)
{
    static const struct {
        toy_mistake mistake;
        const char *kernel, *text;
    } cases[] = {
        {TOY_WRITES_BEFORE, "moek_sort_*__ref", "memory was written 1 bytes before output"},
        {TOY_WRITES_BEFORE, "*__ref_i32", "memory was written 1 bytes before output"},
        {TOY_WRITES_AFTER, "moek_glu_*__ref", "memory was written 0 bytes after the end of output"},
        {TOY_WRITES_AFTER, "moek_combine_*__ref", "after the end of output"},
        {TOY_WRITES_INPUT, "moek_combine_*__ref", "byte 0 of input 0 was written"},
        {TOY_WRITES_INPUT, "*__ref_i32", "was written"},
        {TOY_WRONG_BIT, "moek_route_*__ref", "bits differ from moek_route_"},
        {TOY_WRONG_BIT, "moek_glu_*__ref", "bits differ from moek_glu_"},
        {TOY_UNSTEADY, "moek_glu_*__ref", "two runs differ"},
        {TOY_UNSTEADY, "moek_combine_*__ref", "two runs differ"},
        {TOY_FAILS, "moek_quantize_*__ref", "device: a launch failed"},
        {TOY_FAILS, "moek_place_*__ref", "device: a launch failed"},
    };
    moec_counts counts;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        toy->mistake = cases[i].mistake;
        char *text = check(cases[i].kernel, &counts);
        CHECK(counts.failed > 0 && strstr(text, cases[i].text) != NULL,
              "mistake %d, %s: no \"%s\" in %s", (int)cases[i].mistake, cases[i].kernel,
              cases[i].text, text);
        free(text);
    }
    toy->mistake = TOY_NONE;
}

int main(void)
{
    moe_context *host = NULL;
    if (!CHECK(moe_context_create(NULL, &host) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    toy = toy_device_make(host->backend, (size_t)1 << 30);
    if (CHECK(toy != NULL, "no memory for a device")) {
        test_sound();
        test_mistakes();
        toy_device_free();
    }
    moe_context_destroy(host);
    return test_summary();
}
