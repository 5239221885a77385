// SPDX-License-Identifier: Apache-2.0
// A backend as a plugin, in one file over moe/backend.h: grouped products and sorting in plain
// loops, the other ops by the library's own CPU kernels. Its products hold class fma_c256, so a
// layer gives the same bits as on backend "cpu".
//   cc -shared -fPIC -ffp-contract=off -I PREFIX/include toy_backend.c -o libmoe_backend_toy.so -lm
#include <math.h>
#include <moe/backend.h>
#include <stdio.h>
#include <string.h>

#ifndef TOY_ABI
#define TOY_ABI MOE_BACKEND_ABI // the test builds one with another number, which must be refused
#endif

static const moei_host *host;
static unsigned entries; // calls of moe_backend_entry in this process

// ---- ggemm -------------------------------------------------------------------------------------

// Says no to what the loops below do not do, and why: nothing is ever ignored.
static bool supports(const moei_kernel *kernel, const moei_ggemm_problem *problem, moei_whynot *why)
{
    const moei_format_info *format = host->format(problem->gemm->weight_format);
    (void)kernel;
    if (format->scale_dtypes != 0) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, format->format, MOE_FORMAT_BF16};
    } else if (problem->gemm->act.spec != MOE_QUANT_NONE) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_QUANT, problem->gemm->act.spec, MOE_QUANT_NONE};
    } else if (problem->transposed) {
        *why = (moei_whynot){MOEI_WHYNOT_TRANSPOSED, 1, 0};
    } else {
        return true;
    }
    return false;
}

static double cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    (void)kernel;
    return (double)problem->m_max * (double)problem->n * (double)problem->k;
}

// Class fma_c256: one FMA chain per 256 k from +0, chunk sums added in ascending order.
static float dot(const moek_ggemm_args *a, const uint8_t *x, const uint8_t *w)
{
    float total = 0.0f;
    for (int64_t k0 = 0; k0 < a->w.k; k0 += 256) {
        const int64_t n = a->w.k - k0 < 256 ? a->w.k - k0 : 256;
        float chain = 0.0f;
        float xs[256];
        float ws[256];
        host->load_f32(a->x.dtype, x, k0, n, xs);
        host->load_f32(a->w.format->elem, w, k0, n, ws);
        for (int64_t k = 0; k < n; k++) {
            chain = fmaf(xs[k], ws[k], chain);
        }
        total += chain;
    }
    return total;
}

static void row(const moek_ggemm_args *a, int32_t e, int64_t i)
{
    const bool sorted = a->offsets != NULL;
    const int64_t xi = a->row_index != NULL ? a->row_index[i] / a->row_divisor : i;
    const int64_t yi = a->out_index != NULL ? a->out_index[i] : i;
    const uint8_t *x = a->x.data + (sorted ? 0 : e * a->x.batch_stride) + xi * a->x.row_stride;
    uint8_t *y = a->y + (sorted ? 0 : e * a->y_batch_stride) + yi * a->y_row_stride;
    for (int64_t n = 0; n < a->w.n; n++) {
        const int64_t bytes = host->dtype_bits(a->y_dtype) / 8;
        float v = dot(a, x, a->w.values + e * a->w.value_e_stride + n * a->w.value_n_stride);
        if (a->w.bias != NULL) {
            float bias;
            host->load_f32(a->w.bias_dtype, a->w.bias, e * a->w.bias_e_stride + n, 1, &bias);
            v += bias;
        }
        if (a->row_weight != NULL) {
            v *= a->row_weight[(sorted ? 0 : e * a->weight_batch_stride) +
                               yi * a->weight_row_stride];
        }
        host->store_f32(a->y_dtype, y + n * bytes, 1, &v);
    }
}

static void expert(void *arg, size_t index)
{
    const moek_ggemm_args *a = (const moek_ggemm_args *)arg;
    const int32_t e = (int32_t)index;
    int64_t i = a->offsets != NULL ? a->offsets[e] : 0;
    const int64_t end = a->offsets != NULL  ? a->offsets[e + 1]
                        : a->counts != NULL ? a->counts[e]
                                            : a->rows;
    for (; i < end; i++) {
        row(a, e, i);
    }
}

static moe_status ggemm(const moei_exec *exec, const moei_kernel *kernel,
                        const moek_ggemm_args *args)
{
    moek_ggemm_args a = *args;
    (void)kernel;
    host->parallel_for(exec->ctx, (size_t)a.w.count, expert, &a);
    return MOE_OK;
}

// ---- sort --------------------------------------------------------------------------------------

// A layer sorts int32 ids that name experts here or nothing; other forms are the library's.
static moe_status sort(const moei_exec *exec, const moei_kernel *kernel, const moek_sort_args *a)
{
    const int32_t *ids = (const int32_t *)a->ids;
    const int64_t slots = a->tokens * a->top_k;
    int32_t at = 0;
    (void)kernel;
    if (a->id_dtype != MOE_I32 || a->id_token_stride != a->top_k || a->expert_map != NULL ||
        a->num_valid != NULL || a->positions != NULL || a->counts != NULL || a->block != 0) {
        return host->cpu_run(exec, MOEI_OP_SORT, a);
    }
    for (int32_t e = 0; e < a->num_experts; e++) {
        a->offsets[e] = at;
        for (int64_t s = 0; s < slots; s++) {
            if (ids[s] == e) {
                a->slots[at++] = (int32_t)s;
            }
        }
    }
    a->offsets[a->num_experts] = at;
    while (at < slots) {
        a->slots[at++] = (int32_t)slots;
    }
    return MOE_OK;
}

// ---- the rest ----------------------------------------------------------------------------------

#define BY_LIBRARY(op, OP)                                                                         \
    static moe_status op(const moei_exec *exec, const moei_kernel *kernel,                         \
                         const moek_##op##_args *args)                                             \
    {                                                                                              \
        (void)kernel;                                                                              \
        return host->cpu_run(exec, MOEI_OP_##OP, args);                                            \
    }
BY_LIBRARY(route, ROUTE)
BY_LIBRARY(place, PLACE)
BY_LIBRARY(quantize, QUANTIZE)
BY_LIBRARY(glu, GLU)
BY_LIBRARY(combine, COMBINE)

#define ROW(id, op_name, arith_class, ...)                                                         \
    {                                                                                              \
        .name = "moek_" op_name "__toy", .op = MOEI_OP_##id, .isa_name = "toy",                    \
        .arith = MOEI_ARITH_##arith_class, __VA_ARGS__                                             \
    }
static const moei_kernel kernels[] = {
    ROW(ROUTE, "route_f32_any", NONE, .flags = 0),
    ROW(PLACE, "place_any", NONE, .flags = 0),
    ROW(SORT, "sort_i32", NONE, .flags = 0),
    ROW(QUANTIZE, "quantize_any_any", NONE, .flags = 0),
    ROW(GGEMM, "ggemm_any_any_float", FMA_C256, .supports = supports, .cost = cost),
    ROW(GLU, "glu_any_any", NONE, .flags = 0),
    ROW(COMBINE, "combine_any_any", NONE, .flags = 0),
};
#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

static uint64_t runs[NUM_KERNELS];

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    *isa = 0;
    (void)snprintf(text, capacity, "loops in plain C, loaded %u time%s", entries,
                   entries == 1 ? "" : "s");
    return true;
}

// What a plan asks beyond its products; here an example of a refusal.
static moe_status plan_check(const moei_exec *exec, const moei_plan_info *plan)
{
    (void)exec;
    return plan->desc->latent == 0
               ? MOE_OK
               : host->fail(MOE_E_UNSUPPORTED, "toy: desc.latent = %lld, must be 0; \"cpu\" works",
                            (long long)plan->desc->latent);
}

const moei_backend *moe_backend_entry(const moei_host *table, uint32_t abi)
{
    static const moei_backend backend = {
        .abi = TOY_ABI,
        .name = "toy",
        .device = MOE_DEVICE_CPU,
        .host_memory = true,
        .kernels = kernels,
        .num_kernels = NUM_KERNELS,
        .runs = runs,
        .probe = probe,
        .plan_check = plan_check,
        .route = route,
        .place = place,
        .sort = sort,
        .quantize = quantize,
        .ggemm = ggemm,
        .glu = glu,
        .combine = combine,
    };
    if (abi == TOY_ABI) { // else the table may be another one: it is not read
        host = table;
        entries++;
    }
    return &backend;
}
