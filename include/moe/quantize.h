// SPDX-License-Identifier: Apache-2.0
/// @file quantize.h  Named, bit-defined quantisers: which arithmetic turns real numbers into codes
/// and scales.
///
/// Public software has several quantisers for one format, and their codes differ. A caller here
/// names the rule; every backend gives the same bits for it. src/quant/specs.def holds one row
/// per rule, docs/quantisers.md the formulas.
#ifndef MOE_QUANTIZE_H
#define MOE_QUANTIZE_H

#include "moe/context.h"
#include "moe/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/// The rule. All arithmetic is float32, one rounding per operation, unless the rule says bf16.
/// amax is the largest magnitude of what shares the scale, NaN ignored; MAX the element type's
/// largest value (moe_fp8_quant_max for FP8); a multiplier 1/s is at most the largest float. Codes
/// round to nearest even and saturate at MAX unless stated; s is what is stored, a multiplier.
/// docs/quantisers.md has every formula with its source, NaN and infinities included.
typedef int32_t moe_quant_spec;
enum {
    MOE_QUANT_NONE = 0, ///< not quantised

    // FP8 (element e4m3fn, e4m3fnuz or e5m2)
    MOE_QUANT_FP8_STATIC = 1,          ///< given s: x * (1/s)
    MOE_QUANT_FP8_TENSOR = 2,          ///< s = amax / MAX over all rows, then as STATIC. Level RUN;
                                       ///< in a layer: docs/numerics.md says which rows count
    MOE_QUANT_FP8_TOKEN = 3,           ///< s = max(min(amax, bound) / MAX, 1 / (512 MAX)); x / s
    MOE_QUANT_FP8_GROUP_DIV = 4,       ///< s = max(amax, 1e-10) / MAX; x / s
    MOE_QUANT_FP8_GROUP_RECIP = 5,     ///< s = max(amax, 1e-10) * (1/MAX); x / s
    MOE_QUANT_FP8_GROUP_BF16STEPS = 6, ///< RECIP with every step rounded to bf16; x * bf16(1/s)
    MOE_QUANT_FP8_GROUP_DEEPGEMM = 7,  ///< s = max(amax, 1e-4) * (1/MAX); x * (1/s)
    MOE_QUANT_FP8_BLOCK_INVERSE = 8,   ///< per 128 x 128: r = (1/amax) * MAX; s = 1/r; x * r
    MOE_QUANT_FP8_BLOCK_DEEPGEMM = 9,  ///< GROUP_DEEPGEMM per 128 x 128

    // Integers
    MOE_QUANT_INT8_STATIC = 20,      ///< given s: round half even(x * (1/s)), clamped to -128..127
    MOE_QUANT_INT8_TOKEN = 21,       ///< a = max(amax, 1e-10); s = a/127; half away(x * (127/a))
    MOE_QUANT_INT8_GROUP_TRUNC = 22, ///< s = max(amax, 1e-10)/127; truncate(clamp(x / s))
    MOE_QUANT_INT8_GROUP_RECIP = 23, ///< s = max(amax/127, 1e-10); round half even(x * (1/s))
    MOE_QUANT_INT4_GROUP_RECIP = 24, ///< the same with 7 and codes -8..7
    MOE_QUANT_INT8_TOKEN_RECIP = 25, ///< INT8_GROUP_RECIP with one scale per row

    // OCP MX: a power-of-two scale 2^e per 32 (element e2m1, e2m3, e3m2, e4m3fn, e5m2); x / 2^e
    MOE_QUANT_MX_FLOOR = 40,     ///< OCP MX 1.0 section 6.3: e = floor(log2 amax) - emax
    MOE_QUANT_MX_EVEN = 41,      ///< amax rounded to the element's fraction first, then FLOOR
    MOE_QUANT_MX_CEIL = 42,      ///< e = ceil(log2(amax / MAX))
    MOE_QUANT_MX_CEIL_AWAY = 43, ///< scale of CEIL; e2m1 ties away from zero
    MOE_QUANT_MX_FLOOR_MAX = 44, ///< e = floor(log2(amax / MAX)); e2m1 ties away from zero
    MOE_QUANT_MX_NO_EMAX = 45,   ///< e = floor(log2 amax), nothing subtracted (e4m3fn, e5m2)

    // FP4 with other scales
    MOE_QUANT_FP4_GROUP_DEEPGEMM = 60, ///< s = max(amax, 1e-4) * (1/6); ties to smaller magnitude
    MOE_QUANT_NVFP4 = 61,              ///< given g: s = e4m3fn(g * (amax * (1/6))); x * (g / s)
    MOE_QUANT_NVFP4_INVERSE = 62, ///< g = (1/amax of all) * 2688; s = e4m3fn((amax/6) * g); the
                                  ///< code of least f32 distance. Level RUN
    MOE_QUANT_NVFP4_SINGLE = 63,  ///< s = e4m3fn(amax / 6), no second level; x * (1/s)

    // Fixed point, scale a power of two 2^e (activation formats of the CPU kernels); x / 2^e
    MOE_QUANT_I8B32 = 80,  ///< int8 per 32: e the smallest for which every rounded |code| <= 127
    MOE_QUANT_I16B32 = 81, ///< int16: the same with 32639 = 127 * 256 + 127
    MOE_QUANT_I8B128 = 82  ///< I8B32 per 128
};

/// Name as on the command line ("fp8_group_recip"), or "unknown quantiser".
MOE_API const char *moe_quant_name(moe_quant_spec spec);

/// Looks a name up; MOE_QUANT_NONE for "none" and for unknown names.
MOE_API moe_quant_spec moe_quant_from_name(const char *name);

/// How a scale is represented. UE8M0 scales are the spec's f32 scale rounded up to a power of two
/// (by the exponent's bits, never through a logarithm, but for BF16STEPS).
typedef int32_t moe_scale_type;
enum {
    MOE_SCALE_DEFAULT = 0, ///< the spec's: f32 (FP8, integers), e8m0 (MX, fixed), e4m3fn (NVFP4)
    MOE_SCALE_F32 = 1,
    MOE_SCALE_UE8M0_F32 = 2,    ///< f32 whose value is a power of two
    MOE_SCALE_E8M0 = 3,         ///< a byte, 2^(code - 127)
    MOE_SCALE_UE8M0_PACKED = 4, ///< four e8m0 bytes per int32, little-endian: byte i of word p is
                                ///< group 4p + i; bytes past the last group are 0
    MOE_SCALE_E4M3FN = 5
};

/// Which way the scales of [rows, groups] (or [E, T, groups]) lie in memory. Strides of the view
/// that holds them must agree; they may be larger.
typedef int32_t moe_scale_layout;
enum {
    MOE_SCALE_LAYOUT_DEFAULT = 0, ///< row-major
    MOE_SCALE_LAYOUT_ROW = 1,     ///< strides (G, 1); batched (T*G, G, 1)
    MOE_SCALE_LAYOUT_COLUMN = 2   ///< strides (1, rows); batched (T*G, 1, T). Larger strides too:
                                  ///< DeepGEMM's rows in multiples of 4 for packed scales
};

/// A quantiser with its parameters. Zero-initialised: not quantised. A parameter that the spec
/// does not have must be 0.
typedef struct moe_quant_desc {
    moe_quant_spec spec;
    moe_dtype elem; ///< 0: the spec's first element type
    int32_t group;  ///< elements of k that share a scale; 0: the spec's (128, 32, 16 or a row)
    moe_scale_type scale_type;
    moe_scale_layout scale_layout;
    float amax_bound; ///< FP8_TOKEN: upper bound of amax; 0: none
} moe_quant_desc;

/// Arguments of moe_quantize and moe_dequantize. x and q have the same shape:
///   [rows, k], or batched [E, T, k] with counts
/// q holds codes of quant.elem: that dtype, or U8 (packed types: [.., bytes of a row]). Sub-byte
/// codes are packed low bits first; bits past the last code of a row are written as 0.
/// scales: [rows, ceil(k/group)], batched [E, T, ..], packed I32 [.., ceil(G/4)]; per token [rows]
/// or [rows, 1] (batched [E, T] or [E, T, 1]); per tensor and static: f32 [1] or []; 128 x 128:
/// [ceil(rows/128), ceil(k/128)]. E8M0 and E4M3FN scales may be views of U8.
typedef struct moe_quantize_args {
    size_t struct_size;
    moe_quant_desc quant;
    moe_tensor x;            ///< f32, bf16 or f16; last stride 1. Dequantise: output
    moe_tensor q;            ///< codes; last stride 1
    moe_tensor scales;       ///< STATIC specs: input
    moe_tensor global_scale; ///< NVFP4: input f32 [1]; NVFP4_INVERSE: output
    moe_tensor counts; ///< batched only: I32 [E]; rows at or past the count are neither read nor
                       ///< written, in q, scales and x
} moe_quantize_args;

static inline moe_quantize_args moe_quantize_args_default(void)
{
    moe_quantize_args a;
    char *p = (char *)&a;
    size_t i;
    for (i = 0; i < sizeof a; i++) {
        p[i] = 0;
    }
    a.struct_size = sizeof a;
    return a;
}

/// Quantises. k need not be a multiple of the group: the last group is shorter.
/// Errors: ARGUMENT, UNSET, SHAPE, DTYPE, OVERLAP, OVERFLOW, VERSION, UNSUPPORTED (spec and
/// element, group or scale type do not go together). Determinism: KERNEL (same bits everywhere);
/// specs whose scale spans rows: RUN. Workspace: none. Thread safety: reentrant. Since 0.1.
MOE_API moe_status moe_quantize(const moe_context *ctx, const moe_quantize_args *args,
                                void *stream);

/// The inverse map: value = code * scale in f32 (NVFP4 with a global scale: (code * s) / g), then
/// rounded to x's dtype. Errors and promises as moe_quantize. Since 0.1.
MOE_API moe_status moe_dequantize(const moe_context *ctx, const moe_quantize_args *args,
                                  void *stream);

/// Arguments of moe_silu_mul_quantize: y [T, 2I], or [E, T, 2I] with counts, the gate in the first
/// half; q [.., I] and scales as moe_quantize has them.
typedef struct moe_silu_mul_quantize_args {
    size_t struct_size;
    moe_quant_desc quant; ///< an FP8_GROUP_* spec
    int32_t round_steps;  ///< 1: silu(gate), and its product with up, are rounded to y's dtype;
                          ///< 0: both stay f32, but with BF16STEPS, which always rounds to bf16
    moe_tensor y;         ///< f32, bf16 or f16; BF16STEPS: bf16
    moe_tensor q;
    moe_tensor scales;
    moe_tensor counts;
} moe_silu_mul_quantize_args;

static inline moe_silu_mul_quantize_args moe_silu_mul_quantize_args_default(void)
{
    moe_silu_mul_quantize_args a;
    char *p = (char *)&a;
    size_t i;
    for (i = 0; i < sizeof a; i++) {
        p[i] = 0;
    }
    a.struct_size = sizeof a;
    return a;
}

/// SiLU(gate) * up, quantised, for the first counts[e] rows of each expert. Rows at or past the
/// count: scales are set to 0, codes untouched.
/// Errors, determinism, thread safety as moe_quantize. Since 0.1.
MOE_API moe_status moe_silu_mul_quantize(const moe_context *ctx,
                                         const moe_silu_mul_quantize_args *args, void *stream);

/// Largest finite magnitude to which a quantiser clamps FP8 on a platform: 448 for e4m3fn (CUDA,
/// gfx950, CPU); 224, not 240, for e4m3fnuz (gfx942), where 240 would cost accuracy; 57344 for
/// e5m2. 0 for other types. Since 0.1.
MOE_API float moe_fp8_quant_max(moe_dtype elem);

#ifdef __cplusplus
}
#endif
#endif
