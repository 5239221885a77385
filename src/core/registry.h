// SPDX-License-Identifier: Apache-2.0
// Kernels as data: the descriptor of a row, what a step asks of one, and the selection over a
// table of rows. Nothing registers itself; a backend's kernels.def is the list.
#ifndef MOEI_CORE_REGISTRY_H
#define MOEI_CORE_REGISTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "moe/plan.h"

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

const char *moei_op_name(moei_op op);

typedef enum moei_arith {
#define MOE_ARITH(ID, name, bits, truncating, products, chunk, consistent, text) MOEI_ARITH_##ID,
#include "core/arith.def"
#undef MOE_ARITH
    MOEI_NUM_ARITH
} moei_arith;

typedef struct moei_arith_info {
    const char *name;
    int fraction_bits;
    bool truncating;
    int products_per_step;
    int chunk; // 0: all of K
    bool consistent;
    const char *text;
} moei_arith_info;

const moei_arith_info *moei_arith_get(moei_arith arith);

typedef enum moei_whynot_code {
#define MOE_WHYNOT(ID, kind, text) MOEI_WHYNOT_##ID,
#include "core/whynot.def"
#undef MOE_WHYNOT
    MOEI_NUM_WHYNOT
} moei_whynot_code;

/// A refusal: what is there and what would be needed.
typedef struct moei_whynot {
    moei_whynot_code code;
    int64_t have, need;
} moei_whynot;

/// Writes a refusal's text, e.g. "input is f16, the kernel takes bf16".
const char *moei_whynot_text(const moei_whynot *why, char *buffer, size_t capacity);

/// One grouped product, as selection sees it.
typedef struct moei_ggemm_problem {
    int64_t m_max, n, k;
    int32_t experts;
    const moe_gemm_desc *gemm;
    moe_dtype x_dtype; // element type of the operand: a float, or the codes of gemm->act
    moe_dtype y_dtype;
    bool transposed;
} moei_ggemm_problem;

typedef void (*moei_kernel_fn)(void);

/// Layouts of packed weights that kernels read; "row" is canonical and needs no packing.
typedef enum moei_weight_layout { MOEI_LAYOUT_ROW } moei_weight_layout;

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
} moei_kernel;

enum {
    MOEI_KERNEL_GRAPH_SAFE = 1, // may be captured in a device graph
    MOEI_KERNEL_REF = 2         // the portable reference
};

/// First kernel of least cost of `op` that runs with `isa` and supports the problem (NULL: none
/// needed). Returns its index, or -1 and the last refusal.
int moei_registry_select(const moei_kernel *kernels, size_t count, moei_op op, uint64_t isa,
                         const moei_ggemm_problem *problem, moei_whynot *why);

/// The verdict on one row: true, or false and the refusal.
bool moei_registry_supports(const moei_kernel *kernel, uint64_t isa,
                            const moei_ggemm_problem *problem, moei_whynot *why);

#endif
