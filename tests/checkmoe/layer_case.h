// SPDX-License-Identifier: Apache-2.0
// A case of the layer checks: a descriptor, weights as codes and as doubles, and the data of single
// tokens ("items"). A run is made from a list of items, so that one case gives batches that are
// split, permuted or mixed with other items, in any layout and with any strides.
#ifndef MOE_CHECKMOE_LAYER_CASE_H
#define MOE_CHECKMOE_LAYER_CASE_H

#include "checkmoe/checkmoe.h"
#include "float64/layer.h"
#include "moe/weights.h"
#include "quant/formats.h"

typedef enum moec_layer_fill {
    MOEC_LAYER_NORMAL,
    MOEC_LAYER_HEAVY,   // channels of x 100 times larger
    MOEC_LAYER_TINY,    // x down to subnormal products
    MOEC_LAYER_SPECIAL, // NaN, infinities, -0 and subnormals in x, logits and weights
    MOEC_LAYER_NUM_FILLS
} moec_layer_fill;

/// A stack of expert matrices in canonical layout, and its values as doubles.
typedef struct moec_stack {
    moe_gemm_desc gemm;
    const moei_format_info *info;
    int32_t count;
    int64_t n, k;
    bool transposed;
    moe_gate_up gate_up; // UNSET: rows without parts
    // Form of the views
    moe_dtype value_view;  // dtype that the view states: the element's, or U8
    bool blocks;           // 4-bit rows as [.., K/32, 16]
    int64_t row_bytes;     // stored bytes of a row (of outputs where transposed)
    int64_t rows;          // stored rows: n, or k where transposed
    int64_t row_stride;    // bytes from row to row
    moe_dtype scale_dtype; // 0: none
    moe_dtype scale_view;  // or U8 for bytes
    bool scale_by_column;  // scales of a column lie together
    int64_t scale_rows, scale_columns;
    int32_t scale_parts;  // tensor scales: per expert
    int32_t scale2_parts; // 0: none; n where gemm.channel_scale is set
    moei_zero_form zero_form;
    moe_dtype bias_dtype;
    moec_guard values, scales, scale2, zeros, bias, act_scale;
    double *dense;      // [count, n, k]
    double *dense_bias; // [count, n]; NULL: none
} moec_stack;

/// A float matrix of the layer itself.
typedef struct moec_linear {
    moe_dtype dtype;
    int64_t n, k; // n 0: absent
    moec_guard values;
    double *dense;
} moec_linear;

typedef struct moec_layer_case {
    // What the descriptor leaves open
    moe_layer_desc desc;
    moec_layer_fill fill;
    int32_t items;       // of a run; item i + items is another in its place, for companions
    bool use_valid;      // TOKENS: rows past num_valid
    bool replicas_alike; // replicas of an expert hold the same weights
    bool misaligned;     // x and out begin at an odd byte
    bool ties;           // logits are small integers
    bool one_expert;     // every token goes to one expert
    bool all_absent;     // given ids name no expert
    char name[32];       // "layer-17"
    char text[640];
    uint64_t seed;

    // Weights
    moec_stack gemm[2], shared[2];
    moec_linear shared_gate, latent_in, latent_out, output_bias;

    // Items, twice `items` of each
    size_t x_bytes, x_scale_bytes; // of a row
    unsigned char *x, *x_scales;
    float x_scale;   // one for all rows (per tensor)
    double *x_dense; // [2 items, H]; of codes: their values
    int32_t logit_columns;
    unsigned char *logits; // of desc.logits_dtype
    int64_t *ids, *token_ids;
    float *weights, *shared_weights, *append_gate; // representable in their dtypes
    int32_t *expert;                               // PLACED: ascending, the same for both halves
    unsigned char *previous;                       // rows of out, where it accumulates
    size_t out_row_elems;                          // elements of an item's result: H, or slots x H

    // Tables of the routing
    float *correction_bias, *scale_tensor;
    int64_t *hash_table; // [vocabulary, k]
    int32_t vocabulary;
    bool hash_wide;
    int32_t *expert_map, *replica_table, *replica_count;
    int32_t replica_slots, physical;
} moec_layer_case;

// ---- drawing ------------------------------------------------------------------------------------

/// Draws a descriptor and what it leaves open; every draw is one that a plan must accept.
/// `number` below MOEC_LAYER_EDGES forces an edge: no token, one token to all experts, H = 1, ...
/// From MOEC_LAYERS_DRAWN on both products have what matrix units multiply as codes.
#define MOEC_LAYER_EDGES  12
#define MOEC_LAYERS_DRAWN 1600
#define MOEC_LAYERS_PAIRS 16
void moec_layer_draw(moec_layer_case *c, moec_rng *rng, int number);

/// Draws weights and items for c->desc. False where memory is short.
bool moec_layer_build(moec_layer_case *c, moe_context *ctx, moec_rng *rng);
void moec_layer_free(moec_layer_case *c);

/// Redraws the data of the routed experts alone (same shapes).
bool moec_layer_redraw_experts(moec_layer_case *c, moec_rng *rng);

/// Experts whose weights the case has.
int32_t moec_layer_local_count(const moec_layer_case *c);

/// Slots of a token: top_k and the appended experts.
int32_t moec_layer_slots(const moec_layer_case *c);

/// Whether a token's bits may depend on its index in the batch: replicas that differ.
bool moec_layer_by_index(const moec_layer_case *c);

/// Whether the appended experts have weights, or 1.
static inline bool moec_layer_has_append_gate(const moec_layer_case *c)
{
    return c->desc.route.append_shared > 0 && c->seed % 2 == 1;
}

/// Whether x is f32, bf16 or f16.
bool moec_is_float(moe_dtype dtype);

/// True where a quantiser's scale spans tokens, so that a run is all that is promised.
bool moec_layer_spans_tokens(const moec_layer_case *c);

/// Resolved dtypes.
moe_dtype moec_layer_inter_dtype(const moec_layer_case *c);
moe_dtype moec_layer_partial_dtype(const moec_layer_case *c);
moe_dtype moec_layer_out_dtype(const moec_layer_case *c);

// ---- weights ------------------------------------------------------------------------------------

/// Allocates and draws a stack; `fill` SPECIAL puts a few NaN codes in.
bool moec_stack_build(moec_stack *m, moec_rng *rng, moec_layer_fill fill);
bool moec_stack_redraw(moec_stack *m, moec_rng *rng, moec_layer_fill fill);
void moec_stack_free(moec_stack *m);

/// Makes expert `to` a copy of `from`.
void moec_stack_copy_expert(moec_stack *m, int32_t from, int32_t to);

/// Views of experts [first, first + count); static activation scales included.
moe_matrix_source moec_stack_source(const moec_stack *m, int32_t first, int32_t count);

/// Gate or up alone (part 0: the rows that come first) as a matrix of its own, compact, zero points
/// a byte each, in `memory` of moec_stack_split_bytes. The public op knows no parts, so that it
/// must be given two matrices where parts have scales of their own; blocks of interleaved rows have
/// no parts.
bool moec_stack_must_split(const moec_stack *m);
bool moec_stack_can_split(const moec_stack *m);
size_t moec_stack_split_bytes(const moec_stack *m);
moe_matrix_source moec_stack_split(const moec_stack *m, int part, void *memory);

/// Views of everything, or (count 1) of one routed expert and nothing else.
moe_weights_source moec_layer_source(const moec_layer_case *c);
moe_weights_source moec_layer_expert_source(const moec_layer_case *c, int32_t expert);

/// Hash of all weight data.
uint64_t moec_layer_hash(const moec_layer_case *c);

// ---- runs ---------------------------------------------------------------------------------------

/// How the memory of a run is laid out; the results must not depend on it.
typedef struct moec_batch_style {
    bool at_end;          // guard pages after the data, else before
    unsigned char poison; // of workspace, padding and absent rows of inputs and out
    int32_t extra;        // rows past those that are there, elements past a row
} moec_batch_style;

typedef struct moec_batch {
    const moec_layer_case *c;
    const int32_t *items;
    int32_t n;
    moe_run_args args;
    int64_t rows;   // of a group: tokens, or rows of an expert
    int32_t groups; // BATCHED: experts; else 1
    int32_t *group; // [n]: where the items lie
    int64_t *row;   // [n]: within the group
    moec_batch_style style;
    moec_guard x, x_scales, logits, ids, weights, shared_weights, token_ids, append_gate;
    moec_guard correction_bias, scale_tensor, hash_table, expert_map, replica_table, replica_count;
    moec_guard counts, offsets, num_valid;
    moec_guard out, out_ids, out_weights, out_counts, load, workspace;
    unsigned char *before; // copies of out, out_ids and out_weights as they were
    uint64_t inputs;       // hash
    size_t workspace_bytes;
} moec_batch;

/// Lays the items out as the descriptor says. PLACED: they must be in the order of their experts.
bool moec_batch_build(moec_batch *r, const moec_layer_case *c, const int32_t *items, int32_t n,
                      const moec_batch_style *style);
void moec_batch_free(moec_batch *r);

/// Runs; the workspace is exactly as large as the plan says, and poisoned. A second call puts the
/// outputs back first.
moe_status moec_batch_execute(moec_batch *r, const moe_plan *plan, const moe_weights *weights);

/// Copies item results out, [n, out_row_elems] of out's dtype.
void moec_batch_collect(const moec_batch *r, unsigned char *results);

/// True if nothing but the items' elements was written, and no input; else says where in `what`.
bool moec_batch_intact(const moec_batch *r, const char **what);

size_t moec_layer_result_bytes(const moec_layer_case *c, int32_t n);

/// Puts a batch where the context of a plan works: allocates and poisons its workspace, puts the
/// outputs back, and copies all of it to the device. `args` and `workspace` are what to run with.
struct moec_twins;
moe_status moec_batch_up(moec_batch *r, struct moec_twins *twins, const moe_plan *plan,
                         moe_run_args *args, void **workspace);

/// Takes over what is in the memory of another batch of the case, inputs and outputs; views stay.
/// False where the two batches are not laid out alike: nothing is copied.
bool moec_batch_take(moec_batch *r, const moec_batch *from);

/// Whether all outputs of two batches that are laid out alike are the same bytes; names one that is
/// not.
bool moec_batch_same_outputs(const moec_batch *a, const moec_batch *b, const char **what);

// ---- what must come out -------------------------------------------------------------------------

/// Ids and f32 weights of the items at their positions, as a router numbers experts.
typedef struct moec_routing {
    int32_t *ids;   // [n, slots]
    float *weights; // [n, slots]
    float *shared;  // [n, shared_scores]
} moec_routing;

/// moe_route, or the given ids and weights.
moe_status moec_layer_route(const moe_context *ctx, const moec_layer_case *c, const int32_t *items,
                            int32_t n, moec_routing *out);
void moec_routing_free(moec_routing *r);

/// Physical and local expert of a router id at a position; -1: not here.
int32_t moec_layer_physical(const moec_layer_case *c, int64_t position, int32_t id);
int32_t moec_layer_local(const moec_layer_case *c, int64_t position, int32_t id);

/// The layer as a composition of the public ops on buffers of its own.
moe_status moec_layer_compose(const moe_context *ctx, const moec_layer_case *c,
                              const int32_t *items, int32_t n, unsigned char *results);

/// What a comparison with float64 found.
typedef struct moec_layer_stats {
    double ratio;                   // largest error / bound
    unsigned long elements, unsure; // compared; of these without a bound
    unsigned long marginal;         // above half their bound
    double *values, *bounds; // in: where each element's go, [n, out_row_elems]; NULL: nowhere
} moec_layer_stats;

/// Compares the results of items (at positions 0 ..) with float64, where moec_layer_judged.
/// `routing` settles choices that float64 cannot. `stats` begins as 0, or with values and bounds
/// set; these are such that an element exceeds its bound only where the comparison says so.
bool moec_layer_judge(const moec_layer_case *c, const moe_plan *plan, const int32_t *items,
                      int32_t n, const moec_routing *routing, const unsigned char *results,
                      moec_layer_stats *stats);

/// True where the float64 statement covers the case: nothing but the caller quantises.
bool moec_layer_judged(const moec_layer_case *c);

/// What a check of the outputs of a routing found.
typedef struct moec_routing_verdict {
    char text[256];          // what is wrong
    bool weights;            // it is a weight
    double *values, *bounds; // in: where float64's weights go, [n, slots]; NULL: nowhere
} moec_routing_verdict;

/// Checks out_ids, out_weights, out_counts and load of a run against plain statements. `verdict`
/// begins as 0, or with values and bounds set; these are such that a weight exceeds its bound only
/// where the check says so.
bool moec_layer_check_routing(const moec_batch *r, const moec_routing *routing,
                              moec_routing_verdict *verdict);

#endif
