// SPDX-License-Identifier: Apache-2.0
// The CPU backend: its table of kernels and vtable.
#include "backends/cpu/cpu.h"

#include <stdio.h>

#include "backends/cpu/packed.h"
#include "backends/cpu/rescue.h"
#include "core/cpus.h"
#include "core/isa.h"
#include "ops/combine.h"
#include "ops/ggemm.h"
#include "ops/glu.h"
#include "ops/place.h"
#include "ops/quantize.h"
#include "ops/route.h"
#include "ops/sort.h"

#define MOEI_KERNEL_PLAIN 0

// Products take any element types; what tells their rows apart is the arithmetic.
static bool chain_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why)
{
    const moei_arith need = moei_ggemm_arith(problem);
    if (need != kernel->arith) {
        const int64_t fold = moei_ggemm_fold(problem);
        *why = need == MOEI_NUM_ARITH
                   ? (moei_whynot){MOEI_WHYNOT_FOLD, fold, moei_arith_get(kernel->arith)->chunk}
                   : (moei_whynot){MOEI_WHYNOT_ARITH, (int64_t)need, (int64_t)kernel->arith};
        return false;
    }
    return true;
}

// Cycles: sixteen multiply-adds in one at best. The portable kernels lose most of that to decoding
// weights one by one, and all of it where fmaf is a library call.
static double product_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    const double madds = (double)problem->m_max * (double)problem->n * (double)problem->k;
    if ((kernel->flags & MOEI_KERNEL_REF) == 0) {
        return madds / 16.0;
    }
    return kernel->isa != 0 ? madds / 2.0 : madds * 22.0;
}

// Classes of matrix units: bf16 times bf16, or times MXFP4. A row of bytes that ends in half of one
// has spare bits, which tiles would multiply. At level KERNEL a product has one class on every
// machine, which is that of chain_supports.
static bool amx_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                         moei_whynot *why)
{
    const bool four_bits = kernel->arith == MOEI_ARITH_AMX_BF16_B32;
    const moe_format format = four_bits ? MOE_FORMAT_MXFP4 : MOE_FORMAT_BF16;
    if (problem->x_dtype != MOE_BF16) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, problem->x_dtype, MOE_BF16};
        return false;
    }
    if (problem->gemm->weight_format != format) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, problem->gemm->weight_format, format};
        return false;
    }
    if (four_bits && problem->k % 2 != 0) {
        *why = (moei_whynot){MOEI_WHYNOT_ALIGNMENT, problem->k, 2};
        return false;
    }
    if (problem->level == MOE_DET_KERNEL) {
        *why = (moei_whynot){MOEI_WHYNOT_LEVEL, MOE_DET_BATCH, MOE_DET_KERNEL};
        return false;
    }
    return true;
}

// The class is for machines with matrix units: elsewhere its rows are there to give the same bits,
// and lose to the strict ones. Where those units are, a plan and an op on canonical weights both
// have the class.
static double amx_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    if ((kernel->isa & MOEI_ISA_AMX_BF16) == 0) {
        return 2.0 * product_cost(kernel, problem);
    }
    return product_cost(kernel, problem) * (kernel->layout == MOEI_LAYOUT_PACKED ? 0.1 : 0.9);
}

#ifdef MOE_HAVE_AVX2
// Packed weights of any format that has a packed form.
static bool packed_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                            moei_whynot *why)
{
    const moe_gemm_desc *gemm = problem->gemm;
    const moei_format_info *format = moei_format(gemm->weight_format);
    if (!moei_cpu_packed_takes(format, moei_gemm_block_k(format, gemm))) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, gemm->weight_format, MOE_FORMAT_BF16};
        return false;
    }
    return chain_supports(kernel, problem, why);
}

// Less than that of canonical weights, which are turned before they are multiplied.
static double packed_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    return product_cost(kernel, problem) * 0.75;
}
#endif
#if defined(MOE_HAVE_AVX2) || defined(MOE_HAVE_NEON)

// Codes of x with a power of two per 32 k (int8: or per 128), times integers of a packed layout:
// exact in integers.
static bool integers_support(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                             bool int16, moei_whynot *why)
{
    const moe_gemm_desc *gemm = problem->gemm;
    const moei_format_info *format = moei_format(gemm->weight_format);
    const moe_dtype elem = int16 ? MOE_I16 : MOE_I8;
    const bool four_bits = format->elem == MOE_E2M1 || format->elem == MOE_UINT4;
    const bool bytes = format->elem == MOE_I8 || format->elem == MOE_U8;
    const bool blocks = kernel->arith == MOEI_ARITH_FMA_B64 || kernel->arith == MOEI_ARITH_FMA_B128;
    moe_quant_desc act = gemm->act;
    moei_quant_resolve(&act);
    if (problem->x_dtype != elem) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, problem->x_dtype, elem};
        return false;
    }
    if (!(act.group == MOEI_CPU_RECORD || (act.group == 128 && !int16)) ||
        (act.scale_type != MOE_SCALE_E8M0 && act.scale_type != MOE_SCALE_UE8M0_PACKED)) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_QUANT, gemm->act.spec,
                             int16 ? MOE_QUANT_I16B32 : MOE_QUANT_I8B32};
        return false;
    }
    if (!(four_bits || (bytes && !int16)) || (format->elem == MOE_E2M1 && blocks) ||
        !moei_cpu_packed_takes(format, moei_gemm_block_k(format, gemm))) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, gemm->weight_format, MOE_FORMAT_MXFP4};
        return false;
    }
    return chain_supports(kernel, problem, why);
}

static bool i8_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                        moei_whynot *why)
{
    return integers_support(kernel, problem, false, why);
}

static bool i16_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                         moei_whynot *why)
{
    return integers_support(kernel, problem, true, why);
}

// Cycles, as those of product_cost: vpmaddubsw multiplies 32 codes, two of them or vpmaddwd 16;
// sdot 16 where fmla multiplies 4.
static double i8_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    return product_cost(kernel, problem) / 3.0;
}

static double i16_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    return product_cost(kernel, problem) / 2.0;
}
#endif

#define MOE_KERNEL(op, name, isa, isa_name, mr, nr, kr, layout, arith, flags, supports, cost)      \
    moek_##op##_fn moek_##op##_##name;
#include "backends/cpu/kernels.def"
#undef MOE_KERNEL

#define OP_route    MOEI_OP_ROUTE
#define OP_place    MOEI_OP_PLACE
#define OP_sort     MOEI_OP_SORT
#define OP_quantize MOEI_OP_QUANTIZE
#define OP_ggemm    MOEI_OP_GGEMM
#define OP_glu      MOEI_OP_GLU
#define OP_combine  MOEI_OP_COMBINE

static const moei_kernel kernels[] = {
#define MOE_KERNEL(op, name, isa, isa_name, mr, nr, kr, layout, arith, flags, supports, cost)      \
    {"moek_" #op "_" #name,                                                                        \
     OP_##op,                                                                                      \
     isa,                                                                                          \
     &isa_name[2],                                                                                 \
     mr,                                                                                           \
     nr,                                                                                           \
     kr,                                                                                           \
     MOEI_LAYOUT_##layout,                                                                         \
     MOEI_ARITH_##arith,                                                                           \
     MOEI_KERNEL_##flags,                                                                          \
     (moei_kernel_fn)moek_##op##_##name,                                                           \
     supports,                                                                                     \
     cost,                                                                                         \
     0},
#include "backends/cpu/kernels.def"
#undef MOE_KERNEL
};

#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

static uint64_t runs[NUM_KERNELS];

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    char names[128];
    *isa = moei_isa_detect();
    (void)snprintf(text, capacity, "%s, %d CPUs", moei_isa_text(*isa, names, sizeof names),
                   moei_cpu_count());
    return true;
}

const moei_backend moei_backend_cpu = {
    .abi = MOE_BACKEND_ABI,
    .name = "cpu",
    .device = MOE_DEVICE_CPU,
    .host_memory = true,
    .kernels = kernels,
    .num_kernels = NUM_KERNELS,
    .runs = runs,
    .probe = probe,
    .packed_bytes = moei_cpu_packed_bytes,
    .pack = moei_cpu_pack,
    .unpack = moei_cpu_unpack,
    .route = moei_cpu_route,
    .place = moei_cpu_place,
    .sort = moei_cpu_sort,
    .quantize = moei_cpu_quantize,
    .ggemm = moei_cpu_ggemm,
    .glu = moei_cpu_glu,
    .combine = moei_cpu_combine,
    .run_steps = moei_cpu_run_steps,
    .plan_prepare = moei_cpu_plan_prepare,
    .plan_release = moei_cpu_plan_release,
    .ceiling = moei_cpu_ceiling,
};
