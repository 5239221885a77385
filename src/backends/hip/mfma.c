// SPDX-License-Identifier: Apache-2.0
#include "backends/hip/mfma.h"

#include <stdio.h>

#include "core/safemath.h"

const char *moei_hip_isa_text(uint64_t isa, char *text, size_t capacity)
{
    (void)snprintf(text, capacity, "%s",
                   (isa & MOEI_HIP_CDNA3) != 0   ? "gfx942"
                   : (isa & MOEI_HIP_CDNA4) != 0 ? "gfx950"
                                                 : "gfx9");
    return text;
}

// ---- what a row takes --------------------------------------------------------------------------

// What all kernels ask: weights as [n, k].
static bool takes_shape(const moei_ggemm_problem *problem, moei_whynot *why)
{
    if (problem->transposed) {
        *why = (moei_whynot){MOEI_WHYNOT_TRANSPOSED, 1, 0};
        return false;
    }
    return true;
}

bool moei_hip_float_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                             moei_whynot *why)
{
    (void)kernel;
    if (problem->gemm->weight_format != MOE_FORMAT_BF16) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, problem->gemm->weight_format, MOE_FORMAT_BF16};
        return false;
    }
    if (problem->x_dtype != MOE_BF16) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, problem->x_dtype, MOE_BF16};
        return false;
    }
    return takes_shape(problem, why);
}

// Elements of k that share a scale of x; 0: all, or none have one.
static int64_t group_of(const moe_quant_desc *act)
{
    const moei_quant_info *info = moei_hip_host->quant(act->spec);
    return act->group != 0 || info == NULL ? act->group : info->group;
}

static moe_scale_type scale_type_of(const moe_quant_desc *act)
{
    const moei_quant_info *info = moei_hip_host->quant(act->spec);
    return act->scale_type != 0 || info == NULL ? act->scale_type : info->scale_type;
}

// The same as group_of, where the scale is not decoded with the codes.
static int64_t x_fold_of(const moe_quant_desc *act)
{
    return scale_type_of(act) == MOE_SCALE_E4M3FN ? 0 : group_of(act);
}

// Elements of k after which scales change that are not decoded with the codes; 0: none do. -1: one
// does not divide the other.
static int64_t fold_of(moei_hip_scales scales, const moei_ggemm_problem *problem)
{
    moe_gemm_desc alone = *problem->gemm;
    moei_ggemm_problem weights = *problem;
    weights.gemm = &alone;
    alone.act = (moe_quant_desc){0};
    const int64_t of_w = scales == MOEI_HIP_SCALES_APART ? moei_hip_host->ggemm_fold(&weights) : 0;
    const int64_t of_x = x_fold_of(&problem->gemm->act);
    if (of_w == 0 || of_x == 0) {
        return of_w + of_x;
    }
    const int64_t less = moei_i64_min(of_w, of_x);
    return moei_i64_max(of_w, of_x) % less == 0 ? less : -1;
}

bool moei_hip_packed_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                              moei_whynot *why)
{
    const moe_format format = problem->gemm->weight_format;
    const moei_format_info *info = moei_hip_host->format(format);
    moei_hip_code code;
    moei_hip_scales scales;
    if (info == NULL || !moei_hip_packed_takes(info, &code, &scales)) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, format, MOE_FORMAT_BF16};
        return false;
    }
    // Of what else x can be, bf16 does not hold f32, f16 and codes of 16 bits.
    const moe_dtype x = problem->x_dtype;
    if (x != MOE_BF16 && moei_hip_host->dtype_bits(x) > 8) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, x, MOE_BF16};
        return false;
    }
    const int64_t fold = fold_of(scales, problem);
    const int64_t chunk = moei_hip_host->arith(kernel->arith)->chunk;
    if (fold != chunk) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, fold, chunk};
        return false;
    }
    return takes_shape(problem, why);
}

bool moei_hip_fp8_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why)
{
    const bool cdna4 = (kernel->isa & MOEI_HIP_CDNA4) != 0;
    const moe_dtype takes = cdna4 ? MOE_E4M3FN : MOE_E4M3FNUZ;
    const moe_format format = problem->gemm->weight_format;
    const moei_format_info *info = moei_hip_host->format(format);
    moei_hip_code code;
    moei_hip_scales scales;
    if (info == NULL || !(info->elem == takes || (cdna4 && info->elem == MOE_E5M2)) ||
        !moei_hip_packed_takes(info, &code, &scales) || scales != MOEI_HIP_SCALES_APART) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, format,
                             cdna4 ? MOE_FORMAT_E4M3FN_BLOCK : MOE_FORMAT_E4M3FNUZ_BLOCK};
        return false;
    }
    const moe_dtype x = problem->x_dtype;
    if (!(x == takes || (cdna4 && x == MOE_E5M2))) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, x, takes};
        return false;
    }
    const int64_t chunk = moei_hip_host->arith(kernel->arith)->chunk;
    const int64_t fold = fold_of(scales, problem);
    if (fold < 0 || fold % chunk != 0) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, fold, chunk};
        return false;
    }
    return takes_shape(problem, why);
}

bool moei_hip_mx_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                          moei_whynot *why)
{
    (void)kernel;
    const moe_format format = problem->gemm->weight_format;
    const moei_format_info *info = moei_hip_host->format(format);
    moei_hip_code code;
    moei_hip_scales scales;
    if (info == NULL || !moei_hip_packed_takes(info, &code, &scales) ||
        scales != MOEI_HIP_SCALES_E8M0) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, format, MOE_FORMAT_MXFP4};
        return false;
    }
    switch (problem->x_dtype) {
    case MOE_E4M3FN:
    case MOE_E5M2:
    case MOE_E2M3:
    case MOE_E3M2:
    case MOE_E2M1:
        break;
    default:
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, problem->x_dtype, MOE_E4M3FN};
        return false;
    }
    // Scales of rows follow the sum; those along k go into it.
    const moe_quant_desc *act = &problem->gemm->act;
    const int64_t group = group_of(act);
    const moe_scale_type scale = scale_type_of(act);
    if (group != 0 && scale != MOE_SCALE_E8M0 && scale != MOE_SCALE_UE8M0_PACKED) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_QUANT, act->spec, MOE_QUANT_MX_FLOOR};
        return false;
    }
    if (group % MOEI_HIP_MFMA_STEP != 0) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, group, MOEI_HIP_MFMA_STEP};
        return false;
    }
    return takes_shape(problem, why);
}

// Whether a row multiplies codes.
static bool takes_codes(const moei_kernel *kernel)
{
    return kernel->supports == moei_hip_fp8_supports || kernel->supports == moei_hip_mx_supports;
}

// Seconds, roughly; only their order counts. Packed weights are read in whole lines, codes are
// multiplied at twice the rate.
double moei_hip_mfma_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    const double factor = takes_codes(kernel)                    ? 0.5
                          : kernel->layout == MOEI_LAYOUT_PACKED ? 1.0
                                                                 : 1.25;
    return (double)problem->m_max * (double)problem->n * (double)problem->k * factor / 16e12;
}

bool moei_hip_is_mfma(const moei_kernel *kernel)
{
    return kernel->cost == moei_hip_mfma_cost;
}

// ---- launches ----------------------------------------------------------------------------------

// The kernel for few rows; the one for many follows it.
static moei_hip_mfma_kernel kernel_of(const moei_kernel *row, moei_hip_code code)
{
    static const moei_hip_mfma_kernel fp8[MOEI_HIP_NUM_CODES] = {
        [MOEI_HIP_CODE_E4M3] = MOEI_HIP_MFMA_FP8_E4M3,
        [MOEI_HIP_CODE_E4M3FNUZ] = MOEI_HIP_MFMA_FP8_E4M3FNUZ,
        [MOEI_HIP_CODE_E5M2] = MOEI_HIP_MFMA_FP8_E5M2,
    };
    static const moei_hip_mfma_kernel mx[MOEI_HIP_NUM_CODES] = {
        [MOEI_HIP_CODE_MXFP4] = MOEI_HIP_MFMA_MX_MXFP4,
        [MOEI_HIP_CODE_E4M3] = MOEI_HIP_MFMA_MX_E4M3,
        [MOEI_HIP_CODE_E5M2] = MOEI_HIP_MFMA_MX_E5M2,
    };
    static const moei_hip_mfma_kernel kernels[MOEI_HIP_NUM_CODES] = {
        [MOEI_HIP_CODE_BF16] = MOEI_HIP_MFMA_BF16,
        [MOEI_HIP_CODE_MXFP4] = MOEI_HIP_MFMA_MXFP4,
        [MOEI_HIP_CODE_NVFP4] = MOEI_HIP_MFMA_NVFP4,
        [MOEI_HIP_CODE_U4] = MOEI_HIP_MFMA_U4,
        [MOEI_HIP_CODE_U8] = MOEI_HIP_MFMA_U8,
        [MOEI_HIP_CODE_E4M3] = MOEI_HIP_MFMA_E4M3,
        [MOEI_HIP_CODE_E4M3FNUZ] = MOEI_HIP_MFMA_E4M3FNUZ,
        [MOEI_HIP_CODE_E5M2] = MOEI_HIP_MFMA_E5M2,
    };
    return row->supports == moei_hip_fp8_supports  ? fp8[code]
           : row->supports == moei_hip_mx_supports ? mx[code]
           : row->layout == MOEI_LAYOUT_PACKED     ? kernels[code]
                                                   : MOEI_HIP_MFMA_ROW_BF16;
}

// Rows of an expert are known to the device alone: at most one block of rows each is not full.
static int64_t tiles_of(const moek_ggemm_args *ggemm, int32_t outputs, int32_t rows)
{
    const int64_t experts = ggemm->w.count;
    const int64_t row_blocks = ggemm->offsets != NULL
                                   ? ggemm->rows / rows + moei_i64_min(experts, ggemm->rows)
                                   : moei_i64_ceil_div(ggemm->rows, rows) * experts;
    return row_blocks * moei_i64_ceil_div(ggemm->w.n, outputs);
}

// Rows of an expert in the mean, of those that can have some.
static bool has_many_rows(const moek_ggemm_args *ggemm)
{
    const int64_t experts = moei_i64_min(ggemm->w.count, ggemm->rows);
    return ggemm->offsets != NULL ? ggemm->rows > MOEI_HIP_MFMA_FEW * experts
                                  : ggemm->rows > MOEI_HIP_MFMA_FEW;
}

static int32_t log2_of(int64_t groups_of_k)
{
    int32_t shift = 0;
    while (groups_of_k > 0 && (int64_t)1 << shift < groups_of_k) {
        shift++;
    }
    return groups_of_k > 0 ? shift : 31;
}

moe_status moei_hip_mfma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm)
{
    static const struct {
        int32_t outputs, rows, slice;
    } tiles[MOEI_HIP_NUM_MFMA] = {
#define MOE_HIP_MFMA(id, name, source, isa, outputs, rows, slice) {outputs, rows, slice},
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA
    };
    enum { MAX_BLOCKS = 1 << 16 };      // blocks walk further tiles
    enum { MAX_K = INT32_MAX / 4 + 1 }; // kernels count k, and a slice more, in 32 bits
    if (ggemm->w.k > MAX_K) {
        return moei_hip_host->fail(MOE_E_UNSUPPORTED,
                                   "hip: %s: k = %lld, the matrix kernels take up to %d; level "
                                   "KERNEL takes any",
                                   kernel->name, (long long)ggemm->w.k, MAX_K);
    }
    moei_hip_mfma_args args = {
        .a = *ggemm,
        .packed = moei_hip_packed_of(&ggemm->w, (kernel->isa & MOEI_HIP_CDNA4) != 0),
        .zero_point = moei_hip_zero_point(ggemm->w.format),
        .group_shift = log2_of(ggemm->w.block_k),
        .fold = moei_hip_host->arith(kernel->arith)->chunk,
        .x_bits = moei_hip_host->dtype_bits(ggemm->x.dtype),
    };
    const moei_hip_mfma_kernel few = kernel_of(kernel, args.packed.code);
    const moei_hip_mfma_kernel runs = has_many_rows(ggemm) ? few + 1 : few;
    const int32_t rows = tiles[runs].rows;
    const int64_t blocks =
        moei_i64_round_up(tiles_of(ggemm, tiles[runs].outputs, rows), MOEI_HIP_DIES);
    const uint32_t shared =
        takes_codes(kernel)
            ? moei_hip_codes_shared(tiles[runs].outputs, rows, tiles[runs].slice, ggemm->w.count)
            : moei_hip_mfma_shared(rows, tiles[runs].slice, ggemm->w.count);
    const moei_gpu_grid grid = {(uint32_t)moei_i64_min(blocks, MAX_BLOCKS), MOEI_HIP_MFMA_THREADS,
                                shared, false};
    return grid.blocks == 0 ? MOE_OK : moei_hip_launch_mfma(exec, runs, grid, &args);
}
