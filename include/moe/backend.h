// SPDX-License-Identifier: Apache-2.0
/// @file backend.h  What a backend is made of; what a plugin compiles against. EXPERIMENTAL.
///
/// A backend is a table of kernels (moei_kernel) and one function per op that runs a kernel over a
/// whole problem (moei_backend). The library's own backends and those of plugins are the same
/// type; docs/howto-backend.md shows how to write one. A plugin is a shared library with one
/// exported symbol, moe_backend_entry. It links nothing of libmoe: what it needs of it comes in a
/// table of functions (moei_host).
///
/// Names that begin with moei_ and moek_ are bound to one MOE_BACKEND_ABI: any change of this file
/// raises that number, and a plugin of another number is refused, with the reason in `moe info`.
/// Layouts, rounding and order of operations: the contract of each op is docs/numerics.md.
#ifndef MOE_BACKEND_H
#define MOE_BACKEND_H

#include <stdbool.h>

#include "moe/ops.h"
#include "moe/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MOE_BACKEND_ABI = 4 };

// ---- arithmetic classes and refusals -----------------------------------------------------------

/// The order and precision in which a grouped product sums; rows of arith.def.
typedef enum moei_arith {
#define MOE_ARITH(ID, ...) MOEI_ARITH_##ID,
#include "moe/arith.def"
#undef MOE_ARITH
    MOEI_NUM_ARITH
} moei_arith;

typedef struct moei_arith_info {
    const char *name;
    int fraction_bits;
    bool truncating;
    int products_per_step; // 0: the sum is exact
    int chunk;             // 0: all of K
    bool consistent;
    bool flushes; // sums below 2^-126 may become 0
    const char *text;
} moei_arith_info;

/// Why a kernel cannot do what is asked; rows of whynot.def.
typedef enum moei_whynot_code {
#define MOE_WHYNOT(ID, ...) MOEI_WHYNOT_##ID,
#include "moe/whynot.def"
#undef MOE_WHYNOT
    MOEI_NUM_WHYNOT
} moei_whynot_code;

/// A refusal: what is there and what would be needed.
typedef struct moei_whynot {
    moei_whynot_code code;
    int64_t have, need;
} moei_whynot;

// ---- tables of formats and quantisers ----------------------------------------------------------

/// A row of the table of weight formats; docs/formats.md.
typedef struct moei_format_info {
    moe_format format;
    const char *name;
    moe_dtype elem;
    int32_t block_n, block_k; // 0: the whole extent
    uint32_t scale_dtypes;    // bit 1 << moe_dtype; 0: no scales
    bool scale2;
    int32_t zero_point; // -1: none
    bool free_group;
    const char *source;
} moei_format_info;

/// What shares a scale.
typedef enum moei_quant_grain {
    MOEI_GRAIN_TENSOR, // all rows
    MOEI_GRAIN_TOKEN,  // a row
    MOEI_GRAIN_GROUP,  // `group` elements of a row
    MOEI_GRAIN_BLOCK   // `group` elements of `block_rows` rows
} moei_quant_grain;

/// How the scale s follows from a = amax. M is the element's largest value, P the power of two
/// below it, both as moei_quant_max and moei_elem_emax give them.
typedef enum moei_scale_rule {
    MOEI_SCALE_GIVEN,     // an argument
    MOEI_SCALE_DIV,       // max(a, floor) / M
    MOEI_SCALE_RECIP,     // max(a, floor) * (1 / M)
    MOEI_SCALE_DIV_FLOOR, // max(a / M, floor)
    MOEI_SCALE_TOKEN,     // max(min(a, bound) / M, 1 / (512 M))
    MOEI_SCALE_BF16,      // bf16(max(a, bf16 floor) * bf16(1 / M)); UE8M0: hexp2(hceil(hlog2 s))
    MOEI_SCALE_INVERSE,   // 1 / ((1 / a) * M); 1 where a is 0
    MOEI_SCALE_MX_FLOOR,  // e8m0: exponent of a / P
    MOEI_SCALE_MX_EVEN,   // e8m0: exponent of a rounded to the element's fraction, - log2 P
    MOEI_SCALE_MX_CEIL,   // e8m0: exponent of the power of two not below a / M
    MOEI_SCALE_MX_MAX,    // e8m0: exponent of a / M
    MOEI_SCALE_MX_PLAIN,  // e8m0: exponent of a
    MOEI_SCALE_NVFP4,     // e4m3fn: g * (a * (1 / M)), g given
    MOEI_SCALE_NVFP4_INVERSE, // e4m3fn: (a / M) * g, g = (1 / amax of the tensor) * 2688
    MOEI_SCALE_NVFP4_SINGLE,  // e4m3fn: a / M
    MOEI_SCALE_FIXED          // e8m0: the smallest for which every rounded code fits
} moei_scale_rule;

/// How a value v to round follows from x and s.
typedef enum moei_code_rule {
    MOEI_CODE_TIMES_INVERSE, // x * (1 / s)
    MOEI_CODE_DIVIDE,        // x / s
    MOEI_CODE_BF16,          // bf16(bf16(x) * bf16(1 / s))
    MOEI_CODE_TIMES_FACTOR,  // x * r, r as the scale rule left it: (1 / a) * M, or 127 / a
    MOEI_CODE_POWER,         // x * 2^-e, exact
    MOEI_CODE_GLOBAL         // x * (g / s)
} moei_code_rule;

/// How v becomes a code. Floats beyond the range saturate; integers clamp.
typedef enum moei_code_rounding {
    MOEI_ROUND_EVEN,
    MOEI_ROUND_HALF_DOWN, // ties to the smaller magnitude; what rounds to zero is +0
    MOEI_ROUND_DISTANCE,  // e2m1: the first magnitude whose f32 distance from |v| is smallest, so
                          // ties as HALF_DOWN; far beyond the range, all distances are equal: 0
    MOEI_ROUND_HALF_AWAY,
    MOEI_ROUND_TRUNCATE
} moei_code_rounding;

/// What a NaN does. amax ignores it in every case.
typedef enum moei_quant_nan {
    MOEI_NAN_CODE, // becomes the element's NaN (7F; 80 in fnuz), or 0 if it has none
    MOEI_NAN_LOW,  // becomes the lowest code, as max(NaN, low) does
    MOEI_NAN_SCALE // where the element has no NaN: the scale becomes NaN; else as NAN_CODE
} moei_quant_nan;

typedef struct moei_quant_info {
    moe_quant_spec spec;
    const char *name;
    moe_dtype elem; // default
    uint32_t elems; // bit 1 << moe_dtype
    moei_quant_grain grain;
    int32_t group;             // default elements of k per scale; 0: the whole row
    int32_t block_rows;        // rows per scale; 0: all
    bool free_group;           // desc.group may replace it
    moe_scale_type scale_type; // default
    uint32_t scale_types;      // bit 1 << moe_scale_type
    float floor;               // of amax, or of the scale (MOEI_SCALE_DIV_FLOOR)
    moei_scale_rule scale;
    moei_code_rule code;
    moei_code_rounding rounding;
    moei_quant_nan nan;
    moe_determinism level; // KERNEL, or RUN where a scale spans rows
    const char *source;
} moei_quant_info;

// ---- kernels -----------------------------------------------------------------------------------

typedef enum moei_op {
    MOEI_OP_ROUTE,
    MOEI_OP_PLACE,
    MOEI_OP_SORT,
    MOEI_OP_QUANTIZE,
    MOEI_OP_GGEMM,
    MOEI_OP_GLU,
    MOEI_OP_COMBINE,
    MOEI_NUM_OPS
} moei_op;

/// One grouped product, as selection sees it.
typedef struct moei_ggemm_problem {
    int64_t m_max, n, k;
    int32_t experts;
    const moe_gemm_desc *gemm;
    moe_dtype x_dtype; // element type of the operand: a float, or the codes of gemm->act
    moe_dtype y_dtype;
    bool transposed;
    bool canonical;        // the weights lie as the caller has them: no row of a packed layout
    moe_determinism level; // KERNEL: no row whose class is not consistent; DEFAULT: BATCH
} moei_ggemm_problem;

typedef void (*moei_kernel_fn)(void);

/// How the weights lie that a kernel reads.
typedef enum moei_weight_layout {
    MOEI_LAYOUT_ROW,   // canonical; needs no packing
    MOEI_LAYOUT_PACKED // as the backend's pack leaves them
} moei_weight_layout;

/// A row of a backend's table of kernels.
typedef struct moei_kernel {
    const char *name; // "moek_ggemm_f32_any_any__ref_b32"
    moei_op op;
    uint64_t isa; // bits that the CPU and the context's ceiling must have
    const char *isa_name;
    int mr, nr, kr;
    moei_weight_layout layout;
    moei_arith arith;
    uint32_t flags;
    moei_kernel_fn fn; // cast to the op's function type (ops/<op>.h)
    /// ggemm only: NULL accepts everything
    bool (*supports)(const struct moei_kernel *kernel, const moei_ggemm_problem *problem,
                     moei_whynot *why);
    double (*cost)(const struct moei_kernel *kernel, const moei_ggemm_problem *problem);
    /// ggemm of layout ROW: the values begin at multiples of so many bytes, each row and expert of
    /// them; 0: anywhere. Wrapped weights are held to it, packed ones lie so.
    uint32_t weight_align;
} moei_kernel;

enum {
    MOEI_KERNEL_GRAPH_SAFE = 1, // may be captured in a device graph
    MOEI_KERNEL_REF = 2         // the portable reference
};

// ---- arguments of the ops ----------------------------------------------------------------------

// All have been checked; typed pointers are aligned to their elements, outputs overlap nothing.
// Pointers to data are device pointers, unless the backend works on host memory.

/// route: router logits to expert ids and weights; docs/routing.md.
typedef struct moek_route_args {
    moe_route_desc desc; // checked; defaults resolved (moei_route_resolve)
    int64_t tokens;
    int32_t num_experts;
    int32_t top_k;
    const int32_t *num_valid;     // NULL: all tokens; the others get id -1, weight 0
    const uint8_t *logits;        // [tokens, num_experts + zero_experts + shared_scores]
    moe_dtype logit_dtype;        // f32, bf16, f16
    int64_t logit_token_stride;   // bytes
    const float *correction_bias; // [num_experts + zero_experts], with desc.correction_bias
    const float *scale_tensor;    // [1], with desc.scale_tensor
    const void *hash_table;       // [vocabulary, top_k], with desc.hash_table
    const void *token_ids;        // [tokens]
    moe_dtype hash_dtype;         // of both: int32 or int64
    int64_t vocabulary;
    int64_t hash_token_stride;  // elements
    const float *shared_gate;   // [tokens, append_shared]; NULL: 1
    int64_t shared_gate_stride; // elements
    // Mapping; all NULL: ids are the router's own.
    const int32_t *replica_table; // [num_experts, replica_slots]; NULL: logical = physical
    int64_t replica_stride;
    int32_t replica_slots;
    const int32_t *replica_count; // [num_experts]
    int32_t num_physical;         // bound of physical ids: replicas, else num_experts
    const int32_t *expert_map;    // [num_physical] to local ids in [0, num_experts); NULL: none
    int32_t *load;      // [num_physical], incremented by relaxed atomic adds; NULL: not counted
    void *ids;          // out [tokens, top_k + append_shared]
    moe_dtype id_dtype; // int32 or int64
    int64_t id_token_stride;     // elements
    void *weights;               // out [tokens, top_k + append_shared]
    moe_dtype weight_dtype;      // f32 or bf16
    int64_t weight_token_stride; // elements
    float *shared_weights;       // out [tokens, shared_scores]; NULL where there are none
    int64_t shared_weight_stride;
} moek_route_args;

/// place: router ids to ids of experts that live here; what lies elsewhere is -1.
typedef struct moek_place_args {
    int64_t tokens;
    int32_t top_k;
    int32_t num_experts;      // router ids in [0, num_experts) name an expert
    int32_t num_identity;     // ids in [num_experts, num_experts + num_identity): zero experts
    int32_t num_physical;     // bound of physical ids: replicas, else num_experts
    int32_t num_local;        // bound of local ids
    const int32_t *num_valid; // NULL: all tokens; the others get id -1, weight 0
    const void *ids;          // [tokens, top_k] int32 or int64
    moe_dtype id_dtype;
    int64_t id_token_stride; // elements
    const void *weights;     // f32 or bf16; NULL: 1
    moe_dtype weight_dtype;
    int64_t weight_token_stride;
    const int32_t *replica_table; // [num_experts, replica_slots]; NULL: logical = physical
    int64_t replica_stride;
    int32_t replica_slots;
    const int32_t *replica_count; // [num_experts]
    const int32_t *expert_map;    // [num_physical]; NULL: physical = local
    int32_t *router_ids;          // out [tokens, top_k]; an id that names nothing becomes -1
    int32_t *local_ids;           // out [tokens, top_k]
    float *local_weights;         // out [tokens, top_k]
    void *out_ids;                // optional, of out_id_dtype
    moe_dtype out_id_dtype;
    int64_t out_id_stride;
    void *out_weights; // optional, of out_weight_dtype
    moe_dtype out_weight_dtype;
    int64_t out_weight_stride;
    int32_t *load; // optional [num_physical], incremented by the driver
} moek_place_args;

/// sort: slots (t * top_k + j) by expert, stable.
typedef struct moek_sort_args {
    int64_t tokens;
    int32_t top_k;
    int32_t num_experts;      // ids (after expert_map) outside [0, num_experts) are absent
    const int32_t *num_valid; // NULL: all tokens; slots of the others are absent
    const void *ids;          // [tokens, top_k]
    moe_dtype id_dtype;       // int32 or int64
    int64_t id_token_stride;  // elements
    const int32_t
        *expert_map;    // [num_global]: ids are global, negative: remote; NULL: ids are local
    int32_t num_global; // ids outside [0, num_global) are never looked up
    int32_t *offsets;   // out [num_experts + 1]; contiguous only
    int32_t *slots;     // out: position -> slot; [tokens * top_k], or [padded] with block. Filled
                        // with tokens * top_k where no slot lies
    int32_t *positions; // optional out [tokens * top_k]: slot -> position, -1 absent
    void *counts;       // optional out [num_experts]
    moe_dtype count_dtype; // int32 or int64
    // Block-aligned form
    int32_t block;          // 0: contiguous
    int64_t padded;         // moe_sort_padded_size(tokens * top_k, num_experts, block)
    int32_t *block_experts; // out [ceil(padded / block)], -1 past the end
    int32_t *num_padded;    // out [1]: positions that belong to an expert's blocks
} moek_sort_args;

/// What a kernel call does. A driver runs CODES alone, or, for quantisers whose scale spans all
/// rows (moei_quantize_is_global), AMAX over all rows, then SCALE once, then CODES.
typedef enum moek_quantize_stage {
    MOEK_QUANTIZE_CODES,  // scales (where the rows decide them) and codes
    MOEK_QUANTIZE_AMAX,   // raises *amax to the largest |x| of the rows
    MOEK_QUANTIZE_SCALE,  // writes the scale (or the global scale) that *amax gives
    MOEK_QUANTIZE_INVERSE // x = code * scale
} moek_quantize_stage;

/// quantize: rows to codes and scales, and back; docs/quantisers.md.
/// Set all of it to 0, then quant = the resolved descriptor and info = its row.
typedef struct moek_quantize_args {
    moe_quant_desc quant; // resolved
    const moei_quant_info *info;
    moek_quantize_stage stage; // CODES or INVERSE; the driver sets the others in a copy
    // Rows: `batches` times `rows` rows in memory, of which counts[b] (or total[0]) are there.
    int64_t rows, k;
    int32_t batches;       // 1 without counts
    const int32_t *counts; // [batches]; NULL: all rows
    const int32_t *total; // rows to do = min(total[0] * total_rows, rows) where given (device-side)
    int32_t total_rows;   // 0: 1
    uint8_t *x;           // f32, bf16, f16; written by INVERSE alone
    moe_dtype x_dtype;
    int64_t x_row_stride, x_batch_stride; // bytes
    uint8_t *q;                           // codes of quant.elem
    int64_t q_row_stride, q_batch_stride; // bytes
    // Scales: element (batch, row / rows per scale, k / group), in elements of
    // moei_scale_dtype(quant.scale_type); packed: (batch, row, group / 4) in int32. Given scales
    // (STATIC) are read, others written.
    void *scales;
    int64_t scale_batch_stride, scale_row_stride, scale_k_stride;
    float *global_scale; // NVFP4: read; NVFP4_INVERSE: written
    // Where set, row element j is silu(x[j]) * x[up_offset + j]; k counts outputs.
    bool silu_mul;
    bool round_steps;        // silu, and the product, are rounded to x's dtype
    int64_t up_offset;       // elements
    bool zero_absent_scales; // rows past the count: scales are set to 0
    uint32_t *amax;          // AMAX, SCALE: bits of a float, 0 at first; raised by atomic maxima
} moek_quantize_args;

/// How the zero points of n matrices lie: G groups of k in each of N rows.
typedef enum moei_zero_form {
    MOEI_ZERO_BYTES,  // U8 [n, N, G]
    MOEI_ZERO_PAIRS,  // U8 [n, ceil(N/2), G], row 2i in the low nibble
    MOEI_ZERO_NIBBLES // UINT4 [n, N, G]
} moei_zero_form;

/// A stack of n canonical matrices [N, K] with scales, as kernels of layout "row" read it. Strides
/// are in bytes for values, in elements for everything else.
typedef struct moei_matrices {
    const moei_format_info *format;
    int64_t n, k;
    int32_t count;
    moei_weight_layout layout; // PACKED: values holds packed experts, value_e_stride bytes each,
                               // and scales and zeros are NULL; all else is that of the canonical
                               // experts, compact, where a stride of 0 from expert to expert means
                               // that there are no scales, or no zero points
    const uint8_t *values;
    int64_t value_e_stride, value_n_stride; // bytes
    int64_t value_k_stride;                 // bytes; sub-byte types are packed along k: 0
    const void *scales;                     // NULL: none
    moe_dtype scale_dtype;
    int32_t block_n, block_k; // 0: the whole extent
    int64_t scale_e_stride, scale_n_stride, scale_k_stride;
    int32_t scale_parts; // tensor scales and scale2: 1, or 2 = one each for gate and up rows
    const float *scale2; // NULL: none
    int64_t scale2_e_stride;
    int32_t scale2_parts;
    bool scale2_per_row; // a channel scale: scale2_parts is n
    // Gate and up rows: part of row r is r & 1 if interleaved, else r / part_rows. part_rows is n
    // where there are no parts, or blocks of rows run through both.
    bool interleaved_parts;
    int64_t part_rows;
    const uint8_t *zeros; // NULL: the format's zero point
    moei_zero_form zero_form;
    int64_t zero_e_stride, zero_n_stride; // bytes; of pairs: from pair to pair
    const void *bias;                     // NULL: none
    moe_dtype bias_dtype;
    int64_t bias_e_stride;
    const float *act_scale; // static scale of the activations, NULL: none
} moei_matrices;

/// The rows of x: floats, or codes with scales.
typedef struct moei_operand {
    const uint8_t *data;
    moe_dtype dtype;
    int64_t row_stride; // bytes
    const void *scales; // NULL: floats
    moe_dtype scale_dtype;
    int32_t group;            // elements of k per scale; 0: one per row (stride 0: one for all)
    bool packed;              // four e8m0 bytes per int32
    int64_t scale_row_stride; // elements of scale_dtype (packed: of int32)
    int64_t scale_k_stride;
    int64_t batch_stride, scale_batch_stride; // between groups of equal room (no offsets)
    const float *scale2; // NVFP4's global scale, a divisor: acc / scale2[0]; NULL: none
} moei_operand;

/// ggemm: the grouped product; docs/numerics.md#ggemm.
/// Rows come sorted (offsets: group e has rows offsets[e] .. offsets[e + 1] - 1), or in groups of
/// equal room (offsets NULL: row i of group e is row i of x's and y's batch e, for i < counts[e],
/// or i < rows without counts).
typedef struct moek_ggemm_args {
    moei_matrices w;
    moei_operand x;
    const int32_t *offsets;   // [count + 1], or NULL
    const int32_t *counts;    // [count], or NULL
    int64_t rows;             // rows of a group (offsets NULL), else the most that all may have
    const int32_t *row_index; // sorted rows only: x row = row_index[i] / row_divisor; NULL: i
    int32_t row_divisor;      // slot to token; at least 1
    const int32_t *out_index; // sorted rows only: y row; NULL: i
    const float *row_weight;  // NULL: 1; of y row i (sorted), or at e * batch + i * row stride
    int64_t weight_batch_stride, weight_row_stride;
    uint8_t *y;
    moe_dtype y_dtype;
    int64_t y_row_stride, y_batch_stride; // bytes
} moek_ggemm_args;

/// Besides the public activations: y = sigmoid(x), for the gate of shared experts.
#define MOEI_ACT_SIGMOID 100

typedef struct moei_activation_params {
    moe_activation activation;
    float alpha, beta, linear_beta, limit;
} moei_activation_params;

/// glu: activation times up; docs/numerics.md#glu.
typedef struct moek_glu_args {
    moei_activation_params act;
    const uint8_t *x;
    moe_dtype x_dtype;
    int64_t x_row_stride;                 // bytes
    int64_t gate_offset, up_offset, step; // elements within a row: gate j at gate_offset + j*step
    uint8_t *y;
    moe_dtype y_dtype;
    int64_t y_row_stride;  // bytes
    int64_t inter;         // I
    int64_t rows;          // rows in memory; with counts rows of one batch
    int32_t batches;       // 1 without counts
    const int32_t *counts; // [batches]; NULL: all rows
    const int32_t *total;  // rows to do = total[0] where given (device-side), else `rows`
    int64_t x_batch_stride, y_batch_stride; // bytes
} moek_glu_args;

/// combine: a token's slots to its output, in slot order.
typedef struct moek_combine_args {
    int64_t tokens, width;
    int32_t slots_per_token;
    const int32_t *num_valid; // NULL: all tokens
    // Tokens in batches: token t is skipped where t % batch_rows >= batch_counts[t / batch_rows].
    const int32_t *batch_counts; // NULL: no batches
    int64_t batch_rows;
    const uint8_t *slots; // NULL: none
    moe_dtype slot_dtype;
    int64_t slot_token_stride, slot_stride; // bytes
    const void *ids;                        // NULL: every slot is there; negative: absent, not read
    moe_dtype id_dtype;
    int64_t id_token_stride; // elements
    int32_t first_absent;    // ids >= this are absent too (0: no limit)
    const void *weights;     // NULL: 1
    moe_dtype weight_dtype;
    int64_t weight_token_stride; // elements
    // Zero experts: a slot whose router_ids entry lies in [identity_first, identity_first +
    // identity_count) adds identity_weights * x, rounded to slot_dtype, in its place.
    const int32_t *router_ids; // NULL: none
    int32_t identity_first, identity_count;
    const float *identity_weights; // NULL: 1
    int64_t router_token_stride;   // elements, of both
    const uint8_t *x;
    moe_dtype x_dtype;
    int64_t x_token_stride; // bytes
    const uint8_t *bias;    // NULL: none
    moe_dtype bias_dtype;
    // Added after the slots, in this order; s = 0 .. num_shared - 1
    const uint8_t *shared;
    moe_dtype shared_dtype;
    int64_t shared_token_stride, shared_stride; // bytes
    int32_t num_shared;
    bool accumulate;
    bool convert; // one unweighed slot and nothing else: no sum, so that -0 stays -0
    uint8_t *out;
    moe_dtype out_dtype;
    int64_t out_token_stride; // bytes
} moek_combine_args;

// ---- the backend -------------------------------------------------------------------------------

/// Where a call runs.
typedef struct moei_exec {
    const moe_context *ctx;
    void *stream; // the caller's; NULL on host memory
    int32_t device_id;
    void *device;  // what open made; NULL without
    void *plan;    // what plan_prepare made; NULL without, and in calls of single ops
    void *scratch; // scratch_bytes of the plan, aligned to 256; NULL in calls of single ops
    /// 0; else a seed: kernels of several warp roles wait at random, to test their synchronisation.
    uint32_t delay;
} moei_exec;

/// The arguments of any op.
typedef union moei_op_args {
    moek_route_args route;
    moek_place_args place;
    moek_sort_args sort;
    moek_quantize_args quantize;
    moek_ggemm_args ggemm;
    moek_glu_args glu;
    moek_combine_args combine;
} moei_op_args;

/// One op of a run. The steps of a run are listed before any of them is enqueued, so that a backend
/// may run several at once.
typedef struct moei_step {
    moei_op op;
    const moei_kernel *kernel;
    moei_op_args args;
} moei_step;

/// What a benchmark measures against.
typedef enum moei_ceiling {
    MOEI_CEILING_READ, // bytes per second of a long read of device memory
    MOEI_CEILING_F32,  // multiply-adds of plain f32 vector code, times two, per second
    MOEI_CEILING_BF16, // the same of bf16 matrix instructions
    MOEI_CEILING_FP8,  // the same of 8-bit float matrix instructions
    MOEI_NUM_CEILINGS
} moei_ceiling;

/// One product of a plan and the row that runs it.
typedef struct moei_product {
    const char *name; // "gate_up", "down", "shared gate_up", "latent in"...
    moei_ggemm_problem problem;
    const moei_kernel *kernel;
} moei_product;

/// A plan as a backend sees it; valid during the call.
typedef struct moei_plan_info {
    const moe_layer_desc *desc; // defaults resolved
    const moei_product *products;
    int32_t num_products;
} moei_plan_info;

/// Every function may be called from several threads at once. Functions marked optional may be
/// NULL. A failing function has recorded its message (moei_host.fail) and returns the code.
typedef struct moei_backend {
    uint32_t abi; // MOE_BACKEND_ABI; the first member in every version
    const char *name;
    moe_device_type device;
    bool host_memory; // tensors, weights and workspace are memory that the host reads and writes
    const moei_kernel *kernels; // at least one row per op
    size_t num_kernels;
    uint64_t *runs; // one per kernel, 0 at first: the library counts how often each ran

    /// True if the backend can work in this process; fills the ISA bits of its device (those that
    /// its rows speak of) and one line of text either way; where it can work and the capacity is
    /// 1024 bytes or more, further lines, indented by two blanks, may follow.
    bool (*probe)(uint64_t *isa, char *text, size_t capacity);

    /// Optional: writes the names of ISA bits into `text` and returns it. NULL: they are those of
    /// CPUs.
    const char *(*isa_text)(uint64_t isa, char *text, size_t capacity);

    /// Optional: what a context holds of a device. DEVICE, or ARGUMENT for an ordinal that is not
    /// there. close releases it; no plan of the context is left.
    moe_status (*open)(const moe_context *ctx, int32_t device_id, void **device);
    void (*close)(const moe_context *ctx, void *device);

    // Device memory; NULL where host_memory. Complete when they return; never called by a run.
    moe_status (*memory_alloc)(const moei_exec *exec, size_t bytes, void **out);
    void (*memory_free)(const moei_exec *exec, void *memory, size_t bytes);
    moe_status (*memory_copy)(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction);

    /// Optional: refuses a plan that the rows and functions cannot compute exactly, naming both
    /// values and what works; allocates nothing. Errors: UNSUPPORTED, NO_KERNEL.
    moe_status (*plan_check)(const moei_exec *exec, const moei_plan_info *plan);

    /// Optional: the end of moe_plan_create. Loads and configures every kernel that the plan can
    /// run, so that the first run may be captured in a device graph.
    moe_status (*plan_prepare)(const moei_exec *exec, const moei_plan_info *plan, void **out);
    void (*plan_release)(const moei_exec *exec, void *plan);

    /// Optional: bytes of workspace that the backend wants for itself in a run of num_tokens, on
    /// top of the layer's; monotone. SIZE_MAX: overflow.
    size_t (*scratch_bytes)(const moei_exec *exec, const moe_layer_desc *desc, int64_t num_tokens);

    // Packed layouts: values, scales and zero points of an expert in one block of memory, a
    // multiple of 16 bytes. Biases and second-level scales stay as they are. NULL where every row
    // of the table reads MOEI_LAYOUT_ROW.
    /// Of an expert. `m` has no pointers yet. SIZE_MAX: overflow.
    size_t (*packed_bytes)(const moei_kernel *kernel, const moei_matrices *m);
    /// Packs the one expert of `from`, canonical and compact, all in host memory. VALUE, naming the
    /// element, where one cannot be kept exactly; `to` is then undefined.
    moe_status (*pack)(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to);
    /// The inverse, to canonical memory.
    void (*unpack)(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to);

    // The ops. All arguments have been checked; errors are the device's alone. On a device they
    // enqueue on the stream and return: no allocation, no wait.
    moe_status (*route)(const moei_exec *, const moei_kernel *, const moek_route_args *);
    moe_status (*place)(const moei_exec *, const moei_kernel *, const moek_place_args *);
    moe_status (*sort)(const moei_exec *, const moei_kernel *, const moek_sort_args *);
    moe_status (*quantize)(const moei_exec *, const moei_kernel *, const moek_quantize_args *);
    moe_status (*ggemm)(const moei_exec *, const moei_kernel *, const moek_ggemm_args *);
    moe_status (*glu)(const moei_exec *, const moei_kernel *, const moek_glu_args *);
    moe_status (*combine)(const moei_exec *, const moei_kernel *, const moek_combine_args *);

    /// Optional: runs the steps of a layer as the functions above would in this order, bit for bit
    /// in every buffer that the caller of the layer sees; buffers of the workspace between two
    /// steps need not be written where one kernel does both. NULL: one after the other.
    moe_status (*run_steps)(const moei_exec *exec, const moei_step *steps, int32_t count);

    // Device graphs, for checks; all three or none.
    /// Captures what `enqueue` puts on the stream that it is given in a graph, and runs none of it.
    moe_status (*graph_capture)(const moei_exec *exec,
                                moe_status (*enqueue)(void *arg, void *stream), void *arg,
                                void **graph);
    /// Runs a graph once and waits for its end. Memory is what it is now: the graph keeps pointers.
    moe_status (*graph_run)(const moei_exec *exec, void *graph);
    void (*graph_release)(const moei_exec *exec, void *graph);

    // For benchmarks, optional.
    /// Times what `enqueue` puts on the stream that it is given, as the device sees it (captured in
    /// a graph and replayed, where there are graphs): one warm-up, then `repeats` times in seconds.
    moe_status (*time)(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                       void *arg, int32_t repeats, double *seconds);
    /// Measures a ceiling of the device now; UNSUPPORTED where it has no such unit.
    moe_status (*ceiling)(const moei_exec *exec, moei_ceiling which, double *per_second);
} moei_backend;

/// Runs one step by the backend's function for its op.
static inline moe_status moei_step_run(const moei_backend *backend, const moei_exec *exec,
                                       const moei_step *step)
{
    switch (step->op) {
    case MOEI_OP_ROUTE:
        return backend->route(exec, step->kernel, &step->args.route);
    case MOEI_OP_PLACE:
        return backend->place(exec, step->kernel, &step->args.place);
    case MOEI_OP_SORT:
        return backend->sort(exec, step->kernel, &step->args.sort);
    case MOEI_OP_QUANTIZE:
        return backend->quantize(exec, step->kernel, &step->args.quantize);
    case MOEI_OP_GGEMM:
        return backend->ggemm(exec, step->kernel, &step->args.ggemm);
    case MOEI_OP_GLU:
        return backend->glu(exec, step->kernel, &step->args.glu);
    default:
        return backend->combine(exec, step->kernel, &step->args.combine);
    }
}

// ---- plugins -----------------------------------------------------------------------------------

/// What the library offers to a plugin. Valid as long as the process.
typedef struct moei_host {
    uint32_t abi; // MOE_BACKEND_ABI of the library

    // Messages: records the thread's message and returns the code, as moe_fail.
    moe_status (*fail)(moe_status code, const char *format, ...) MOE_PRINTF(2, 3);
    /// One line to the context's log, level 0 (error) to 3 (debug).
    void (*log)(const moe_context *ctx, int level, const char *line);

    // The context's memory (NULL where there is none left) and threads.
    void *(*alloc)(const moe_context *ctx, size_t bytes, size_t align);
    void (*free)(const moe_context *ctx, void *memory, size_t bytes);
    void (*parallel_for)(const moe_context *ctx, size_t n, moe_task_fn task, void *arg);

    // Tables; NULL for a number that they do not hold.
    const char *(*dtype_name)(moe_dtype dtype);
    int (*dtype_bits)(moe_dtype dtype);
    const moei_format_info *(*format)(moe_format format);
    const moei_quant_info *(*quant)(moe_quant_spec spec);
    const moei_arith_info *(*arith)(moei_arith arith);

    /// Elements of k after which a block scale changes; 0: none does, -1: refused.
    int64_t (*ggemm_fold)(const moei_ggemm_problem *problem);
    /// The class of the portable kernels for a problem; MOEI_NUM_ARITH: none.
    moei_arith (*ggemm_arith)(const moei_ggemm_problem *problem);

    /// out[i] = value of element i0 + i of a packed row of any element type, exact.
    void (*load_f32)(moe_dtype dtype, const uint8_t *row, int64_t i0, int64_t n, float *out);
    /// Rounds n values to f32, bf16 or f16, nearest even, NaN canonical.
    void (*store_f32)(moe_dtype dtype, uint8_t *row, int64_t n, const float *in);

    /// Runs an op other than ggemm with the library's own CPU kernel; the arguments must point to
    /// host memory. So a plugin replaces the ops that it wants to.
    moe_status (*cpu_run)(const moei_exec *exec, moei_op op, const void *args);
} moei_host;

/// The one symbol of a plugin. Returns its backend, valid as long as the process, whatever `abi`
/// is: the library compares moei_backend.abi itself. Reads nothing of `host` unless abi is
/// MOE_BACKEND_ABI. NULL refuses, with the reason in host->fail. Called once per file, under the
/// loader's lock: it must not create a context.
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const moei_backend *
moe_backend_entry(const moei_host *host, uint32_t abi);

#ifdef __cplusplus
}
#endif
#endif
