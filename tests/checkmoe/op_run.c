// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/op_run.h"

#include <stddef.h>
#include <string.h>

// Where the arguments of each op hold pointers to data; what they point to otherwise (tables of
// formats and quantisers) is the host's on every backend.
#define AT(op, field) offsetof(moek_##op##_args, field)
static const size_t route_pointers[] = {
    AT(route, num_valid),    AT(route, logits),        AT(route, correction_bias),
    AT(route, scale_tensor), AT(route, hash_table),    AT(route, token_ids),
    AT(route, shared_gate),  AT(route, replica_table), AT(route, replica_count),
    AT(route, expert_map),   AT(route, load),          AT(route, ids),
    AT(route, weights),      AT(route, shared_weights)};
static const size_t place_pointers[] = {
    AT(place, num_valid),     AT(place, ids),           AT(place, weights),
    AT(place, replica_table), AT(place, replica_count), AT(place, expert_map),
    AT(place, router_ids),    AT(place, local_ids),     AT(place, local_weights),
    AT(place, out_ids),       AT(place, out_weights),   AT(place, load)};
static const size_t sort_pointers[] = {
    AT(sort, num_valid), AT(sort, ids),           AT(sort, expert_map),
    AT(sort, offsets),   AT(sort, slots),         AT(sort, positions),
    AT(sort, counts),    AT(sort, block_experts), AT(sort, num_padded)};
static const size_t quantize_pointers[] = {
    AT(quantize, counts), AT(quantize, total),        AT(quantize, x),   AT(quantize, q),
    AT(quantize, scales), AT(quantize, global_scale), AT(quantize, amax)};
static const size_t ggemm_pointers[] = {
    AT(ggemm, w.values),  AT(ggemm, w.scales),    AT(ggemm, w.scale2), AT(ggemm, w.zeros),
    AT(ggemm, w.bias),    AT(ggemm, w.act_scale), AT(ggemm, x.data),   AT(ggemm, x.scales),
    AT(ggemm, x.scale2),  AT(ggemm, offsets),     AT(ggemm, counts),   AT(ggemm, row_index),
    AT(ggemm, out_index), AT(ggemm, row_weight),  AT(ggemm, y)};
static const size_t glu_pointers[] = {AT(glu, x), AT(glu, y), AT(glu, counts), AT(glu, total)};
static const size_t combine_pointers[] = {AT(combine, num_valid),
                                          AT(combine, batch_counts),
                                          AT(combine, slots),
                                          AT(combine, ids),
                                          AT(combine, weights),
                                          AT(combine, router_ids),
                                          AT(combine, identity_weights),
                                          AT(combine, x),
                                          AT(combine, bias),
                                          AT(combine, shared),
                                          AT(combine, out)};

#define LAYOUT(op)                                                                                 \
    {                                                                                              \
        sizeof(moek_##op##_args), op##_pointers, sizeof op##_pointers / sizeof(size_t)             \
    }
static const struct {
    size_t size;
    const size_t *pointers;
    size_t num_pointers;
} layouts[MOEI_NUM_OPS] = {
    [MOEI_OP_ROUTE] = LAYOUT(route),     [MOEI_OP_PLACE] = LAYOUT(place),
    [MOEI_OP_SORT] = LAYOUT(sort),       [MOEI_OP_QUANTIZE] = LAYOUT(quantize),
    [MOEI_OP_GGEMM] = LAYOUT(ggemm),     [MOEI_OP_GLU] = LAYOUT(glu),
    [MOEI_OP_COMBINE] = LAYOUT(combine),
};

size_t moec_op_args_size(moei_op op)
{
    return layouts[op].size;
}

moe_status moec_op_call(const moei_exec *exec, const moei_kernel *kernel, const moei_op_args *a)
{
    const moei_backend *backend = exec->ctx->backend;
    switch (kernel->op) {
    case MOEI_OP_ROUTE:
        return backend->route(exec, kernel, &a->route);
    case MOEI_OP_PLACE:
        return backend->place(exec, kernel, &a->place);
    case MOEI_OP_SORT:
        return backend->sort(exec, kernel, &a->sort);
    case MOEI_OP_QUANTIZE:
        return backend->quantize(exec, kernel, &a->quantize);
    case MOEI_OP_GGEMM:
        return backend->ggemm(exec, kernel, &a->ggemm);
    case MOEI_OP_GLU:
        return backend->glu(exec, kernel, &a->glu);
    default:
        return backend->combine(exec, kernel, &a->combine);
    }
}

moe_status moec_op_run(const moe_context *ctx, moec_twins *twins, const moei_kernel *kernel,
                       const void *args)
{
    const moei_exec exec = moei_exec_make(ctx, NULL);
    moei_op_args a;
    memcpy(&a, args, layouts[kernel->op].size);
    for (size_t i = 0; i < layouts[kernel->op].num_pointers && !ctx->backend->host_memory; i++) {
        unsigned char *field = (unsigned char *)&a + layouts[kernel->op].pointers[i];
        const void *host;
        memcpy(&host, field, sizeof host);
        const void *twin = moec_twins_at(twins, host);
        memcpy(field, &twin, sizeof twin);
    }
    MOE_REQUIRE(!twins->stray, MOE_E_STATE,
                "moe check: an argument of %s points outside of the case", kernel->name);
    moei_count_run(ctx, kernel);
    return moec_op_call(&exec, kernel, &a);
}
