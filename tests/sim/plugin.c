// SPDX-License-Identifier: Apache-2.0
// Backend "sim": the device bodies on the host, as a plugin. Rows __sim run them; rows __host are
// the library's own CPU kernels, so that `moe check --device ext` compares the two bit for bit. It
// compares products with the CPU's rows of their class by itself.
#include <stdio.h>

#include "sim/sim.h"

static const moei_host *host;

moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args)
{
    char text[256];
    (void)exec;
    if (moei_sim_launch(&moei_sim_bodies[body], grid, args, text, sizeof text)) {
        return MOE_OK;
    }
    (void)fprintf(stderr, "sim: %s\n", text); // checks of kernel rows look at results alone
    return host->fail(MOE_E_DEVICE, "sim: %s", text);
}

// ---- ops ---------------------------------------------------------------------------------------

typedef moe_status run_fn(const moei_exec *, const moei_kernel *, const void *);

// Each op runs what its row names.
#define OP(op)                                                                                     \
    static moe_status op(const moei_exec *exec, const moei_kernel *kernel,                         \
                         const moek_##op##_args *args)                                             \
    {                                                                                              \
        return ((run_fn *)kernel->fn)(exec, kernel, args);                                         \
    }                                                                                              \
    static moe_status op##_sim(const moei_exec *exec, const moei_kernel *kernel, const void *args) \
    {                                                                                              \
        return moei_gpu_##op(exec, kernel, (const moek_##op##_args *)args);                        \
    }
#define HOST(op, OP)                                                                               \
    static moe_status op##_host(const moei_exec *exec, const moei_kernel *kernel,                  \
                                const void *args)                                                  \
    {                                                                                              \
        (void)kernel;                                                                              \
        return host->cpu_run(exec, MOEI_OP_##OP, args);                                            \
    }
OP(route)
OP(place)
OP(sort)
OP(quantize)
OP(ggemm)
OP(glu)
OP(combine)
HOST(route, ROUTE)
HOST(place, PLACE)
HOST(sort, SORT)
HOST(quantize, QUANTIZE)
HOST(glu, GLU)
HOST(combine, COMBINE)

static bool ggemm_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why)
{
    return moei_gpu_ggemm_supports(host, kernel, problem, why);
}

#define ROW(id, row, function)                                                                     \
    {                                                                                              \
        .name = "moek_" row, .op = MOEI_OP_##id, .isa_name = "sim",                                \
        .fn = (moei_kernel_fn)(function)                                                           \
    }
#define PRODUCT(suffix, class)                                                                     \
    {                                                                                              \
        .name = "moek_ggemm_any_any_any__sim_" suffix, .op = MOEI_OP_GGEMM, .isa_name = "sim",     \
        .arith = MOEI_ARITH_##class, .flags = MOEI_KERNEL_REF, .fn = (moei_kernel_fn)ggemm_sim,    \
        .supports = ggemm_supports                                                                 \
    }
static const moei_kernel kernels[] = {
    ROW(ROUTE, "route_f32_any__sim", route_sim),
    ROW(ROUTE, "route_f32_any__host", route_host),
    ROW(PLACE, "place_any__sim", place_sim),
    ROW(PLACE, "place_any__host", place_host),
    ROW(SORT, "sort_i32__sim", sort_sim),
    ROW(SORT, "sort_i32__host", sort_host),
    ROW(QUANTIZE, "quantize_any_any__sim", quantize_sim),
    ROW(QUANTIZE, "quantize_any_any__host", quantize_host),
    ROW(GLU, "glu_any_any__sim", glu_sim),
    ROW(GLU, "glu_any_any__host", glu_host),
    ROW(COMBINE, "combine_any_any__sim", combine_sim),
    ROW(COMBINE, "combine_any_any__host", combine_host),
    PRODUCT("c256", FMA_C256),
    PRODUCT("b16", FMA_B16),
    PRODUCT("b32", FMA_B32),
    PRODUCT("b64", FMA_B64),
    PRODUCT("b128", FMA_B128),
    PRODUCT("i32", I32),
};
#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

static uint64_t runs[NUM_KERNELS];

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    *isa = 0;
    (void)snprintf(text, capacity, "device bodies as fibers on the host");
    return true;
}

const moei_backend *moe_backend_entry(const moei_host *table, uint32_t abi)
{
    static const moei_backend backend = {
        .abi = MOE_BACKEND_ABI,
        .name = "sim",
        .device = MOE_DEVICE_EXT,
        .host_memory = true,
        .kernels = kernels,
        .num_kernels = NUM_KERNELS,
        .runs = runs,
        .probe = probe,
        .route = route,
        .place = place,
        .sort = sort,
        .quantize = quantize,
        .ggemm = ggemm,
        .glu = glu,
        .combine = combine,
    };
    if (abi == MOE_BACKEND_ABI) {
        host = table;
    }
    return &backend;
}
