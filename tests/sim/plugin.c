// SPDX-License-Identifier: Apache-2.0
// Backend "sim": the device bodies on the host, as a plugin. `moe check --device ext` compares
// every row with the CPU's own, bit for bit. With MOE_SIM_ARCH, gfx942 or gfx950, the rows of AMD's
// matrix units are there, too, as src/backends/hip has them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/products.h"

const moei_host *moei_hip_host; // as the files of hip/ call it

// ---- launches ----------------------------------------------------------------------------------

/// A launch as a device graph holds it: grid and arguments are those of its capture.
typedef struct launch {
    struct launch *next;
    const moei_sim_body *body;
    moei_gpu_grid grid;
    uint32_t delay;
    uint8_t args[]; // args_bytes of the body
} launch;

typedef struct sim_graph {
    launch *first, **end; // end: where the next one goes
} sim_graph;

static _Thread_local sim_graph *captured; // takes the launches; NULL: they run

static moe_status run(const moei_sim_body *body, moei_gpu_grid grid, const void *args,
                      uint32_t delay)
{
    char text[256];
    if (moei_sim_launch(body, grid, args, delay, text, sizeof text)) {
        return MOE_OK;
    }
    (void)fprintf(stderr, "sim: %s\n", text); // checks of kernel rows look at results alone
    return moei_hip_host->fail(MOE_E_DEVICE, "sim: %s", text);
}

// Another size for each of the orders of threads that tests ask for; one of them has no clusters.
uint32_t moei_gpu_cluster_blocks(const moei_exec *exec)
{
    static const uint32_t blocks[] = {MOEI_SIM_MAX_CLUSTER, 1, 4};
    const char *order = getenv("MOE_SIM_ORDER");
    (void)exec;
    return blocks[order != NULL ? strtoul(order, NULL, 10) % 3 : 0];
}

static moe_status record(const moei_sim_body *body, moei_gpu_grid grid, const void *args,
                         uint32_t delay)
{
    launch *made = malloc(sizeof *made + body->args_bytes);
    if (made == NULL) {
        return moei_hip_host->fail(MOE_E_NO_MEMORY, "sim: no memory for a graph");
    }
    *made = (launch){.body = body, .grid = grid, .delay = delay};
    memcpy(made->args, args, body->args_bytes);
    *captured->end = made;
    captured->end = &made->next;
    return MOE_OK;
}

static moe_status take(const moei_exec *exec, const moei_sim_body *body, moei_gpu_grid grid,
                       const void *args)
{
    return captured != NULL ? record(body, grid, args, exec->delay)
                            : run(body, grid, args, exec->delay);
}

moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args)
{
    return take(exec, &moei_sim_bodies[body], grid, args);
}

// ---- AMD's matrix units ------------------------------------------------------------------------

// What rows of the machine ask for.
static uint64_t isa_in_hand(void)
{
    const char *arch = getenv("MOE_SIM_ARCH");
    const uint64_t families = MOEI_HIP_ANY | MOEI_HIP_MATRIX_BF16 | MOEI_HIP_DECODES |
                              MOEI_HIP_MATRIX_FP8 | MOEI_HIP_MATRIX_MX;
    return arch == NULL                  ? 0
           : strcmp(arch, "gfx942") == 0 ? MOEI_HIP_CDNA3 | families
           : strcmp(arch, "gfx950") == 0 ? MOEI_HIP_CDNA4 | families
                                         : 0;
}

moe_status moei_hip_launch_mfma(const moei_exec *exec, moei_hip_mfma_kernel kernel,
                                moei_gpu_grid grid, moei_hip_mfma_args *args)
{
    static const uint64_t isas[MOEI_HIP_NUM_MFMA] = {
#define MOE_HIP_MFMA(id, name, source, isa, ...) MOEI_HIP_##isa,
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA
    };
    const uint64_t isa = isa_in_hand();
    const uint32_t lds = (isa & MOEI_HIP_CDNA4) != 0 ? 160 << 10 : 64 << 10;
    if ((isas[kernel] & isa) == 0 || grid.shared > lds) {
        return moei_hip_host->fail(MOE_E_DEVICE,
                                   "sim: %s is of another machine, or %u bytes of "
                                   "LDS are more than it has",
                                   moei_sim_mfma[kernel].name, grid.shared);
    }
    args->launch = (moei_hip_launch){.threads = grid.threads, .blocks = grid.blocks};
    return take(exec, &moei_sim_mfma[kernel], grid, args);
}

// ---- graphs ------------------------------------------------------------------------------------

static void graph_release(const moei_exec *exec, void *graph)
{
    sim_graph *g = graph;
    (void)exec;
    while (g->first != NULL) {
        launch *next = g->first->next;
        free(g->first);
        g->first = next;
    }
    free(g);
}

static moe_status graph_capture(const moei_exec *exec,
                                moe_status (*enqueue)(void *arg, void *stream), void *arg,
                                void **graph)
{
    sim_graph *g = malloc(sizeof *g);
    if (g == NULL) {
        return moei_hip_host->fail(MOE_E_NO_MEMORY, "sim: no memory for a graph");
    }
    *g = (sim_graph){NULL, &g->first};
    captured = g;
    const moe_status status = enqueue(arg, NULL);
    captured = NULL;
    if (status != MOE_OK) {
        graph_release(exec, g);
        return status;
    }
    *graph = g;
    return MOE_OK;
}

static moe_status graph_run(const moei_exec *exec, void *graph)
{
    const sim_graph *g = graph;
    moe_status status = MOE_OK;
    (void)exec;
    for (const launch *l = g->first; l != NULL && status == MOE_OK; l = l->next) {
        status = run(l->body, l->grid, l->args, l->delay);
    }
    return status;
}

// ---- kernels -----------------------------------------------------------------------------------

static bool supports(const moei_kernel *kernel, const moei_ggemm_problem *problem, moei_whynot *why)
{
    return moei_gpu_ggemm_supports(moei_hip_host, kernel, problem, why);
}

static double cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    (void)kernel;
    return (double)problem->m_max * (double)problem->n * (double)problem->k;
}

#define ROW(id, row, class, ...)                                                                   \
    {                                                                                              \
        .name = "moek_" row, .op = MOEI_OP_##id, .isa_name = "sim", .arith = MOEI_ARITH_##class,   \
        __VA_ARGS__                                                                                \
    }
#define PRODUCT(suffix, class)                                                                     \
    ROW(GGEMM, "ggemm_any_any_any__sim_" suffix, class, .mr = 64, .nr = 64, .supports = supports,  \
        .cost = cost)
static const moei_kernel kernels[] = {
    ROW(ROUTE, "route_f32_any__sim", NONE, .fn = NULL),
    ROW(ROUTE, "route_f32_any__sim_wide", NONE, .fn = (moei_kernel_fn)moei_gpu_route_wide),
    ROW(PLACE, "place_any__sim", NONE, .fn = NULL),
    ROW(SORT, "sort_i32__sim", NONE, .fn = NULL),
    ROW(QUANTIZE, "quantize_any_any__sim", NONE, .fn = NULL),
    PRODUCT("c256", FMA_C256),
    PRODUCT("b16", FMA_B16),
    PRODUCT("b32", FMA_B32),
    PRODUCT("b64", FMA_B64),
    PRODUCT("b128", FMA_B128),
    PRODUCT("i32", I32),
    ROW(GLU, "glu_any_any__sim", NONE, .fn = NULL),
    ROW(COMBINE, "combine_any_any__sim", NONE, .fn = NULL),
#define ROW_ANY(...)
#define ROW_CDNA3_BF16(...)    MATRIX_ROW(CDNA3_BF16, __VA_ARGS__)
#define ROW_CDNA4_BF16(...)    MATRIX_ROW(CDNA4_BF16, __VA_ARGS__)
#define ROW_CDNA3_DECODED(...) MATRIX_ROW(CDNA3_DECODED, __VA_ARGS__)
#define ROW_CDNA4_DECODED(...) MATRIX_ROW(CDNA4_DECODED, __VA_ARGS__)
#define ROW_CDNA3_FP8(...)     MATRIX_ROW(CDNA3_FP8, __VA_ARGS__)
#define ROW_CDNA4_FP8(...)     MATRIX_ROW(CDNA4_FP8, __VA_ARGS__)
#define ROW_CDNA4_MX(...)      MATRIX_ROW(CDNA4_MX, __VA_ARGS__)
#define MATRIX_ROW(bit, row, mr_, nr_, kr_, layout_, class, supports_, cost_)                      \
    ROW(GGEMM, row, class, .isa = MOEI_HIP_##bit, .mr = mr_, .nr = nr_, .kr = kr_,                 \
        .layout = MOEI_LAYOUT_##layout_, .supports = supports_, .cost = cost_),
#define MOE_KERNEL(op, name, isa, arch, mr, nr, kr, layout, arith, flags, supports, cost)          \
    ROW_##isa(#op "_" #name, mr, nr, kr, layout, arith, supports, cost)
#include "backends/hip/kernels.def"
#undef MOE_KERNEL
};
#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

static uint64_t runs[NUM_KERNELS];

static moe_status route(const moei_exec *exec, const moei_kernel *kernel,
                        const moek_route_args *args)
{
    return kernel->fn == (moei_kernel_fn)moei_gpu_route_wide ? moei_gpu_route_wide(exec, args)
                                                             : moei_gpu_route(exec, kernel, args);
}

static moe_status ggemm(const moei_exec *exec, const moei_kernel *kernel,
                        const moek_ggemm_args *args)
{
    return moei_hip_is_mfma(kernel) ? moei_hip_mfma(exec, kernel, args)
                                    : moei_gpu_ggemm(exec, kernel, args);
}

static const moei_backend backend;

static moe_status run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    moe_status status = MOE_OK;
    for (int32_t i = 0; i < count && status == MOE_OK;) {
        const moei_step *s = &steps[i];
        const int32_t prologue = moei_gpu_prologue_steps(exec, s, count - i);
        if (prologue > 0) {
            status = moei_gpu_prologue(exec, &s[0].args.route, &s[1].args.place, &s[2].args.sort,
                                       prologue > 3 ? &s[3].args.quantize : NULL, NULL);
            i += prologue;
        } else {
            status = moei_step_run(&backend, exec, s);
            i++;
        }
    }
    return status;
}

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    *isa = isa_in_hand();
    (void)snprintf(text, capacity, "device bodies as fibers on the host");
    return true;
}

static const moei_backend backend = {
    .abi = MOE_BACKEND_ABI,
    .name = "sim",
    .device = MOE_DEVICE_EXT,
    .host_memory = true,
    .kernels = kernels,
    .num_kernels = NUM_KERNELS,
    .runs = runs,
    .probe = probe,
    .isa_text = moei_hip_isa_text,
    .route = route,
    .place = moei_gpu_place,
    .sort = moei_gpu_sort,
    .quantize = moei_gpu_quantize,
    .packed_bytes = moei_hip_packed_bytes,
    .pack = moei_hip_pack,
    .unpack = moei_hip_unpack,
    .ggemm = ggemm,
    .glu = moei_gpu_glu,
    .combine = moei_gpu_combine,
    .run_steps = run_steps,
    .graph_capture = graph_capture,
    .graph_run = graph_run,
    .graph_release = graph_release,
};

const moei_backend *moe_backend_entry(const moei_host *table, uint32_t abi)
{
    if (abi == MOE_BACKEND_ABI) {
        moei_hip_host = table;
    }
    return &backend;
}
