// SPDX-License-Identifier: Apache-2.0
// What a plan and a layer's weights hold; shared by plan.c, layer.c, weights.c and explain.c.
#ifndef MOEI_API_PLAN_INTERNAL_H
#define MOEI_API_PLAN_INTERNAL_H

#include "core/arena.h"
#include "core/check.h"
#include "core/tensor.h"
#include "moe/plan.h"
#include "moe/weights.h"
#include "ops/combine.h"
#include "ops/ggemm.h"
#include "ops/glu.h"
#include "ops/operand.h"
#include "ops/place.h"
#include "ops/quantize.h"
#include "ops/route.h"
#include "ops/sort.h"

/// One stack of expert MLPs: the routed experts, or the shared ones. The two run the same steps.
typedef struct moei_mlp {
    int32_t count;
    int64_t width; // inputs and outputs of an expert: H, or L where experts are latent
    int64_t inter;
    int64_t rows1; // outputs of the first product: 2 * inter, or inter without a gate
    moei_activation_params act;
    moe_gate_up gate_up;
    bool transposed;
    moe_gemm_desc gemm[2]; // quantisers resolved
    moe_dtype operand[2];  // element type that each product reads
    const moei_kernel *kernel[2];
    /// What runs weights that lie canonically: kernel[] itself, or the row of its class that costs
    /// least; NULL where the class has none.
    const moei_kernel *canonical[2];
} moei_mlp;

/// Linear maps over all tokens, in float weights.
typedef enum moei_linear {
    MOEI_LINEAR_LATENT_IN,
    MOEI_LINEAR_LATENT_OUT,
    MOEI_LINEAR_SHARED_GATE,
    MOEI_NUM_LINEAR
} moei_linear;

struct moe_plan {
    const moe_context *ctx;
    moe_layer_desc desc; // defaults resolved
    moei_mlp routed, shared;
    const moei_kernel *linear[MOEI_NUM_LINEAR]; // NULL where the plan has no such map
    moe_determinism level;
    uint32_t flags;
    size_t max_workspace;
    void *prepared; // what the backend's plan_prepare made
};

/// A product of a plan, whose kernel is selected by problem.
typedef struct moei_plan_step {
    const char *name; // "gate_up", "down", "shared gate_up", "shared down", "latent in"...
    int slot;         // 0, 1 routed; 2, 3 shared; 4 + a moei_linear
    moei_ggemm_problem problem;
} moei_plan_step;

#define MOEI_PLAN_STEPS (4 + MOEI_NUM_LINEAR)

/// The products of a plan, in order; returns how many.
int moei_plan_steps(const moe_plan *plan, moei_plan_step steps[MOEI_PLAN_STEPS]);

/// The kernel that a plan runs for a step.
static inline const moei_kernel *moei_plan_kernel(const moe_plan *plan, const moei_plan_step *step)
{
    return step->slot < 2   ? plan->routed.kernel[step->slot]
           : step->slot < 4 ? plan->shared.kernel[step->slot - 2]
                            : plan->linear[step->slot - 4];
}

/// The one that it runs on wrapped weights; NULL: they cannot be wrapped.
static inline const moei_kernel *moei_plan_canonical(const moe_plan *plan,
                                                     const moei_plan_step *step)
{
    return step->slot < 2   ? plan->routed.canonical[step->slot]
           : step->slot < 4 ? plan->shared.canonical[step->slot - 2]
                            : plan->linear[step->slot - 4];
}

/// True where a run of the plan calls an op other than a product.
bool moei_plan_uses(const moe_plan *plan, moei_op op);

/// True where the second product writes out itself: rows stay where they are, nothing is added.
static inline bool moei_plan_writes_out_directly(const moe_plan *plan)
{
    return plan->desc.out_mode == MOE_OUT_LAYOUT && plan->desc.accumulate == 0 &&
           plan->desc.out_dtype == plan->desc.partial_dtype;
}

/// False where x arrives as codes.
static inline bool x_is_float(const moe_plan *plan)
{
    return (MOEI_DTYPE_BIT(plan->desc.x_dtype) & MOEI_DTYPES_FLOAT) != 0;
}

/// Checks a descriptor, resolves its defaults and selects kernels; allocates nothing. `call` heads
/// messages.
moe_status moei_plan_init(const moe_context *ctx, const moe_layer_desc *desc, const char *call,
                          moe_plan *plan);

/// Bytes of the workspace for num_tokens; SIZE_MAX on overflow. (prepare.c lists the buffers.)
size_t moei_layer_workspace(const moe_plan *plan, int64_t num_tokens);

/// True where the step's input comes from a quantiser that the layer runs (not the caller's codes).
static inline bool moei_mlp_quantizes(const moei_mlp *mlp, int gemm)
{
    return mlp->gemm[gemm].act.spec != MOE_QUANT_NONE;
}

/// A layer's weights. Packed ones lie in the caller's memory in canonical, compact form.
struct moe_weights {
    const moe_plan *plan;
    size_t self_bytes;
    bool wrapped;
    bool adopted; // the packed bytes are the caller's, and not written
    moei_matrices gemm[2];
    moei_matrices shared[2];
    moei_matrices shared_gate, latent_in, latent_out; // float formats, one matrix each
    void *output_bias;
    moe_dtype output_bias_dtype;
    float *act_scale[4]; // packed copies of the given activation scales: gemm, then shared; [2] is
                         // [0] where x arrives as codes, which have one scale
    uint32_t agreed[4];  // their bits as packing calls gave them; 0: none yet
    bool has_shared[2], has_shared_gate, has_latent_in, has_latent_out, has_output_bias;
    unsigned char has_expert[]; // [local experts]: bit 0 gate_up, bit 1 down
};

/// STATE, naming what is missing, unless every tensor that the plan calls for is there.
moe_status moei_weights_check_complete(const moe_weights *weights, const char *call);

#endif
