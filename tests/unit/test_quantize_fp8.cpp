// SPDX-License-Identifier: Apache-2.0
// moei_gpu_quantize_fp8, which products call on rows that they read, and moei_gpu_quantize_part, on
// rows that they have written, beside quantize on the host: the same codes and scales.
#include <stdlib.h>
#include <string.h>

#include "backends/gpu/quantize.cuh"
#include "sim/sim.h"
#include "unit/test.h"

extern "C" const moei_quant_info *moei_quant_get(moe_quant_spec spec);

moe_status moei_gpu_launch(const moei_exec *, moei_gpu_body, moei_gpu_grid, const void *)
{
    return MOE_E_DEVICE; // nothing here calls a driver
}

uint32_t moei_gpu_cluster_blocks(const moei_exec *)
{
    return 1;
}

// A block is a warp, and has a row.
enum { ROWS = 600, K = 256 };
static float x[ROWS][K];
static uint32_t codes[2][ROWS][K / 4];
static float scales[2][ROWS][K / 128];
static uint32_t state = 1;

static uint32_t draw()
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void products_way(const void *args)
{
    const uint32_t r = dev_block();
    const uint32_t k = dev_lane() * 8;
    float v[8];
    memcpy(v, &x[r][k], sizeof v);
    const moei_scale s =
        moei_gpu_quantize_fp8((const moei_gpu_quantize_args *)args, v, &codes[0][r][k / 4]);
    if (k % 128 == 0) {
        scales[0][r][k / 128] = s.value;
    }
}

// A block is a warp, and has 128 columns of two rows, the last one of a single row: the last row of
// all is not asked for.
static void parts_way(const void *args)
{
    const int32_t r = (int32_t)(dev_block() / 2 * 2);
    moei_gpu_quantize_part((const moei_gpu_quantize_args *)args, r, ROWS - 1,
                           dev_block() % 2 * 128);
}

// Ordinary rows, then those of one magnitude each: zeros of both signs, subnormal, tiny, up to
// infinite, and rows with NaN.
static void fill()
{
    for (int r = 0; r < ROWS; r++) {
        const int e = r % 2 == 0 ? 127 : (int)(draw() % 256);
        for (int k = 0; k < K; k++) {
            const uint32_t sign = draw() % 2 << 31;
            const uint32_t below = draw() % 24; // of the row's exponent
            const uint32_t own = e > (int)below ? (uint32_t)e - below : 0;
            uint32_t bits = sign | own << 23 | (draw() & 0x7FFFFF);
            bits = draw() % 16 == 0 ? sign : bits;
            if (own == 255 && draw() % 2 == 0) {
                bits &= 0xFF800000u;
            }
            x[r][k] = moei_f32_from_bits(r % 50 == 49 ? sign : bits);
        }
        if (r % 20 == 19) { // the groups are 448 of their steps
            x[r][draw() % 128] = 448.0f;
        }
    }
}

static moei_gpu_quantize_args arguments(moe_quant_spec spec, moe_scale_type type, int32_t group,
                                        int to)
{
    moei_gpu_quantize_args g = {};
    g.info = *moei_quant_get(spec);
    g.a.quant.spec = spec;
    g.a.quant.elem = MOE_E4M3FN;
    g.a.quant.group = group;
    g.a.quant.scale_type = type;
    g.a.rows = ROWS;
    g.a.k = K;
    g.a.batches = 1;
    g.a.x = (uint8_t *)x;
    g.a.x_dtype = MOE_F32;
    g.a.x_row_stride = sizeof x[0];
    g.a.q = (uint8_t *)codes[to];
    g.a.q_row_stride = K;
    g.a.scales = scales[to];
    g.a.scale_row_stride = K / group;
    g.a.scale_k_stride = 1;
    return g;
}

// What `way` writes by `blocks` warps, and quantize, of the first `rows` rows; poison beyond.
static void compare(const char *name, void (*way)(const void *), uint32_t blocks, int rows,
                    moe_quant_spec spec, moe_scale_type type, int32_t group)
{
    char text[256] = "";
    uint8_t poison[K];
    memset(poison, 0xA7, sizeof poison);
    memset(codes, 0xA7, sizeof codes);
    memset(scales, 0xA7, sizeof scales);
    moei_gpu_quantize_args own = arguments(spec, type, group, 0);
    moei_gpu_quantize_args all = arguments(spec, type, group, 1);
    own.a.info = &own.info;
    all.a.info = &all.info;
    CHECK(way == products_way ? moei_gpu_is_fp8_group(&own.a) : moei_gpu_quantizes_parts(&own.a),
          "%s, %s is not taken", name, own.info.name);
    const moei_sim_body trial = {"trial", way, sizeof own, 32};
    CHECK(moei_sim_launch(&trial, {blocks, 32, 0, false}, &own, 0, text, sizeof text) &&
              moei_sim_launch(&moei_sim_bodies[MOEI_GPU_quantize], {ROWS, 32, 0, false}, &all, 0,
                              text, sizeof text),
          "%s", text);
    for (int r = 0; r < ROWS; r++) {
        const void *want = r < rows ? (const void *)codes[1][r] : poison;
        const void *want_scales = r < rows ? (const void *)scales[1][r] : poison;
        CHECK(memcmp(codes[0][r], want, sizeof codes[0][r]) == 0 &&
                  memcmp(scales[0][r], want_scales, sizeof scales[0][r]) == 0,
              "%s, %s, scales %d: row %d differs", name, own.info.name, (int)type, r);
    }
}

static void refuse_parts(const char *what, const moei_gpu_quantize_args *g)
{
    moei_gpu_quantize_args own = *g;
    own.a.info = &own.info;
    CHECK(!moei_gpu_quantizes_parts(&own.a), "parts: %s is taken", what);
}

int main()
{
    fill();
    static const moe_scale_type types[] = {MOE_SCALE_F32, MOE_SCALE_UE8M0_F32};
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_GROUP_DIV, MOE_QUANT_FP8_GROUP_RECIP,
                                           MOE_QUANT_FP8_GROUP_DEEPGEMM,
                                           MOE_QUANT_FP8_GROUP_BF16STEPS};
    for (moe_scale_type type : types) {
        for (moe_quant_spec spec : specs) {
            if (spec != MOE_QUANT_FP8_GROUP_BF16STEPS) {
                compare("rows", products_way, ROWS, ROWS, spec, type, 128);
            }
            compare("parts", parts_way, ROWS, ROWS - 1, spec, type, 128);
        }
    }
    compare("parts", parts_way, ROWS, ROWS - 1, MOE_QUANT_MX_NO_EMAX, MOE_SCALE_E8M0, 32);
    moei_gpu_quantize_args g = arguments(MOE_QUANT_FP8_GROUP_DIV, MOE_SCALE_F32, 128, 0);
    g.a.x_dtype = MOE_BF16;
    refuse_parts("bf16", &g);
    g.a.x_dtype = MOE_F32;
    g.a.quant.group = 256;
    refuse_parts("a group of 256", &g);
    g.a.quant.group = 128;
    g.a.quant.elem = MOE_E5M2;
    refuse_parts("e5m2", &g);
    g = arguments(MOE_QUANT_FP8_TOKEN, MOE_SCALE_F32, K, 0);
    refuse_parts("a scale per row", &g);
    moei_gpu_quantize_args other = {};
    other.info = *moei_quant_get(MOE_QUANT_FP8_GROUP_BF16STEPS);
    other.a.info = &other.info;
    other.a.quant.elem = MOE_E4M3FN;
    other.a.quant.group = 128;
    other.a.x_dtype = MOE_F32;
    CHECK(!moei_gpu_is_fp8_group(&other.a), "a rule without code is taken");
    return test_summary();
}
