// SPDX-License-Identifier: Apache-2.0
// Products on the matrix units: which kernel runs, and how it is launched.
#include "backends/cuda/mma.h"

#include <string.h>

#include "backends/cuda/operand.h"
#include "backends/gpu/drive.h"
#include "numerics/activation.h"

// Rows of the table of kernels, by kind.
typedef const moei_mma_variant *(*variants_fn)(int *count);
static const variants_fn packed[MOEI_OPERAND_NUM_KINDS] = {
    [MOEI_OPERAND_MXFP4] = moei_mma_packed_mxfp4, [MOEI_OPERAND_NVFP4] = moei_mma_packed_nvfp4,
    [MOEI_OPERAND_U4] = moei_mma_packed_u4,       [MOEI_OPERAND_U8] = moei_mma_packed_u8,
    [MOEI_OPERAND_E4M3] = moei_mma_packed_e4m3,
};
static const variants_fn packed_fp8[MOEI_OPERAND_NUM_KINDS] = {
    [MOEI_OPERAND_MXFP4] = moei_mma_packed_mxfp4_fp8,
    [MOEI_OPERAND_NVFP4] = moei_mma_packed_nvfp4_fp8,
    [MOEI_OPERAND_U4] = moei_mma_packed_u4_fp8,
    [MOEI_OPERAND_U8] = moei_mma_packed_u8_fp8,
    [MOEI_OPERAND_E4M3] = moei_mma_packed_e4m3_fp8,
};
static const variants_fn canonical[] = {moei_mma_bf16, moei_mma_f16, moei_mma_e4m3};
#define NUM_CANONICAL (sizeof canonical / sizeof canonical[0])

static cudaError_t load(variants_fn variants)
{
    int count;
    const moei_mma_variant *v = variants(&count);
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < count && error == cudaSuccess; i++) {
        error = cudaFuncSetAttribute(v[i].kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     MOEI_MMA_SHARED);
    }
    return error;
}

cudaError_t moei_cuda_mma_load(void)
{
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < NUM_CANONICAL && error == cudaSuccess; i++) {
        error = load(canonical[i]);
    }
    for (size_t i = 0; i < MOEI_OPERAND_NUM_KINDS && error == cudaSuccess; i++) {
        error = load(packed[i]);
        error = error == cudaSuccess ? load(packed_fp8[i]) : error;
    }
    return error;
}

// Whether codes of x become bf16 on their way.
static bool decodes_x(const moek_ggemm_args *a)
{
    return a->w.layout == MOEI_LAYOUT_PACKED && a->x.dtype == MOE_E4M3FN;
}

static variants_fn variants_of(const moek_ggemm_args *a)
{
    if (a->w.layout == MOEI_LAYOUT_PACKED) {
        return (decodes_x(a) ? packed_fp8 : packed)[moei_operand_kind_of(a->w.format)];
    }
    switch (a->w.format->elem) {
    case MOE_E4M3FN:
        return moei_mma_e4m3;
    case MOE_F16:
        return moei_mma_f16;
    default:
        return moei_mma_bf16;
    }
}

static int64_t root(int64_t n)
{
    int64_t r = 0;
    while ((r + 1) * (r + 1) <= n) {
        r++;
    }
    return r;
}

// Whether eight outputs that begin at a multiple of 8 share their scales of blocks.
static bool scales_are_of_eights(const moei_matrices *w)
{
    return w->block_n > 0 && w->block_n % 8 == 0 && w->part_rows % 8 == 0 && !w->interleaved_parts;
}

// Packed weights whose scales change along k lie apart: a chain per group, not per chunk.
static bool has_groups(const moei_matrices *w)
{
    return w->layout == MOEI_LAYOUT_PACKED && MOEI_OPERAND_APART(moei_operand_kind_of(w->format)) &&
           w->block_k > 0;
}

// What a tile costs a block of outputs and of k: its rows, and what every tile costs, its weights.
// In rows of those kernels that multiply by warpgroups: some three cycles for 64 outputs. Packed
// weights multiplied by warps are decoded at 90 cycles, while rows come out of shared memory at
// five cycles each, once for each of four warps.
static int64_t cost_of_tile(const moek_ggemm_args *a, const moei_mma_variant *v, int64_t rows)
{
    return a->w.layout == MOEI_LAYOUT_PACKED && v->pipes > 1 ? 24 + rows * 7 / 4 : rows + 96;
}

// What the tiles of an expert of so many rows cost.
static int64_t cost_of_rows(const moek_ggemm_args *a, const moei_mma_variant *v, int64_t rows)
{
    const int64_t tiles = (rows + v->bn - 1) / v->bn;
    if (v->rows_first) { // the last one may need one of two warpgroups
        const int64_t last = rows - (tiles - 1) * v->bn;
        return (tiles - 1) * cost_of_tile(a, v, v->bn) +
               cost_of_tile(a, v, last <= v->bn / 2 ? v->bn / 2 : v->bn);
    }
    if (!v->trims || has_groups(&a->w)) { // groups are multiplied by whole tiles
        return tiles * cost_of_tile(a, v, v->bn);
    }
    enum { LEAST = 128, SHORT = 26 }; // fewer rows cost as much; what shorter rings cost; measured
    const int64_t more = a->w.layout == MOEI_LAYOUT_PACKED ? 0 : SHORT;
    const int64_t even = (rows + tiles - 1) / tiles;
    const int64_t each = (even + MOEI_MMA_STEP - 1) / MOEI_MMA_STEP * MOEI_MMA_STEP;
    return tiles * (more + cost_of_tile(a, v, each < LEAST ? LEAST : each));
}

// Whether b has tiles like a's, and more of them at the same time.
static bool has_more_pipes(const moei_mma_variant *a, const moei_mma_variant *b)
{
    return a->bn == b->bn && a->bm == b->bm && a->pipes < b->pipes;
}

// The kernel for rows that spread over the experts as they come. Experts of the mean's size, and of
// up to two standard deviations (those of random routing) around it, are asked for their costs.
static const moei_mma_variant *variant_for(const moek_ggemm_args *a)
{
    // What all of a tile costs by 128 outputs, where rows come first, for what it does otherwise;
    // measured.
    enum { ROWS_FIRST = 104 };
    int count;
    const moei_mma_variant *v = variants_of(a)(&count);
    const int64_t groups = a->w.count > 0 ? a->w.count : 1;
    const int64_t mean = a->offsets != NULL ? (a->rows + groups - 1) / groups : a->rows;
    const int64_t spread = a->offsets != NULL ? root(mean) : 0;
    const moei_mma_variant *best = v;
    int64_t least = INT64_MAX;
    for (int i = 0; i < count; i++) {
        if ((v[i].rows_first && a->w.block_k > 0 && !scales_are_of_eights(&a->w)) ||
            (i > 0 && has_more_pipes(&v[i - 1], &v[i]))) {
            continue;
        }
        const int64_t all = v[i].rows_first ? ROWS_FIRST : 128;
        int64_t cost = 0;
        for (int s = -4; s <= 4; s++) { // halves of a standard deviation; the middle ones twice
            const int64_t rows = mean + spread * s / 2 > 1 ? mean + spread * s / 2 : 1;
            cost += (s >= -2 && s <= 2 ? 2 : 1) * cost_of_rows(a, &v[i], rows) * all;
        }
        if (cost <= least) {
            least = cost;
            best = &v[i];
        }
    }
    return best;
}

// Experts that have rows, at most.
static int64_t experts_of(const moek_ggemm_args *a)
{
    return a->offsets != NULL && a->rows < a->w.count ? a->rows : a->w.count;
}

// The same with another pipe in a block, where there is such a kernel: tiles that the pipes of v
// would begin one after the other. More pipes have their notes from their producers, so that many
// tiles take longer with them. Where waits are random (exec->delay), so is this: the bits are the
// same.
static const moei_mma_variant *with_pipes(const moei_mma_variant *v, const moek_ggemm_args *a,
                                          const moei_exec *exec)
{
    enum { MANY = 22 }; // tiles of a multiprocessor; measured
    const int64_t sms = moei_cuda_device_of(exec)->sms;
    const int64_t tiles = experts_of(a) * ((a->w.n + v->bm - 1) / v->bm);
    int count;
    const moei_mma_variant *end = variants_of(a)(&count);
    end += count;
    const bool more =
        exec->delay != 0 ? (exec->delay & 2) != 0 : tiles > v->pipes * sms && tiles <= MANY * sms;
    return more && v + 1 < end && has_more_pipes(v, v + 1) ? v + 1 : v;
}

// Few rows come one by one while memory brings the weights. Where they take longer than that, by
// more than the launch that copies them, they had better lie side by side. Who decodes rows reads
// them wherever they lie.
bool moei_cuda_mma_wants_rows(const moei_exec *exec, const moek_ggemm_args *ggemm)
{
    enum {
        ROW = 40,     // cycles of the copy engine for 128 bytes of k of a row
        WEIGHTS = 24, // bytes in the time of a cycle, less the engine's for them
        LAUNCH = 8000
    };
    if (ggemm->row_index == NULL || decodes_x(ggemm)) {
        return false;
    }
    const moei_mma_variant *v = variant_for(ggemm);
    const moei_matrices *w = &ggemm->w;
    const int64_t k = w->k * moei_cuda_host->dtype_bits(ggemm->x.dtype) / 8 / 128;
    const int64_t experts = experts_of(ggemm);
    const int64_t rows = ggemm->rows * ROW * (w->n / v->bm) * k;
    const int64_t weights =
        experts * w->n * w->k * moei_cuda_host->dtype_bits(w->format->elem) / 8 / WEIGHTS;
    return v->pipes == 1 || rows - weights > LAUNCH * (int64_t)moei_cuda_device_of(exec)->sms;
}

static int32_t blocks_of_outputs(const moek_ggemm_args *ggemm, bool paired, int bm)
{
    const int64_t outputs = paired ? (ggemm->w.n / 2 + 7) / 8 * 16 : ggemm->w.n;
    return (int32_t)((outputs + bm - 1) / bm);
}

// More tokens are combined sooner by all multiprocessors.
#define FEW_TOKENS 16

int32_t moei_cuda_mma_combines(const moek_ggemm_args *ggemm, const moek_combine_args *combine)
{
    const moei_mma_variant *v = variant_for(ggemm);
    const bool follows =
        combine->slots == ggemm->y && combine->width == ggemm->w.n &&
        combine->tokens <= FEW_TOKENS && ggemm->offsets != NULL && v->bn <= MOEI_MMA_FEW &&
        !(ggemm->w.layout == MOEI_LAYOUT_PACKED && moei_operand_parts(&ggemm->w) == 2);
    return follows ? blocks_of_outputs(ggemm, false, v->bm) : 0;
}

static int32_t parts_of_h(const moek_quantize_args *q)
{
    return (int32_t)((q->k + MOEI_GPU_QUANTIZE_GROUP - 1) / MOEI_GPU_QUANTIZE_GROUP);
}

// Rows whose parts take less time at the end of a product than a launch. Measured: up to 128 rows 1
// to 7 % faster, 256 rows 3 % slower.
#define QUANTIZE_ROWS 160

int32_t moei_cuda_mma_quantizes_h(const moek_ggemm_args *ggemm, const moek_glu_args *glu,
                                  const moek_quantize_args *q)
{
    const bool follows = moei_cuda_mma_fuses(ggemm, glu) && moei_gpu_quantizes_parts(q) &&
                         q->x == glu->y && q->rows == ggemm->rows && ggemm->offsets != NULL &&
                         ggemm->x.dtype == MOE_E4M3FN && ggemm->rows <= QUANTIZE_ROWS &&
                         variant_for(ggemm)->bn <= MOEI_MMA_FEW;
    return follows ? (int32_t)ggemm->rows * parts_of_h(q) : 0;
}

// Experts for each row whose quantising takes less time on its way than when it is written: every
// tile of 64 outputs does it again. Measured: at 8 rows of 128 experts 3 % faster, at 32 and 64
// rows 3 and 7 % slower.
#define QUANTIZE_EXPERTS 16

bool moei_cuda_mma_quantizes_x(const moek_ggemm_args *ggemm, const moek_quantize_args *q)
{
    return moei_gpu_is_fp8_group(q) && q->batches == 1 &&
           ((uintptr_t)q->x | (uintptr_t)q->x_row_stride) % 16 == 0 && ggemm->x.data == q->q &&
           ggemm->x.scales == q->scales && ggemm->w.layout != MOEI_LAYOUT_PACKED &&
           ggemm->w.k == q->k && ggemm->offsets != NULL && ggemm->row_index == NULL &&
           ggemm->rows * QUANTIZE_EXPERTS <= ggemm->w.count && variant_for(ggemm)->pipes > 1;
}

// How much of a line L2 brings for what the copy engine asks of memory. Where weights are read
// once, just that; else `more`, as others ask for the rest. Measured: at 8 to 128 tokens 3 %
// faster.
static CUtensorMapL2promotion promotion(const moei_mma_variant *v, CUtensorMapL2promotion more)
{
    return v->pipes > 1 ? CU_TENSOR_MAP_L2_PROMOTION_NONE : more;
}

// The weights as boxes of BM outputs x 128 bytes of k. With glu: eights of gates and ups in turn.
static CUresult encode(const moei_cuda_device *device, const moek_ggemm_args *a,
                       const moek_glu_args *glu, const moei_mma_variant *v, CUtensorMap *out)
{
    const CUtensorMapL2promotion l2 = promotion(v, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
    const moei_matrices *w = &a->w;
    const moe_dtype elem = w->format->elem;
    const CUtensorMapDataType type = elem == MOE_F16    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                     : elem == MOE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    const cuuint32_t box_k = elem == MOE_F16 || elem == MOE_BF16 ? 64 : 128;
    const cuuint64_t row = (cuuint64_t)w->value_n_stride;
    const cuuint64_t expert = w->count > 1 ? (cuuint64_t)w->value_e_stride : row * (cuuint64_t)w->n;
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    void *values = (void *)(uintptr_t)w->values;
    if (glu == NULL) {
        const cuuint64_t dims[3] = {(cuuint64_t)w->k, (cuuint64_t)w->n, (cuuint64_t)w->count};
        const cuuint64_t strides[2] = {row, expert};
        const cuuint32_t box[3] = {box_k, (cuuint32_t)v->bm, 1};
        return device->encode(out, type, 3, values, dims, strides, box, ones,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, l2,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
    const int64_t first = glu->gate_offset < glu->up_offset ? glu->gate_offset : glu->up_offset;
    const int64_t second = glu->gate_offset + glu->up_offset - first;
    const cuuint64_t step = (cuuint64_t)glu->step * row;
    const cuuint64_t apart = (cuuint64_t)(second - first) * row;
    const cuuint64_t dims[5] = {(cuuint64_t)w->k, 8, 2, (cuuint64_t)glu->inter / 8,
                                (cuuint64_t)w->count};
    const cuuint64_t strides[4] = {step, apart, 8 * step, expert};
    const cuuint32_t box[5] = {box_k, 8, 2, (cuuint32_t)v->bm / 16, 1};
    return device->encode(out, type, 5, (uint8_t *)values + first * w->value_n_stride, dims,
                          strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                          CU_TENSOR_MAP_SWIZZLE_128B, l2, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// The rows of x as boxes of one row, or of `rows`. False where the engine cannot read them.
static bool encode_x(const moei_cuda_device *device, const moek_ggemm_args *a,
                     const moei_mma_variant *v, int rows, CUtensorMap *out)
{
    const moei_operand *x = &a->x;
    const bool batched = a->offsets == NULL;
    const bool codes = moei_cuda_host->dtype_bits(x->dtype) == 8;
    const int64_t batch = batched && a->w.count > 1 ? x->batch_stride : 16; // one: not used
    const CUtensorMapDataType type = codes                 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                     : x->dtype == MOE_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                           : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    // Gathered rows: how many x has is not known here, and no index is out of range.
    const int64_t count = a->row_index != NULL ? INT32_MAX : a->rows > 0 ? a->rows : 1;
    const cuuint64_t dims[3] = {(cuuint64_t)a->w.k, (cuuint64_t)count,
                                (cuuint64_t)(batched ? a->w.count : 1)};
    const cuuint64_t strides[2] = {(cuuint64_t)x->row_stride, (cuuint64_t)batch};
    const cuuint32_t box[3] = {codes ? 128 : 64, (cuuint32_t)rows, 1};
    const cuuint32_t ones[3] = {1, 1, 1};
    if (((uintptr_t)x->data | (uintptr_t)x->row_stride | (uintptr_t)batch) % 16 != 0 ||
        x->row_stride <= 0 || batch <= 0 || x->row_stride >= (int64_t)1 << 40 ||
        batch >= (int64_t)1 << 40) {
        return false;
    }
    return device->encode(out, type, 3, (void *)(uintptr_t)x->data, dims, strides, box, ones,
                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          promotion(v, CU_TENSOR_MAP_L2_PROMOTION_L2_128B),
                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool moei_cuda_mma_fuses(const moek_ggemm_args *ggemm, const moek_glu_args *glu)
{
    const moe_activation act = glu->act.activation;
    return (glu->step == 2) == ggemm->w.interleaved_parts &&
           (act == MOE_ACT_SILU || act == MOE_ACT_SWIGLUOAI) && glu->inter % 8 == 0 &&
           ggemm->w.n == 2 * glu->inter && glu->x == ggemm->y && ggemm->y_dtype == MOE_F32 &&
           ggemm->out_index == NULL && ggemm->row_weight == NULL;
}

// Row and batch strides count where there is more than one batch.
static bool rows_aligned(const void *data, int64_t row_stride, int64_t batch_stride, bool batched)
{
    return ((uintptr_t)data | (uintptr_t)row_stride | (batched ? (uintptr_t)batch_stride : 0)) %
               16 ==
           0;
}

// Whether scales of x along k can be copied by words of four bytes: f32, packed e8m0, or rows of
// e8m0 that are whole words.
static bool scales_are_words(const moei_operand *x, int64_t k, bool batched)
{
    if (x->scales == NULL || x->group == 0) {
        return true; // there are none
    }
    if (x->packed || x->scale_dtype == MOE_F32) {
        return (uintptr_t)x->scales % 4 == 0;
    }
    return x->scale_dtype == MOE_E8M0 && x->scale_k_stride == 1 && k % (4 * x->group) == 0 &&
           ((uintptr_t)x->scales | (uintptr_t)x->scale_row_stride |
            (batched ? (uintptr_t)x->scale_batch_stride : 0)) %
                   4 ==
               0;
}

// Pipes that share a tile, and the bytes of its chunks' sums. Where there are fewer tiles than
// pipes, a launch lasts as long as the chunks of a tile one after the other: sharing is worth it
// where it saves a fifth of them.
static void share_tiles(const moei_mma_variant *v, int64_t sms, moei_mma_args *g)
{
    enum { BYTES = 48 * 1024 }; // of a block: rings would lack more
    const moei_matrices *w = &g->a.w;
    const int64_t chunks = (w->k + 64 * MOEI_MMA_CHUNK - 1) / (64 * MOEI_MMA_CHUNK);
    const int64_t bytes = chunks * v->bm * v->bn * (int64_t)sizeof(float);
    const int64_t experts = experts_of(&g->a);
    const bool has_chunks =
        w->layout == MOEI_LAYOUT_PACKED && v->bn <= MOEI_MMA_FEW && !has_groups(w);
    int64_t least = INT64_MAX;
    g->share = 1;
    for (int32_t share = 1; share <= (has_chunks ? v->pipes : 1); share++) {
        const int64_t teams = v->pipes / share;
        const int64_t at_once = teams * sms;
        const int64_t cost = (experts * g->m_blocks + at_once - 1) / at_once *
                             ((chunks + share - 1) / share); // chunks of a pipe
        if (v->pipes % share == 0 && (share == 1 || teams * bytes <= BYTES) &&
            cost + cost / 4 < least) {
            g->share = share;
            least = cost;
        }
    }
    g->teams = v->pipes / g->share;
    g->share_bytes = g->share > 1 ? (int32_t)bytes : 0;
}

moe_status moei_cuda_mma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm, const moei_mma_extra *extra)
{
    const moek_glu_args *glu = extra->glu;
    const moei_cuda_device *device = moei_cuda_device_of(exec);
    const moei_mma_variant *v = with_pipes(variant_for(ggemm), ggemm, exec);
    const moei_matrices *w = &ggemm->w;
    const bool is_packed = w->layout == MOEI_LAYOUT_PACKED;
    const bool batched = ggemm->offsets == NULL;
    moei_mma_args g;
    memset(&g, 0, sizeof g);
    g.a = *ggemm;
    g.early = extra->early;
    g.delay = exec->delay;
    g.arrived = extra->arrived;
    if (extra->combine != NULL) {
        g.after = MOEI_MMA_COMBINE;
        g.combine = *extra->combine;
    } else if (extra->of_h != NULL) {
        g.after = MOEI_MMA_QUANTIZE_H;
        g.quantize = (moei_gpu_quantize_args){*extra->of_h, *extra->of_h->info};
        g.units = parts_of_h(extra->of_h);
    }
    g.fused = glu != NULL;
    if (glu != NULL) {
        g.glu = *glu;
        g.up_first = glu->up_offset < glu->gate_offset;
        g.limit = glu->act.limit > 0.0f ? glu->act.limit : MOEI_NO_LIMIT;
    }
    g.paired = glu != NULL || (is_packed && moei_operand_parts(w) == 2);
    g.second = w->interleaved_parts ? 1 : w->n / 2;
    g.step = g.paired && w->interleaved_parts ? 2 : 1;
    g.outputs = g.paired ? w->n / 2 : w->n;
    g.m_blocks = blocks_of_outputs(ggemm, g.paired, v->bm);
    if (!is_packed) {
        const CUresult made = encode(device, ggemm, glu, v, &g.weights);
        if (made != CUDA_SUCCESS) {
            return moei_cuda_host->fail(MOE_E_DEVICE,
                                        "cuda: tensor map of [%d, %lld, %lld]: error %d",
                                        (int)w->count, (long long)w->n, (long long)w->k, (int)made);
        }
    }
    g.zero_point = is_packed ? moei_operand_zero_point(w->format) : 0;
    const moei_mma_x engine = ggemm->row_index == NULL ? MOEI_MMA_BOX : MOEI_MMA_GATHER;
    const int box_rows = engine == MOEI_MMA_BOX ? v->box : 1;
    g.x_engine = (int32_t)(decodes_x(ggemm)                             ? MOEI_MMA_DECODE
                           : encode_x(device, ggemm, v, box_rows, &g.x) ? engine
                                                                        : MOEI_MMA_STORES);
    if (extra->to_x != NULL) {
        g.quantize = (moei_gpu_quantize_args){*extra->to_x, *extra->to_x->info};
        g.x_engine = MOEI_MMA_QUANTIZE;
    }
    g.vector = glu != NULL
                   ? rows_aligned(glu->y, glu->y_row_stride, glu->y_batch_stride, batched)
                   : rows_aligned(ggemm->y, ggemm->y_row_stride, ggemm->y_batch_stride, batched);
    g.scale_copies = extra->to_x == NULL && scales_are_words(&ggemm->x, w->k, batched);
    g.scales_by_eights = scales_are_of_eights(w);
    g.weights_stay = v->pipes == 1 && ggemm->rows > (int64_t)v->bn * w->count;
    const size_t pitch = (size_t)v->pipes * (size_t)(v->stage_bytes + v->scale_bytes);
    share_tiles(v, device->sms, &g);
    const size_t rest = 1024 + (size_t)v->turn_bytes + 16 + (size_t)(g.teams * g.share_bytes) +
                        ((size_t)w->count + 1) * sizeof(int32_t);
    const size_t stages = (MOEI_MMA_SHARED - rest) / pitch;
    g.stages = (int32_t)(stages < MOEI_MMA_MAX_STAGES ? stages : MOEI_MMA_MAX_STAGES);
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)v->cluster;
    attributes[1].val.clusterDim.y = 1;
    attributes[1].val.clusterDim.z = 1;
    const unsigned blocks = (unsigned)(device->sms / v->cluster * v->cluster);
    const cudaLaunchConfig_t config = {.gridDim = {blocks, 1, 1},
                                       .blockDim = {(unsigned)v->threads, 1, 1},
                                       .dynamicSmemBytes = (size_t)g.stages * pitch + rest,
                                       .stream = (cudaStream_t)exec->stream,
                                       .attrs = attributes,
                                       .numAttrs = v->cluster > 1 ? 2 : 1};
    void *arguments[] = {&g};
    return moei_cuda_status(cudaLaunchKernelExC(&config, v->kernel, arguments), kernel->name);
}
