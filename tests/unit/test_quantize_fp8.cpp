// SPDX-License-Identifier: Apache-2.0
// moei_gpu_quantize_fp8, which products call on rows that they read, beside quantize on the host:
// the same codes and scales.
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

static void compare(moe_quant_spec spec, moe_scale_type type)
{
    moei_gpu_quantize_args g = {};
    char text[256] = "";
    g.info = *moei_quant_get(spec);
    g.a.info = &g.info;
    g.a.quant.spec = spec;
    g.a.quant.elem = MOE_E4M3FN;
    g.a.quant.group = 128;
    g.a.quant.scale_type = type;
    g.a.rows = ROWS;
    g.a.k = K;
    g.a.batches = 1;
    g.a.x = (uint8_t *)x;
    g.a.x_dtype = MOE_F32;
    g.a.x_row_stride = sizeof x[0];
    g.a.q = (uint8_t *)codes[1];
    g.a.q_row_stride = K;
    g.a.scales = scales[1];
    g.a.scale_row_stride = K / 128;
    g.a.scale_k_stride = 1;
    CHECK(moei_gpu_is_fp8_group(&g.a), "%s is not taken", g.info.name);
    const moei_sim_body trial = {"trial", products_way, sizeof g, 32};
    CHECK(moei_sim_launch(&trial, {ROWS, 32, 0, false}, &g, 0, text, sizeof text) &&
              moei_sim_launch(&moei_sim_bodies[MOEI_GPU_quantize], {ROWS, 32, 0, false}, &g, 0,
                              text, sizeof text),
          "%s", text);
    for (int r = 0; r < ROWS; r++) {
        CHECK(memcmp(codes[0][r], codes[1][r], sizeof codes[0][r]) == 0 &&
                  memcmp(scales[0][r], scales[1][r], sizeof scales[0][r]) == 0,
              "%s, scales %d: row %d differs", g.info.name, (int)type, r);
    }
}

int main()
{
    fill();
    static const moe_scale_type types[] = {MOE_SCALE_F32, MOE_SCALE_UE8M0_F32};
    for (moe_scale_type type : types) {
        compare(MOE_QUANT_FP8_GROUP_DIV, type);
        compare(MOE_QUANT_FP8_GROUP_RECIP, type);
        compare(MOE_QUANT_FP8_GROUP_DEEPGEMM, type);
    }
    moei_gpu_quantize_args other = {};
    other.info = *moei_quant_get(MOE_QUANT_FP8_GROUP_BF16STEPS);
    other.a.info = &other.info;
    other.a.quant.elem = MOE_E4M3FN;
    other.a.quant.group = 128;
    other.a.x_dtype = MOE_F32;
    CHECK(!moei_gpu_is_fp8_group(&other.a), "a rule without code is taken");
    return test_summary();
}
