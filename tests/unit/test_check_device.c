// SPDX-License-Identifier: Apache-2.0
// `moe check` on a backend with memory of its own, far_device.h's: the walks pass on it as it is,
// and notice every mistake that it is told to make.
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "checkmoe/checkmoe.h"
#include "unit/far_device.h"
#include "unit/packed_rows.h"
#include "unit/test.h"

static far_device *far;

// ---- mistakes ----------------------------------------------------------------------------------

typedef enum mistake {
    NO_MISTAKE,
    WRITES_BEFORE, // a byte before what sort and the second product write
    WRITES_AFTER,  // a byte after what glu and combine write
    WRITES_INPUT,  // a byte of the input of combine and of a product
    WRONG_BIT,     // the lowest bit of the first output of route, glu and combine
    UNSTEADY,      // the same, in every other run
    FAILS          // every op
} mistake;

static mistake told;

static void touch(const void *at)
{
    *(unsigned char *)(uintptr_t)at ^= 1;
}

static bool wrong_now(void)
{
    return told == WRONG_BIT || (told == UNSTEADY && far->calls % 2 == 1);
}

static void spoil_route(const moek_route_args *a)
{
    if (wrong_now() && a->tokens > 0) {
        touch(a->weights);
    }
}

static void spoil_sort(const moek_sort_args *a)
{
    if (told == WRITES_BEFORE) {
        touch((const unsigned char *)a->slots - 1);
    }
}

static void spoil_ggemm(const moek_ggemm_args *a)
{
    if (told == WRITES_BEFORE) {
        touch(a->y - 1);
    } else if (told == WRITES_INPUT) {
        touch(a->x.data);
    }
}

static void spoil_glu(const moek_glu_args *a)
{
    if (told == WRITES_AFTER) {
        touch(a->y + a->batches * a->rows * a->y_row_stride);
    } else if (wrong_now() && a->rows > 0) {
        touch(a->y);
    }
}

static void spoil_combine(const moek_combine_args *a)
{
    if (a->tokens == 0) {
        return;
    }
    if (told == WRITES_AFTER) {
        touch(a->out + a->tokens * a->out_token_stride);
    } else if (told == WRITES_INPUT && a->slots != NULL) {
        touch(a->slots);
    } else if (wrong_now()) {
        touch(a->out);
    }
}

static moe_status spoil(moei_op op, const void *args)
{
    MOE_REQUIRE(told != FAILS, MOE_E_DEVICE, "device: a launch failed");
    switch (op) {
    case MOEI_OP_ROUTE:
        spoil_route(args);
        break;
    case MOEI_OP_SORT:
        spoil_sort(args);
        break;
    case MOEI_OP_GGEMM:
        spoil_ggemm(args);
        break;
    case MOEI_OP_GLU:
        spoil_glu(args);
        break;
    case MOEI_OP_COMBINE:
        spoil_combine(args);
        break;
    default:
        break;
    }
    return MOE_OK;
}

// ---- checks ------------------------------------------------------------------------------------

static void move(moe_context *ctx)
{
    ctx->backend = &far->backend;
}

// Runs rows and layer cases; returns what was printed, to be freed.
static char *check(const char *kernel, void (*spoil_ctx)(moe_context *), moec_counts *counts)
{
    const moec_options o = {
        .kernel = kernel, .threads = 2, .program = "moe", .quick = true, .spoil = spoil_ctx};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    memset(counts, 0, sizeof *counts);
    if (out == NULL) {
        abort();
    }
    CHECK(moec_kernels_run(&o, out, counts) == 0 && moec_layer_run(&o, out, counts) == 0, "%s: %s",
          kernel, moe_last_error());
    (void)fclose(out);
    return text;
}

static void test_sound(void)
{
    static const char *const rows[] = {"moek_route_*__ref", "moek_place_*__ref",
                                       "moek_sort_*__ref",  "moek_quantize_*__ref",
                                       "moek_glu_*__ref",   "moek_combine_*__ref",
                                       "*__ref_fma_b32",    "*__ref_fma_b128",
                                       "*__ref_fma_i32",    "layer-*6"};
    moec_counts counts;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const unsigned long calls = far->calls;
        char *text = check(rows[i], move, &counts);
        CHECK(counts.failed == 0 && counts.skipped == 0 && counts.passed > 100 &&
                  far->calls > calls,
              "%s: %s", rows[i], text);
        free(text);
    }
    CHECK(far->live == 0, "%zu bytes of the device are lost", far->live);
}

static void test_mistakes(void)
{
    static const struct {
        mistake mistake;
        const char *kernel, *text;
    } cases[] = {
        {WRITES_BEFORE, "moek_sort_*__ref", "memory was written 1 bytes before output"},
        {WRITES_BEFORE, "*__ref_i32", "memory was written 1 bytes before output"},
        {WRITES_AFTER, "moek_glu_*__ref", "memory was written 0 bytes after the end of output"},
        {WRITES_AFTER, "moek_combine_*__ref", "after the end of output"},
        {WRITES_INPUT, "moek_combine_*__ref", "byte 0 of input 0 was written"},
        {WRITES_INPUT, "*__ref_i32", "was written"},
        {WRONG_BIT, "moek_route_*__ref", "bits differ from moek_route_"},
        {WRONG_BIT, "moek_glu_*__ref", "bits differ from moek_glu_"},
        {UNSTEADY, "moek_glu_*__ref", "two runs differ"},
        {UNSTEADY, "moek_combine_*__ref", "two runs differ"},
        {WRITES_AFTER, "layer-1?", "layer-1"},
        {WRITES_INPUT, "layer-1?", "of input 0 was written"},
        {WRONG_BIT, "layer-1?", "the CPU gives another result in the same class"},
        {UNSTEADY, "layer-1?", "two runs differ"},
        {FAILS, "layer-1?", "device: a launch failed"},
        {FAILS, "moek_quantize_*__ref", "device: a launch failed"},
        {FAILS, "moek_place_*__ref", "device: a launch failed"},
    };
    moec_counts counts;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        told = cases[i].mistake;
        char *text = check(cases[i].kernel, move, &counts);
        CHECK(counts.failed > 0 && strstr(text, cases[i].text) != NULL,
              "mistake %d, %s: no \"%s\" in %s", (int)cases[i].mistake, cases[i].kernel,
              cases[i].text, text);
        free(text);
    }
    told = NO_MISTAKE;
}

// Rows of a packed layout: on host memory, and on the device. Where pack, unpack or the kernel is
// wrong, it shows.
static packed_rows *rows;

static void move_to_rows(moe_context *ctx)
{
    packed_rows_move(ctx, &rows->backend);
}

static void move_to_device(moe_context *ctx)
{
    packed_rows_move(ctx, &far->backend);
}

static void wrong_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    rows->backend.unpack(kernel, from, to);
    if (to->scales != NULL) {
        *(uint8_t *)(uintptr_t)to->scales ^= 1;
    }
}

static void test_packed(const moei_backend *cpu)
{
    static const struct {
        const char *kernel;
        void (*move)(moe_context *);
    } cases[] = {{"*__ref_fma_b32_packed", move_to_rows},
                 {"*__ref_fma_b128_packed", move_to_device},
                 {"*__ref_fma_i32_packed", move_to_device}};
    moec_counts counts;
    rows = packed_rows_make(cpu);
    far_device_free();
    far = far_device_make(&rows->backend, (size_t)1 << 30);
    if (!CHECK(far != NULL, "no memory for a device")) {
        return;
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const unsigned long before = rows->packed;
        char *text = check(cases[i].kernel, cases[i].move, &counts);
        CHECK(counts.failed == 0 && counts.skipped == 0 && counts.passed > 100 &&
                  rows->packed > before + 20,
              "%s: %lu experts packed: %s", cases[i].kernel, rows->packed - before, text);
        free(text);
    }
    far->backend.unpack = wrong_unpack;
    char *text = check(cases[1].kernel, move_to_device, &counts);
    CHECK(counts.failed > 0 && strstr(text, "pack and unpack change scales") != NULL, "%s", text);
    free(text);
    far->backend.unpack = rows->backend.unpack;
    rows->refuse_after = 20;
    text = check(cases[2].kernel, move_to_device, &counts);
    CHECK(counts.failed > 0 && strstr(text, "packed: told to refuse") != NULL, "%s", text);
    free(text);
    rows->refuse_after = -1;
}

int main(void)
{
    moe_context *host = NULL;
    if (!CHECK(moe_context_create(NULL, &host) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    far = far_device_make(host->backend, (size_t)1 << 30);
    if (CHECK(far != NULL, "no address space for a device")) {
        far->after = spoil;
        test_sound();
        test_mistakes();
        test_packed(host->backend);
        far_device_free();
    }
    moe_context_destroy(host);
    return test_summary();
}
