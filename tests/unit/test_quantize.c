// SPDX-License-Identifier: Apache-2.0
// Every quantiser against the independent statement of tests/float64, bit for bit: codes, scales,
// what is packed where, and what is not touched; the same buffers on 1, 2 and 7 threads, from the
// portable row and from the machine's.
#include <math.h>
#include <stdbool.h>

#include "checkmoe/quantize_case.h"
#include "test.h"

static struct {
    const char *isa;
    int threads;
    moe_context *ctx;
} contexts[] = {
    {"ref", 1, NULL}, {"ref", 2, NULL}, {"ref", 7, NULL}, {"avx2", 1, NULL}, {"avx2", 7, NULL}};
#define NUM_CONTEXTS (sizeof contexts / sizeof contexts[0])

static moec_rng rng = {0x9E3779B97F4A7C15u};

static int random_below(int n)
{
    return (int)moec_below(&rng, n);
}

// Builds the problem and runs it in every context.
static void run_problem(const moec_quantize_problem *p)
{
    moec_quantize_case c;
    if (CHECK(moec_quantize_build(&c, p, &rng), "%s: memory is short", c.text)) {
        bool good = true;
        for (size_t i = 0; i < NUM_CONTEXTS && good; i++) {
            moec_quantize_output have;
            const moe_status status = moec_quantize_run(contexts[i].ctx, &c, &have);
            const char *wrong = status == MOE_OK ? moec_quantize_differs(&have, &c.want) : NULL;
            good = CHECK(status == MOE_OK, "%s: %s", c.text, moe_last_error()) &&
                   CHECK(wrong == NULL, "%s: %s differ (%s, %d threads)", c.text, wrong,
                         contexts[i].isa, contexts[i].threads);
            moec_quantize_output_free(&have);
        }
    }
    moec_quantize_free(&c);
}

static void test_spec(const moei_quant_info *info, moe_dtype elem, moe_scale_type type)
{
    static const int64_t ks[] = {1, 5, 31, 33, 64, 127, 130, 257, 600, 1100};
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    const bool block = info->grain == MOEI_GRAIN_BLOCK;
    for (int i = 0; i < 12; i++) {
        moec_quantize_problem p = {.quant = {.spec = info->spec,
                                             .elem = elem,
                                             .group = info->group,
                                             .scale_type = type,
                                             .scale_layout = MOE_SCALE_LAYOUT_ROW},
                                   .batches = 1,
                                   .given = moec_quantize_draw_given(&rng)};
        p.x_dtype = dtypes[i % 3];
        p.k = ks[random_below(10)];
        p.rows = block ? 100 + random_below(100) : random_below(6);
        p.bytes = moe_dtype_bits(elem) < 8 && p.k % 8 != 0 ? true : random_below(2) != 0;
        p.padded = random_below(2) != 0;
        p.batched = random_below(2) != 0;
        p.tame = random_below(3) == 0;
        p.fill = MOEC_QUANTIZE_MIXED;
        p.at_end = random_below(2) != 0;
        if (info->group > 0 && i % 2 != 0) {
            p.quant.scale_layout = MOE_SCALE_LAYOUT_COLUMN;
        }
        if (info->free_group && i % 4 == 3) {
            static const int32_t groups[] = {2, 8, 24, 32, 64, 520, 1024};
            p.quant.group = groups[random_below(7)];
        }
        if (info->scale == MOEI_SCALE_TOKEN && random_below(2)) {
            p.quant.amax_bound = 0.75f;
        }
        if (p.batched) {
            p.batches = 1 + random_below(4);
            p.with_counts = random_below(4) > 0;
            moec_quantize_draw_counts(&p, &rng);
        }
        run_problem(&p);
    }
}

static void test_specs(void)
{
    const moei_quant_info *info;
    for (size_t i = 0; (info = moei_quant_at(i)) != NULL; i++) {
        for (moe_dtype elem = 1; elem < 32; elem++) {
            for (moe_scale_type type = 1; type < 6 && (info->elems & (1u << elem)) != 0; type++) {
                if ((info->scale_types & (1u << type)) != 0) {
                    test_spec(info, elem, type);
                }
            }
        }
    }
}

// Problems large enough to be split over threads.
static void test_threads(void)
{
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_TENSOR,      MOE_QUANT_FP8_TOKEN,
                                           MOE_QUANT_FP8_GROUP_RECIP, MOE_QUANT_FP8_BLOCK_INVERSE,
                                           MOE_QUANT_MX_CEIL,         MOE_QUANT_NVFP4_INVERSE,
                                           MOE_QUANT_I16B32};
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        moec_quantize_problem p = {.quant = {.spec = specs[i]},
                                   .x_dtype = MOE_BF16,
                                   .batches = 1,
                                   .rows = 300,
                                   .k = 520,
                                   .fill = MOEC_QUANTIZE_MIXED,
                                   .given = 1.0f};
        moei_quant_resolve(&p.quant);
        run_problem(&p);
        p.batched = true;
        p.with_counts = true;
        p.batches = 3;
        p.counts[0] = 300;
        p.counts[1] = 0;
        p.counts[2] = 131;
        run_problem(&p);
    }
}

// ---------------------------------------------------------------------------------------- silu-mul

// The grid of vLLM's masked SiLU-mul-quantise test, without its largest members.
static void test_silu(void)
{
    static const int64_t grid[][3] = {{1, 1, 128},  {1, 4, 128},  {2, 4, 256},   {1, 4, 384},
                                      {8, 16, 512}, {8, 16, 640}, {8, 16, 1152}, {8, 2, 7168},
                                      {8, 4, 4224}, {1, 4, 1280}, {8, 31, 768}};
    static const struct {
        moe_quant_spec spec;
        moe_dtype elem;
        int32_t round_steps;
    } forms[] = {{MOE_QUANT_FP8_GROUP_BF16STEPS, MOE_E4M3FN, 1},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_E4M3FN, 0},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_E4M3FN, 1},
                 {MOE_QUANT_FP8_GROUP_BF16STEPS, MOE_E4M3FNUZ, 1},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_E4M3FNUZ, 0}};
    static const moe_scale_type types[] = {MOE_SCALE_F32, MOE_SCALE_UE8M0_F32,
                                           MOE_SCALE_UE8M0_PACKED};
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        for (size_t i = 0; i < sizeof grid / sizeof grid[0]; i++) {
            if (forms[f].elem == MOE_E4M3FNUZ && grid[i][2] > 640) {
                continue;
            }
            moec_quantize_problem p = {.quant = {.spec = forms[f].spec,
                                                 .elem = forms[f].elem,
                                                 .group = 128,
                                                 .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
                                       .x_dtype = MOE_BF16,
                                       .batches = (int32_t)grid[i][0],
                                       .rows = grid[i][1],
                                       .k = grid[i][2],
                                       .batched = true,
                                       .with_counts = true,
                                       .silu = true,
                                       .round_steps = forms[f].round_steps != 0,
                                       .padded = i % 2 != 0};
            p.quant.scale_type = types[(i + f) % 3];
            moec_quantize_draw_counts(&p, &rng);
            run_problem(&p);
        }
    }
}

int main(void)
{
    for (size_t c = 0; c < NUM_CONTEXTS; c++) {
        moe_context_desc desc = moe_context_desc_default();
        desc.isa = contexts[c].isa;
        desc.num_threads = contexts[c].threads;
        if (!CHECK(moe_context_create(&desc, &contexts[c].ctx) == MOE_OK, "%s", moe_last_error())) {
            return test_summary();
        }
    }
    test_specs();
    test_threads();
    test_silu();
    for (size_t c = 0; c < NUM_CONTEXTS; c++) {
        moe_context_destroy(contexts[c].ctx);
    }
    return test_summary();
}
