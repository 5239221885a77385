// SPDX-License-Identifier: Apache-2.0
// The CPU backend: its table of kernels and vtable.
#include "backends/cpu/cpu.h"

#include <stdio.h>

#include "backends/cpu/packed.h"
#include "backends/cpu/rescue.h"
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
