// SPDX-License-Identifier: Apache-2.0
// Every way in which the single ops are refused: a valid call, one change, the code, and what the
// message must say. A refused call writes nothing.
#include <math.h>
#include <stddef.h>

#include "api/refusals.h"
#include "moe/moe.h"

#define POISON 0xA5

static moe_context *ctx;

// Every call works on this memory: inputs in front, outputs behind, all poisoned anew each time.
static struct {
    union {
        float f32[512];
        uint16_t u16[1024];
        int32_t i32[512];
        int64_t i64[256];
        uint8_t u8[2048];
    } in[8], out[6];
} m;

static void poison(void)
{
    memset(m.out, POISON, sizeof m.out);
}

static int untouched(void)
{
    const unsigned char *bytes = (const unsigned char *)m.out;
    for (size_t i = 0; i < sizeof m.out; i++) {
        if (bytes[i] != POISON) {
            return 0;
        }
    }
    return 1;
}

static moe_tensor view3(void *data, moe_dtype dtype, int64_t a, int64_t b, int64_t c)
{
    return moe_tensor_3d(data, dtype, a, b, c);
}

// The edit may be several statements, in braces.
#define REFUSE_OP(call, type, valid, edit, code, ...)                                              \
    do {                                                                                           \
        type a = valid();                                                                          \
        edit;                                                                                      \
        REFUSED(call(ctx, &a, NULL), code, #call, __VA_ARGS__);                                    \
        CHECK(untouched(), "a refused %s wrote", #call);                                           \
    } while (0)

// What holds for every op: pointers, stream, struct_size, device.
#define COMMON(call, type, valid, first_view)                                                      \
    do {                                                                                           \
        type a = valid();                                                                          \
        int stream = 0;                                                                            \
        struct {                                                                                   \
            type known;                                                                            \
            uint64_t more[2];                                                                      \
        } newer;                                                                                   \
        REFUSED(call(NULL, &a, NULL), MOE_E_ARGUMENT, #call, "ctx is NULL");                       \
        REFUSED(call(ctx, NULL, NULL), MOE_E_ARGUMENT, #call, "args is NULL");                     \
        REFUSED(call(ctx, &a, &stream), MOE_E_ARGUMENT, #call, "stream", "cpu");                   \
        memset(&newer, 0, sizeof newer);                                                           \
        newer.known = a;                                                                           \
        newer.known.struct_size = sizeof newer;                                                    \
        newer.more[1] = 1;                                                                         \
        REFUSED(call(ctx, &newer.known, NULL), MOE_E_VERSION, #call, "args.struct_size", "byte");  \
        a.struct_size = 4;                                                                         \
        REFUSED(call(ctx, &a, NULL), MOE_E_VERSION, #call, "args.struct_size = 4");                \
        a = valid();                                                                               \
        a.first_view.device = MOE_DEVICE_CUDA;                                                     \
        REFUSED(call(ctx, &a, NULL), MOE_E_ARGUMENT, #call, "\"cuda\"", "\"cpu\"");                \
        a.first_view.device = MOE_DEVICE_CPU;                                                      \
        a.first_view.device_id = 1;                                                                \
        REFUSED(call(ctx, &a, NULL), MOE_E_ARGUMENT, #call, "device_id = 1");                      \
        CHECK(untouched(), "a refused %s wrote", #call);                                           \
        newer.more[1] = 0;                                                                         \
        CHECK(call(ctx, &newer.known, NULL) == MOE_OK, "%s, a zero tail: %s", #call,               \
              moe_last_error());                                                                   \
        a = valid();                                                                               \
        CHECK(call(ctx, &a, NULL) == MOE_OK, "%s, unchanged: %s", #call, moe_last_error());        \
        poison();                                                                                  \
    } while (0)

// ---- ggemm -------------------------------------------------------------------------------------

// 2 experts, 6 rows, K = 16, N = 8, bf16; gathered, scattered, weighed.
static moe_ggemm_args ggemm_valid(void)
{
    static const int32_t offsets[3] = {0, 2, 6};
    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.gemm.weight_format = MOE_FORMAT_BF16;
    a.weights.values = view3(&m.in[0], MOE_BF16, 2, 8, 16);
    a.x = moe_tensor_2d(&m.in[1], MOE_BF16, 6, 16);
    memcpy(m.in[2].i32, offsets, sizeof offsets);
    a.offsets = moe_tensor_1d(&m.in[2], MOE_I32, 3);
    for (int32_t i = 0; i < 6; i++) {
        m.in[3].i32[i] = 5 - i;
        m.in[4].i32[i] = i;
    }
    a.row_index = moe_tensor_1d(&m.in[3], MOE_I32, 6);
    a.out_index = moe_tensor_1d(&m.in[4], MOE_I32, 6);
    a.row_weight = moe_tensor_1d(&m.in[5], MOE_F32, 6);
    a.y = moe_tensor_2d(&m.out[0], MOE_F32, 6, 8);
    return a;
}

static void test_ggemm(void)
{
#define REFUSE(...) REFUSE_OP(moe_ggemm, moe_ggemm_args, ggemm_valid, __VA_ARGS__)
    COMMON(moe_ggemm, moe_ggemm_args, ggemm_valid, x);
    REFUSE(a.gemm.weight_format = 0, MOE_E_UNSET, "args.gemm.weight_format is unset");
    REFUSE(a.gemm.weight_format = 77, MOE_E_ARGUMENT, "args.gemm.weight_format = 77");
    REFUSE(a.gemm.act.group = 32, MOE_E_UNSET, "quant.spec is unset", "group = 32");
    REFUSE(a.gemm.bias = 1, MOE_E_ARGUMENT, "weights bias is absent");
    REFUSE(a.transposed = 2, MOE_E_ARGUMENT, "args.transposed = 2", "0 or 1");
    REFUSE(a.transposed = 1, MOE_E_SHAPE, "weights is bf16 [2, 8, 16]", "[2, 16, 8]");
    REFUSE(a.weights.values.data = NULL, MOE_E_ARGUMENT, "weights is absent");
    REFUSE(a.weights.values.shape[0] = 3, MOE_E_SHAPE, "[3, 8, 16]", "[2, 8, 16]");
    REFUSE((a.y.shape[1] = a.y.stride[0] = (int64_t)1 << 31), MOE_E_SHAPE,
           "weights has 2147483648 rows of 16 elements", "at most 2147483647");
    REFUSE((a.x.shape[1] = a.x.stride[0] = (int64_t)1 << 31), MOE_E_SHAPE,
           "weights has 8 rows of 2147483648 elements", "at most 2147483647");
    REFUSE(a.weights.bias = a.row_weight, MOE_E_ARGUMENT, "weights bias is given", "bias = 0");
    REFUSE(a.weights.scales = a.row_weight, MOE_E_ARGUMENT, "weights scales are given", "bf16");
    REFUSE(a.weights.act_scale = a.row_weight, MOE_E_ARGUMENT, "activation scale is given");
    REFUSE(a.x.data = NULL, MOE_E_ARGUMENT, "x is absent");
    REFUSE(a.x.dtype = MOE_I8, MOE_E_DTYPE, "x is int8", "f32 or bf16 or f16");
    REFUSE(a.x.shape[1] = 15, MOE_E_SHAPE, "weights is bf16 [2, 8, 16]", "[2, 8, 15]");
    REFUSE(a.x_scales = a.row_weight, MOE_E_ARGUMENT, "x_scales are given", "no quantiser");
    REFUSE(a.y.data = NULL, MOE_E_ARGUMENT, "y is absent");
    REFUSE(a.y.dtype = MOE_E4M3FN, MOE_E_DTYPE, "y is e4m3fn", "f32 or bf16 or f16");
    REFUSE(a.y.ndim = 3, MOE_E_SHAPE, "y has 3 dimensions", "2");
    REFUSE(a.y.stride[0] = 7, MOE_E_SHAPE, "y has stride 7", "8");
    REFUSE(a.y.stride[0] = INT64_MAX / 2, MOE_E_OVERFLOW, "y spans more than 2^57");
    REFUSE(a.y.data = a.x.data, MOE_E_OVERLAP, "y overlaps x");
    REFUSE(a.y.data = a.weights.values.data, MOE_E_OVERLAP, "y overlaps weights.values");
    REFUSE(a.y.data = a.row_weight.data, MOE_E_OVERLAP, "y overlaps row_weight");
    REFUSE(a.offsets.ndim = 2, MOE_E_SHAPE, "offsets");
    REFUSE(a.offsets.dtype = MOE_I64, MOE_E_DTYPE, "offsets is int64", "int32");
    REFUSE(a.offsets.byte_offset = 2, MOE_E_ALIGNMENT, "offsets", "2 bytes past");
    REFUSE(m.in[2].i32[0] = 1, MOE_E_VALUE, "offsets[0] = 1", "0");
    REFUSE(m.in[2].i32[1] = 7, MOE_E_VALUE, "offsets[1] = 7", "offsets[2] = 6");
    REFUSE(a.offsets.data = NULL, MOE_E_ARGUMENT, "without offsets");
    REFUSE(a.row_index.shape[0] = 5, MOE_E_SHAPE, "row_index has 5 entries", "6");
    REFUSE(a.row_index.byte_offset = 1, MOE_E_ALIGNMENT, "row_index", "1 bytes past");
    REFUSE(m.in[3].i32[4] = 6, MOE_E_VALUE, "row_index[4] = 6", "0..5");
    REFUSE(m.in[4].i32[5] = -1, MOE_E_VALUE, "out_index[5] = -1", "0..5");
    REFUSE((a.row_index.data = NULL, a.x.shape[0] = 5), MOE_E_SHAPE, "6 rows", "5");
    REFUSE(a.row_weight.dtype = MOE_BF16, MOE_E_DTYPE, "row_weight is bf16", "f32");
    REFUSE(a.row_weight.shape[0] = 5, MOE_E_SHAPE, "row_weight", "[5]", "[6]");
    REFUSE(a.row_weight.byte_offset = 2, MOE_E_ALIGNMENT, "row_weight");
    // Codes: their scales, and products that no row computes.
#define CODES                                                                                      \
    (a.gemm.weight_format = MOE_FORMAT_E4M3FN_BLOCK, a.gemm.act.spec = MOE_QUANT_FP8_GROUP_DIV,    \
     a.weights.values = view3(&m.in[0], MOE_E4M3FN, 2, 8, 16),                                     \
     a.weights.scales = view3(&m.in[6], MOE_F32, 2, 1, 1),                                         \
     a.x = moe_tensor_2d(&m.in[1], MOE_E4M3FN, 6, 16),                                             \
     a.x_scales = moe_tensor_2d(&m.in[7], MOE_F32, 6, 1))
    REFUSE((CODES, a.x_scales.data = NULL), MOE_E_ARGUMENT, "x_scales is absent");
    REFUSE((CODES, a.x_scales.shape[0] = 5), MOE_E_SHAPE, "x_scales", "[5, 1]", "[6, 1]");
    REFUSE((CODES, a.weights.scales.data = NULL), MOE_E_ARGUMENT, "weights scales is absent");
    REFUSE((CODES, a.weights.scales.dtype = MOE_BF16), MOE_E_DTYPE, "weights scales is bf16",
           "f32");
    REFUSE((CODES, a.weights.scale2 = a.row_weight), MOE_E_ARGUMENT, "second-level scale is given");
    REFUSE((CODES, a.gemm.act.group = 48), MOE_E_NO_KERNEL, "every 128", "every 48");
    REFUSE((CODES, a.gemm.act.spec = MOE_QUANT_FP8_STATIC), MOE_E_ARGUMENT,
           "activation scale is absent");
    moe_ggemm_args a = ggemm_valid();
    CODES;
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "codes: %s", moe_last_error());
    poison();
    // A global scale that was computed with the codes is an argument here.
    a = ggemm_valid();
    a.gemm.act.spec = MOE_QUANT_NVFP4_INVERSE;
    a.x = moe_tensor_2d(&m.in[1], MOE_E2M1, 6, 16);
    a.x_scales = moe_tensor_2d(&m.in[7], MOE_E4M3FN, 6, 1);
    a.weights.act_scale = moe_tensor_1d(&m.in[6], MOE_F32, 1);
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "nvfp4_inverse: %s", moe_last_error());
    poison();
#undef CODES
#undef REFUSE
}

// ---- glu ---------------------------------------------------------------------------------------

static moe_glu_args glu_valid(void)
{
    moe_glu_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.activation = MOE_ACT_SILU;
    a.gate_up = MOE_GATE_FIRST;
    a.x = view3(&m.in[0], MOE_F32, 2, 3, 16);
    m.in[1].i32[0] = 3;
    m.in[1].i32[1] = 1;
    a.counts = moe_tensor_1d(&m.in[1], MOE_I32, 2);
    a.y = view3(&m.out[0], MOE_BF16, 2, 3, 8);
    return a;
}

static void test_glu(void)
{
#define REFUSE(...) REFUSE_OP(moe_glu, moe_glu_args, glu_valid, __VA_ARGS__)
    COMMON(moe_glu, moe_glu_args, glu_valid, x);
    REFUSE(a.activation = 0, MOE_E_UNSET, "activation is unset");
    REFUSE(a.activation = 100, MOE_E_ARGUMENT, "activation = 100", "1..10");
    REFUSE(a.activation = -1, MOE_E_ARGUMENT, "activation = -1");
    REFUSE(a.gate_up = 0, MOE_E_UNSET, "gate_up is unset", "silu");
    REFUSE(a.gate_up = 9, MOE_E_ARGUMENT, "gate_up = 9", "1..4");
    REFUSE(a.alpha = 1.0f, MOE_E_UNSUPPORTED, "alpha = 1", "silu");
    REFUSE(a.beta = NAN, MOE_E_UNSUPPORTED, "beta = nan", "silu");
    REFUSE(a.linear_beta = 1.0f, MOE_E_UNSUPPORTED, "linear_beta = 1", "silu");
    REFUSE(a.limit = INFINITY, MOE_E_ARGUMENT, "limit = inf", "finite");
    REFUSE(a.activation = MOE_ACT_SWIGLUSTEP, MOE_E_UNSET, "limit is unset", "swiglustep");
    REFUSE((a.activation = MOE_ACT_SITU, a.alpha = 1.0f), MOE_E_UNSUPPORTED, "alpha = 1", "situ");
    REFUSE((a.activation = MOE_ACT_GELU_NO_MUL), MOE_E_UNSUPPORTED, "gate_up = 1", "gelu_no_mul");
    REFUSE(a.x.shape[2] = 15, MOE_E_SHAPE, "x is f32 [2, 3, 15]", "[2, 3, 16]");
    REFUSE(a.x.ndim = 2, MOE_E_SHAPE, "x has 2 dimensions", "3");
    REFUSE(a.x.dtype = MOE_I32, MOE_E_DTYPE, "x is int32", "f32 or bf16 or f16");
    REFUSE(a.y.dtype = MOE_E4M3FN, MOE_E_DTYPE, "y is e4m3fn");
    REFUSE(a.y.stride[0] = 8, MOE_E_SHAPE, "y has stride 8");
    REFUSE((a.y = moe_tensor_2d(a.y.data, MOE_BF16, 6, 8),
            a.x = moe_tensor_2d(a.x.data, MOE_F32, 6, 16)),
           MOE_E_ARGUMENT, "counts are given", "2-D");
    REFUSE(a.counts.dtype = MOE_I64, MOE_E_DTYPE, "counts is int64", "int32");
    REFUSE(a.counts.byte_offset = 2, MOE_E_ALIGNMENT, "counts", "2 bytes past");
    REFUSE(m.in[1].i32[1] = 4, MOE_E_VALUE, "counts[1] = 4", "0..3");
    REFUSE(a.y.data = a.x.data, MOE_E_OVERLAP, "y overlaps x");
    REFUSE(a.y.data = a.counts.data, MOE_E_OVERLAP, "y overlaps counts");
#undef REFUSE
}

// ---- combine -----------------------------------------------------------------------------------

static moe_combine_args combine_valid(void)
{
    moe_combine_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.slots = view3(&m.in[0], MOE_BF16, 4, 2, 8);
    a.ids = moe_tensor_2d(&m.in[1], MOE_I64, 4, 2);
    a.weights = moe_tensor_2d(&m.in[2], MOE_BF16, 4, 2);
    a.shared = moe_tensor_2d(&m.in[3], MOE_F16, 4, 8);
    a.bias = moe_tensor_1d(&m.in[4], MOE_F32, 8);
    a.out = moe_tensor_2d(&m.out[0], MOE_F32, 4, 8);
    return a;
}

static void test_combine(void)
{
#define REFUSE(...) REFUSE_OP(moe_combine, moe_combine_args, combine_valid, __VA_ARGS__)
    COMMON(moe_combine, moe_combine_args, combine_valid, slots);
    REFUSE(a.accumulate = 2, MOE_E_ARGUMENT, "accumulate = 2", "0 or 1");
    REFUSE(a.slots.data = NULL, MOE_E_ARGUMENT, "slots is absent");
    REFUSE(a.slots.ndim = 2, MOE_E_SHAPE, "slots has 2 dimensions", "3");
    REFUSE(a.slots.dtype = MOE_I8, MOE_E_DTYPE, "slots is int8", "f32 or bf16 or f16");
    REFUSE(a.out.shape[1] = 7, MOE_E_SHAPE, "out is f32 [4, 7]", "[4, 8]");
    REFUSE(a.out.stride[0] = 4, MOE_E_SHAPE, "out has stride 4", "8");
    REFUSE(a.out.data = NULL, MOE_E_ARGUMENT, "out is absent");
    REFUSE(a.ids.dtype = MOE_I16, MOE_E_DTYPE, "ids is int16", "int32 or int64");
    REFUSE(a.ids.shape[1] = 3, MOE_E_SHAPE, "ids", "[4, 3]", "[4, 2]");
    REFUSE(a.weights.dtype = MOE_F16, MOE_E_DTYPE, "weights is f16", "f32 or bf16");
    REFUSE(a.shared.shape[0] = 3, MOE_E_SHAPE, "shared", "[3, 8]", "[4, 8]");
    REFUSE(a.bias.dtype = MOE_F64, MOE_E_DTYPE, "bias is f64");
    REFUSE(a.bias.shape[0] = 9, MOE_E_SHAPE, "bias", "[9]", "[8]");
    REFUSE(a.out.data = a.slots.data, MOE_E_OVERLAP, "out overlaps slots");
    REFUSE(a.out.data = a.shared.data, MOE_E_OVERLAP, "out overlaps shared");
    REFUSE(a.out.data = a.ids.data, MOE_E_OVERLAP, "out overlaps ids");
    REFUSE(a.out.data = a.weights.data, MOE_E_OVERLAP, "out overlaps weights");
    REFUSE(a.out.data = a.bias.data, MOE_E_OVERLAP, "out overlaps bias");
#undef REFUSE
}

// ---- quantize ----------------------------------------------------------------------------------

static moe_quantize_args quantize_valid(void)
{
    moe_quantize_args a = moe_quantize_args_default();
    a.quant.spec = MOE_QUANT_FP8_GROUP_DIV;
    a.quant.group = 8;
    a.x = view3(&m.in[0], MOE_F32, 2, 3, 16);
    m.in[1].i32[0] = 2;
    m.in[1].i32[1] = 3;
    a.counts = moe_tensor_1d(&m.in[1], MOE_I32, 2);
    a.q = view3(&m.out[0], MOE_E4M3FN, 2, 3, 16);
    a.scales = view3(&m.out[1], MOE_F32, 2, 3, 2);
    return a;
}

static moe_quantize_args dequantize_valid(void)
{
    moe_quantize_args a = quantize_valid();
    a.q.data = &m.in[2];
    a.scales.data = &m.in[3];
    a.x.data = &m.out[0];
    memset(&m.in[2], 0x38, sizeof m.in[2]);
    return a;
}

static moe_silu_mul_quantize_args silu_valid(void)
{
    moe_silu_mul_quantize_args a = moe_silu_mul_quantize_args_default();
    a.quant.spec = MOE_QUANT_FP8_GROUP_RECIP;
    a.quant.group = 8;
    a.y = view3(&m.in[0], MOE_BF16, 2, 3, 32);
    m.in[1].i32[0] = 2;
    m.in[1].i32[1] = 3;
    a.counts = moe_tensor_1d(&m.in[1], MOE_I32, 2);
    a.q = view3(&m.out[0], MOE_E4M3FN, 2, 3, 16);
    a.scales = view3(&m.out[1], MOE_F32, 2, 3, 2);
    return a;
}

static void test_quantize(void)
{
#define REFUSE(...) REFUSE_OP(moe_quantize, moe_quantize_args, quantize_valid, __VA_ARGS__)
    COMMON(moe_quantize, moe_quantize_args, quantize_valid, x);
    COMMON(moe_dequantize, moe_quantize_args, dequantize_valid, q);
    COMMON(moe_silu_mul_quantize, moe_silu_mul_quantize_args, silu_valid, y);
    REFUSE(a.quant.spec = 0, MOE_E_UNSET, "quant.spec is unset");
    REFUSE(a.quant.spec = 7777, MOE_E_ARGUMENT, "quant.spec = 7777");
    REFUSE(a.quant.group = -8, MOE_E_ARGUMENT, "quant.group = -8");
    REFUSE(a.quant.elem = MOE_E2M1, MOE_E_UNSUPPORTED, "quant.elem = e2m1", "fp8_group_div",
           "e4m3fn");
    REFUSE(a.quant.scale_type = MOE_SCALE_E4M3FN, MOE_E_UNSUPPORTED, "quant.scale_type = e4m3fn",
           "f32");
    REFUSE(a.quant.scale_layout = 5, MOE_E_ARGUMENT, "quant.scale_layout = 5");
    REFUSE(a.quant.amax_bound = 1.0f, MOE_E_UNSUPPORTED, "quant.amax_bound = 1", "fp8_token");
    REFUSE(a.x.dtype = MOE_F64, MOE_E_DTYPE, "x is f64", "f32 or bf16 or f16");
    REFUSE(a.q.shape[2] = 15, MOE_E_SHAPE, "q", "[2, 3, 15]", "[2, 3, 16]");
    REFUSE(a.q.dtype = MOE_E5M2, MOE_E_DTYPE, "q is e5m2", "e4m3fn");
    REFUSE(a.q.stride[0] = 16, MOE_E_SHAPE, "q has stride 16");
    REFUSE(a.scales.data = NULL, MOE_E_ARGUMENT, "scales is absent");
    REFUSE(a.scales.shape[2] = 1, MOE_E_SHAPE, "scales", "[2, 3, 1]", "[2, 3, 2]");
    REFUSE(a.scales.stride[2] = 3, MOE_E_SHAPE, "scales have stride 3", "layout row");
    REFUSE((a.quant.spec = MOE_QUANT_FP8_TENSOR, a.quant.group = 0,
            a.scales = moe_tensor_1d(&m.out[1], MOE_F32, 1), a.scales.byte_offset = 2),
           MOE_E_ALIGNMENT, "scales lies at an address");
    REFUSE(a.global_scale = moe_tensor_1d(&m.in[4], MOE_F32, 1), MOE_E_ARGUMENT,
           "global_scale is given", "nvfp4");
    REFUSE(a.counts.shape[0] = 3, MOE_E_SHAPE, "counts", "[3]", "[2]");
    REFUSE(m.in[1].i32[0] = 4, MOE_E_VALUE, "counts[0] = 4", "0..3");
    REFUSE(a.q.data = a.x.data, MOE_E_OVERLAP, "q overlaps x");
    REFUSE(a.scales.data = a.q.data, MOE_E_OVERLAP, "scales overlaps q");
#undef REFUSE
#define REFUSE(...)                                                                                \
    REFUSE_OP(moe_silu_mul_quantize, moe_silu_mul_quantize_args, silu_valid, __VA_ARGS__)
    REFUSE(a.quant.spec = MOE_QUANT_FP8_TOKEN, MOE_E_UNSUPPORTED, "fp8_token", "fp8_group_div");
    REFUSE(a.round_steps = 2, MOE_E_ARGUMENT, "round_steps = 2", "0 or 1");
    REFUSE(a.y.shape[2] = 31, MOE_E_SHAPE, "y has 31 columns", "even");
    REFUSE((a.quant.spec = MOE_QUANT_FP8_GROUP_BF16STEPS, a.y.dtype = MOE_F16), MOE_E_DTYPE,
           "y is f16", "bf16");
#undef REFUSE
}

// ---- route -------------------------------------------------------------------------------------

static moe_route_args route_valid(void)
{
    moe_route_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.num_experts = 8;
    a.top_k = 2;
    a.desc.scoring = MOE_SCORING_SIGMOID;
    a.desc.renormalise = MOE_RENORM_SUM;
    a.logits = moe_tensor_2d(&m.in[0], MOE_F32, 3, 8);
    a.ids = moe_tensor_2d(&m.out[0], MOE_I32, 3, 2);
    a.weights = moe_tensor_2d(&m.out[1], MOE_F32, 3, 2);
    return a;
}

static void test_route(void)
{
#define REFUSE(...) REFUSE_OP(moe_route, moe_route_args, route_valid, __VA_ARGS__)
    COMMON(moe_route, moe_route_args, route_valid, logits);
    REFUSE(a.desc.scoring = 0, MOE_E_UNSET, "route.scoring is unset");
    REFUSE(a.desc.renormalise = 0, MOE_E_UNSET, "route.renormalise is unset");
    REFUSE(a.num_experts = 0, MOE_E_ARGUMENT, "num_experts = 0", "1..4096");
    REFUSE(a.top_k = 9, MOE_E_ARGUMENT, "top_k = 9", "1..8");
    REFUSE(a.desc.zero_experts = INT32_MAX, MOE_E_ARGUMENT, "zero_experts = 2147483647");
    REFUSE((a.desc.append_shared = INT32_MAX, a.desc.shared_scores = INT32_MAX), MOE_E_ARGUMENT,
           "append_shared = 2147483647");
    REFUSE(a.logits.dtype = MOE_I8, MOE_E_DTYPE, "logits is int8", "f32 or bf16 or f16");
    REFUSE(a.logits.shape[1] = 7, MOE_E_SHAPE, "logits", "[3, 7]", "8]");
    REFUSE(a.ids.dtype = MOE_I16, MOE_E_DTYPE, "ids is int16", "int32 or int64");
    REFUSE(a.ids.byte_offset = 2, MOE_E_ALIGNMENT, "ids", "2 bytes past");
    REFUSE(a.weights.shape[0] = 4, MOE_E_SHAPE, "weights", "[4, 2]", "[3, 2]");
    REFUSE(a.weights.data = a.ids.data, MOE_E_OVERLAP, "ids overlaps weights");
    REFUSE(a.correction_bias = moe_tensor_1d(&m.in[1], MOE_F32, 8), MOE_E_ARGUMENT,
           "correction_bias is given", "would be ignored");
    REFUSE(a.desc.correction_bias = 1, MOE_E_ARGUMENT, "correction_bias is absent");
    REFUSE(a.replica_count = moe_tensor_1d(&m.in[1], MOE_I32, 8), MOE_E_ARGUMENT, "replica_count",
           "without replica_table");
#undef REFUSE
}

// ---- sort, gather ------------------------------------------------------------------------------

static moe_sort_args sort_valid(void)
{
    moe_sort_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.num_experts = 4;
    for (int32_t i = 0; i < 6; i++) {
        m.in[0].i32[i] = i % 4;
    }
    a.ids = moe_tensor_2d(&m.in[0], MOE_I32, 3, 2);
    a.offsets = moe_tensor_1d(&m.out[0], MOE_I32, 5);
    a.slots = moe_tensor_1d(&m.out[1], MOE_I32, 6);
    return a;
}

static moe_batched_args batched_valid(void)
{
    moe_batched_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    for (int32_t i = 0; i < 6; i++) {
        m.in[0].i32[i] = i % 4;
    }
    a.ids = moe_tensor_2d(&m.in[0], MOE_I32, 3, 2);
    a.x = moe_tensor_2d(&m.in[1], MOE_E2M1, 3, 16);
    a.batched = view3(&m.out[0], MOE_E2M1, 4, 2, 16);
    a.counts = moe_tensor_1d(&m.out[1], MOE_I32, 4);
    a.rows = moe_tensor_1d(&m.out[2], MOE_I32, 6);
    return a;
}

static void test_sort(void)
{
#define REFUSE(...) REFUSE_OP(moe_sort, moe_sort_args, sort_valid, __VA_ARGS__)
    COMMON(moe_sort, moe_sort_args, sort_valid, ids);
    REFUSE(a.num_experts = 0, MOE_E_ARGUMENT, "num_experts = 0", "1..8192");
    REFUSE(a.block = -1, MOE_E_ARGUMENT, "block = -1", "0");
    REFUSE(a.block = 16, MOE_E_ARGUMENT, "offsets is given", "block = 16");
    REFUSE(a.num_padded = a.slots, MOE_E_ARGUMENT, "num_padded is given", "block = 0");
    REFUSE(a.block_experts = a.slots, MOE_E_ARGUMENT, "block_experts is given", "block = 0");
    REFUSE((a.block = INT32_MAX, a.offsets.data = NULL), MOE_E_OVERFLOW, "blocks of 2147483647");
    REFUSE(a.ids.dtype = MOE_F32, MOE_E_DTYPE, "ids is f32", "int32 or int64");
    REFUSE(a.ids.byte_offset = 1, MOE_E_ALIGNMENT, "ids", "1 bytes past");
    REFUSE(a.offsets.shape[0] = 4, MOE_E_SHAPE, "offsets", "[4]", "[5]");
    REFUSE(a.slots.shape[0] = 5, MOE_E_SHAPE, "slots", "[5]", "[6]");
    REFUSE(a.positions = a.offsets, MOE_E_SHAPE, "positions", "[5]", "[6]");
    REFUSE(a.counts = moe_tensor_1d(&m.out[2], MOE_I16, 4), MOE_E_DTYPE, "counts is int16");
    REFUSE(a.slots.data = a.offsets.data, MOE_E_OVERLAP, "offsets overlaps slots");
    REFUSE(a.slots.data = a.ids.data, MOE_E_OVERLAP, "slots overlaps ids");
#undef REFUSE
#define REFUSE(...) REFUSE_OP(moe_gather_batched, moe_batched_args, batched_valid, __VA_ARGS__)
    COMMON(moe_gather_batched, moe_batched_args, batched_valid, ids);
    REFUSE(a.x.shape[0] = 2, MOE_E_SHAPE, "x", "[2, 16]", "[3, ");
    REFUSE((a.x.shape[1] = 15, a.batched.shape[2] = 15), MOE_E_SHAPE, "15 e2m1", "whole bytes");
    REFUSE(a.batched.dtype = MOE_U8, MOE_E_DTYPE, "batched is uint8", "e2m1");
    REFUSE(a.batched.stride[0] = 16, MOE_E_SHAPE, "batched has stride 16");
    REFUSE(a.counts.data = a.rows.data, MOE_E_OVERLAP, "counts overlaps rows");
    REFUSE(a.batched.shape[0] = 0, MOE_E_SHAPE, "batched has 0 experts");
#undef REFUSE
    CHECK(moe_sort_padded_size(-1, 4, 16) == -1 && moe_sort_padded_size(4, 0, 16) == -1 &&
              moe_sort_padded_size(4, 4, 0) == -1,
          "moe_sort_padded_size of nonsense");
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    poison();
    test_ggemm();
    test_glu();
    test_combine();
    test_quantize();
    test_route();
    test_sort();
    moe_context_destroy(ctx);
    return test_summary();
}
