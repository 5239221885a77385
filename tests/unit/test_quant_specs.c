// SPDX-License-Identifier: Apache-2.0
// The table of quantisers as data: names, defaults, refusals, shapes of scales; a row count that
// only the device knows; over every argument, the two functions on which bf16 steps rest; and the
// division by one number of many.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "checkmoe/checkmoe.h"
#include "float64/quantize.h"
#include "moe/quantize.h"
#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "ops/quantize.h"
#include "quant/specs.h"
#include "test.h"

static moe_context *ctx;

static void test_table(void)
{
    const moei_quant_info *info;
    for (size_t i = 0; (info = moei_quant_at(i)) != NULL; i++) {
        CHECK(moe_quant_from_name(info->name) == info->spec, "%s is not found by name", info->name);
        CHECK(strcmp(moe_quant_name(info->spec), info->name) == 0, "%s: name", info->name);
        CHECK((info->elems & (1u << info->elem)) != 0, "%s: default element", info->name);
        CHECK((info->scale_types & (1u << info->scale_type)) != 0, "%s: default scale", info->name);
        CHECK(moei_quant_get(info->spec) == info, "%s: two rows of one number", info->name);
        moe_quant_desc d = {.spec = info->spec};
        CHECK(moei_quant_check(&d, "test") == MOE_OK, "%s: %s", info->name, moe_last_error());
        moei_quant_resolve(&d);
        moe_quant_desc twice = d;
        moei_quant_resolve(&twice);
        CHECK(d.elem == twice.elem && d.group == twice.group && d.scale_type == twice.scale_type &&
                  d.scale_layout == twice.scale_layout,
              "%s: resolving twice", info->name);
        CHECK(moei_quant_check(&d, "test") == MOE_OK, "%s: %s", info->name, moe_last_error());
    }
    CHECK(moe_quant_from_name("none") == MOE_QUANT_NONE, "none");
    CHECK(moe_quant_from_name("fp9") == MOE_QUANT_NONE, "fp9");
    CHECK(strcmp(moe_quant_name(999), "unknown quantiser") == 0, "999");
    CHECK(moe_fp8_quant_max(MOE_E4M3FN) == 448.0f && moe_fp8_quant_max(MOE_E4M3FNUZ) == 224.0f &&
              moe_fp8_quant_max(MOE_E5M2) == 57344.0f && moe_fp8_quant_max(MOE_F32) == 0.0f,
          "FP8 limits");
}

static void refused(const char *name, moe_status have, moe_status want)
{
    CHECK(have == want, "%s: %s, expected %s (%s)", name, moe_status_name(have),
          moe_status_name(want), moe_last_error());
}

static void test_refusals(void)
{
    static float x[4 * 64];
    static uint8_t q[4 * 64];
    static float s[64];
    static int32_t counts[2] = {1, 2};
    moe_quantize_args good = moe_quantize_args_default();
    good.quant.spec = MOE_QUANT_FP8_GROUP_RECIP;
    good.quant.group = 32;
    good.x = moe_tensor_2d(x, MOE_F32, 4, 64);
    good.q = moe_tensor_2d(q, MOE_E4M3FN, 4, 64);
    good.scales = moe_tensor_2d(s, MOE_F32, 4, 2);
    refused("good", moe_quantize(ctx, &good, NULL), MOE_OK);
#define REFUSED(status, change)                                                                    \
    do {                                                                                           \
        moe_quantize_args a = good;                                                                \
        change;                                                                                    \
        refused(#change, moe_quantize(ctx, &a, NULL), status);                                     \
    } while (0)
    refused("NULL", moe_quantize(ctx, NULL, NULL), MOE_E_ARGUMENT);
    REFUSED(MOE_E_VERSION, a.struct_size--);
    REFUSED(MOE_E_UNSET, a.quant.spec = MOE_QUANT_NONE);
    REFUSED(MOE_E_ARGUMENT, a.quant.spec = 999);
    REFUSED(MOE_E_UNSUPPORTED, a.quant.elem = MOE_E2M1);
    REFUSED(MOE_E_UNSUPPORTED, a.quant.elem = 77);
    REFUSED(MOE_E_ARGUMENT, a.quant.group = -2);
    REFUSED(MOE_E_UNSUPPORTED, a.quant.scale_type = MOE_SCALE_E4M3FN);
    REFUSED(MOE_E_UNSUPPORTED, a.quant.amax_bound = 1.0f);
    REFUSED(MOE_E_ARGUMENT, a.quant.scale_layout = 3);
    REFUSED(MOE_E_UNSUPPORTED, (a.quant.spec = MOE_QUANT_MX_CEIL, a.quant.group = 16));
    REFUSED(MOE_E_UNSUPPORTED, (a.quant.spec = MOE_QUANT_I8B128, a.quant.group = 32));
    REFUSED(MOE_E_UNSUPPORTED, a.quant.spec = MOE_QUANT_FP8_TOKEN);
    REFUSED(MOE_E_DTYPE, a.x.dtype = MOE_I8);
    REFUSED(MOE_E_DTYPE, a.q.dtype = MOE_E5M2);
    REFUSED(MOE_E_DTYPE, a.scales.dtype = MOE_BF16);
    REFUSED(MOE_E_SHAPE, a.q.shape[1] = 63);
    REFUSED(MOE_E_SHAPE, a.q.stride[0] = 63);
    REFUSED(MOE_E_SHAPE, a.scales.shape[1] = 3);
    REFUSED(MOE_E_SHAPE, a.quant.scale_layout = MOE_SCALE_LAYOUT_COLUMN);
    REFUSED(MOE_E_OVERLAP, a.q.data = x);
    REFUSED(MOE_E_OVERLAP, a.scales.data = x);
    REFUSED(MOE_E_ARGUMENT, a.scales.data = NULL);
    REFUSED(MOE_E_ARGUMENT, a.global_scale = moe_tensor_1d(s + 32, MOE_F32, 1));
    REFUSED(MOE_E_ARGUMENT, a.counts = moe_tensor_1d(counts, MOE_I32, 2));
    good.x = moe_tensor_3d(x, MOE_F32, 2, 2, 64);
    good.q = moe_tensor_3d(q, MOE_E4M3FN, 2, 2, 64);
    good.scales = moe_tensor_3d(s, MOE_F32, 2, 2, 2);
    good.counts = moe_tensor_1d(counts, MOE_I32, 2);
    refused("good batched", moe_quantize(ctx, &good, NULL), MOE_OK);
    REFUSED(MOE_E_SHAPE, a.counts.shape[0] = 1);
    REFUSED(MOE_E_ALIGNMENT, a.counts.byte_offset = 2);
    counts[1] = 3;
    refused("counts[1] = 3", moe_quantize(ctx, &good, NULL), MOE_E_VALUE);
#undef REFUSED
    moe_silu_mul_quantize_args silu = moe_silu_mul_quantize_args_default();
    silu.quant.spec = MOE_QUANT_FP8_TOKEN;
    refused("silu spec", moe_silu_mul_quantize(ctx, &silu, NULL), MOE_E_UNSUPPORTED);
    silu.quant.spec = MOE_QUANT_FP8_GROUP_BF16STEPS;
    silu.y = moe_tensor_2d(x, MOE_F32, 2, 64);
    refused("silu dtype", moe_silu_mul_quantize(ctx, &silu, NULL), MOE_E_DTYPE);
    moe_quant_desc none = {.elem = MOE_I8};
    refused("elem alone", moei_quant_check(&none, "test"), MOE_E_UNSET);
    const moe_quant_desc block = {.spec = MOE_QUANT_FP8_BLOCK_INVERSE};
    refused("block as activations", moei_quant_check_act(&block, "test", "gemm[0]"),
            MOE_E_UNSUPPORTED);
}

// What a layer uses.

static void check_shape(const moe_quant_desc *quant, const moei_scale_shape *want)
{
    const moei_scale_shape s = moei_quant_scale_shape(quant, 3, 130, 300);
    CHECK(s.dtype == want->dtype && s.rows == want->rows && s.groups == want->groups &&
              s.columns == want->columns && s.batch_stride == want->batch_stride &&
              s.row_stride == want->row_stride && s.k_stride == want->k_stride &&
              s.elems == want->elems,
          "%s: %s rows %" PRId64 " groups %" PRId64 " columns %" PRId64 " strides %" PRId64
          ", %" PRId64 ", %" PRId64 ", %zu elements",
          moe_quant_name(quant->spec), moe_dtype_name(s.dtype), s.rows, s.groups, s.columns,
          s.batch_stride, s.row_stride, s.k_stride, s.elems);
}

static void test_shapes(void)
{
    const struct {
        moe_quant_desc quant;
        moei_scale_shape shape;
    } cases[] = {
        {{.spec = MOE_QUANT_FP8_STATIC}, {MOE_F32, 1, 1, 1, 0, 0, 0, 1}},
        {{.spec = MOE_QUANT_FP8_TOKEN}, {MOE_F32, 130, 1, 1, 130, 1, 1, 390}},
        {{.spec = MOE_QUANT_FP8_GROUP_DIV}, {MOE_F32, 130, 3, 3, 390, 3, 1, 1170}},
        {{.spec = MOE_QUANT_FP8_GROUP_DIV, .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
         {MOE_F32, 130, 3, 3, 390, 1, 130, 1170}},
        {{.spec = MOE_QUANT_FP8_GROUP_DIV,
          .group = 64,
          .scale_type = MOE_SCALE_UE8M0_PACKED,
          .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
         {MOE_I32, 130, 5, 2, 264, 1, 132, 792}},
        {{.spec = MOE_QUANT_FP8_BLOCK_INVERSE}, {MOE_F32, 2, 3, 3, 6, 3, 1, 18}},
        {{.spec = MOE_QUANT_MX_CEIL}, {MOE_E8M0, 130, 10, 10, 1300, 10, 1, 3900}},
        {{.spec = MOE_QUANT_I8B128}, {MOE_E8M0, 130, 3, 3, 390, 3, 1, 1170}},
        {{.spec = MOE_QUANT_NVFP4}, {MOE_E4M3FN, 130, 19, 19, 2470, 19, 1, 7410}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_shape(&cases[i].quant, &cases[i].shape);
    }
    const moe_quant_desc quant = {.spec = MOE_QUANT_MX_CEIL};
    CHECK(moei_quant_scale_shape(&quant, INT32_MAX, INT64_MAX, INT64_MAX).elems == SIZE_MAX,
          "an overflow passes");
    CHECK(moei_quant_row_bytes(MOE_E2M1, 5) == 3 && moei_quant_row_bytes(MOE_E2M3, 7) == 6 &&
              moei_quant_row_bytes(MOE_I16, 5) == 10 && moei_quant_row_bytes(MOE_I8, 5) == 5,
          "bytes of a row");
}

// A row count that only the device knows: rows past it are not touched.
static void test_total(void)
{
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_TOKEN, MOE_QUANT_FP8_TENSOR};
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        float x[4][32];
        uint8_t q[4][32];
        float s[4] = {-1.0f, -1.0f, -1.0f, -1.0f};
        const int32_t total = 2;
        for (int n = 0; n < 128; n++) {
            x[n / 32][n % 32] = n < 64 ? 448.0f : INFINITY;
        }
        memset(q, 0xA5, sizeof q);
        const moe_quant_desc quant = {.spec = specs[i]};
        moek_quantize_args args = moei_quantize_args_make(&quant);
        args.rows = 4;
        args.k = 32;
        args.total = &total;
        args.x = (uint8_t *)x;
        args.x_dtype = MOE_F32;
        args.x_row_stride = sizeof x[0];
        args.q = (uint8_t *)q;
        args.q_row_stride = sizeof q[0];
        args.scales = s;
        args.scale_row_stride = 1;
        const moei_exec exec = moei_exec_make(ctx, NULL);
        const moe_status status =
            ctx->backend->quantize(&exec, ctx->op_kernel[MOEI_OP_QUANTIZE], &args);
        CHECK(status == MOE_OK && s[0] == 1.0f && q[1][31] == 0x7E, "%s: scale %g, code %02x",
              moe_quant_name(specs[i]), (double)s[0], q[1][31]);
        CHECK(q[2][0] == 0xA5 && s[2] == -1.0f, "%s: absent row: code %02x, scale %g",
              moe_quant_name(specs[i]), q[2][0], (double)s[2]);
    }
}

// The two functions whose bf16 results the bf16 steps rest on, over every argument.
static void test_bf16_functions(void)
{
    unsigned logs = 0;
    unsigned silus = 0;
    for (uint32_t bits = 0x0080; bits < 0x7F80; bits++) {
        const float s = moei_bf16_to_f32((uint16_t)bits);
        const float have = moei_bf16_to_f32(moei_f32_to_bf16(moei_log2f(s)));
        logs += have != float64_round_bf16(log2l((long double)s));
    }
    CHECK(logs == 0, "hlog2: %u of 32512 differ from the correctly rounded log2", logs);
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const float g = moei_bf16_to_f32((uint16_t)bits);
        const float have = moei_bf16_to_f32(moei_f32_to_bf16(moei_silu(g)));
        const float want = float64_silu_mul_bf16(g, 1.0f);
        silus += !(have == want || (isnan(have) && isnan(want)));
    }
    CHECK(silus == 0, "silu: %u of 65536 differ from the correctly rounded silu", silus);
}

static void test_divide_many(void)
{
    moec_rng rng = {11};
    int64_t wrong = 0;
    for (int i = 0; i < 1 << 22; i++) {
        const uint64_t draw = moec_next(&rng);
        const int e = 127 - 80 + (int)moec_below(&rng, 160);
        const float s = moei_f32_from_bits((uint32_t)e << 23 | (uint32_t)(draw & 0x7FFFFF));
        float x = moei_f32_from_bits((uint32_t)(draw >> 32));
        if (i % 4 != 0) { // quotients near those that round up or down, and ordinary ones
            const float code = moei_e4m3fn_to_f32((uint8_t)(draw >> 24) & 0x7E);
            x = (i % 4 == 1 ? code : i % 4 == 2 ? code * 1.0625f : code * (1.0f / 3.0f)) * s;
        }
        const float want = x / s;
        if (!(moei_absf(want) <= 0x1p20f)) {
            continue;
        }
        const float got = moei_divide_many(x, s, 1.0f / s);
        const bool same = moei_f32_bits(got) == moei_f32_bits(want);
        wrong += moei_absf(want) >= 0x1p-20f ? !same : !(moei_absf(got) < 0x1p-19f);
        wrong += moei_f32_to_e4m3fn(got, MOEI_OVERFLOW_SATURATE) !=
                 moei_f32_to_e4m3fn(want, MOEI_OVERFLOW_SATURATE);
    }
    CHECK(wrong == 0, "%" PRId64 " quotients differ", wrong);
    static const struct {
        float s;
        bool plain;
    } divisors[] = {
        {0x1p-80f, true}, {0x1.fffffep-81f, false}, {0x1p80f, true},   {0x1.000002p80f, false},
        {0.0f, false},    {-1.0f, false},           {INFINITY, false}, {NAN, false}};
    for (size_t i = 0; i < sizeof divisors / sizeof divisors[0]; i++) {
        CHECK(moei_is_plain_divisor(divisors[i].s) == divisors[i].plain, "divisor %a",
              (double)divisors[i].s);
    }
}

int main(void)
{
    if (CHECK(moe_context_create(NULL, &ctx) == MOE_OK, "%s", moe_last_error())) {
        test_table();
        test_refusals();
        test_shapes();
        test_total();
        test_bf16_functions();
        test_divide_many();
        moe_context_destroy(ctx);
    }
    return test_summary();
}
