// SPDX-License-Identifier: Apache-2.0
// sort: checks and the public calls; the batched layout.
#include "ops/sort.h"

#include <inttypes.h>
#include <string.h>

#include "core/safemath.h"
#include "core/tensor.h"
#include "ops/route.h"

#define I32_BIT MOEI_DTYPE_BIT(MOE_I32)

static int32_t *i32_data(const moe_tensor *t)
{
    return (int32_t *)(void *)moei_tensor_data(t);
}

int64_t moe_sort_padded_size(int64_t num_slots, int32_t num_experts, int32_t block)
{
    int64_t room;
    int64_t padded;
    if (num_slots < 0 || num_experts < 1 || block < 1 ||
        __builtin_add_overflow(num_slots, (int64_t)num_experts * (block - 1), &room) ||
        __builtin_add_overflow(room, block - 1, &padded)) {
        return -1;
    }
    padded -= padded % block;
    if (num_slots < num_experts) {
        padded = moei_i64_min(padded, num_slots * block);
    }
    return padded;
}

// ids [T, k], and that slots can be numbered by int32.
static moe_status check_ids(const moe_tensor *ids, const char *call, int64_t *num_slots)
{
    const int64_t any[2] = {-1, -1};
    MOE_TRY(moei_route_view_check(ids, call, "ids", MOEI_DTYPES_ID, 2, any));
    MOE_REQUIRE(moei_i64_mul(ids->shape[0], ids->shape[1], num_slots) && *num_slots <= INT32_MAX,
                MOE_E_OVERFLOW, "%s: ids has %" PRId64 " x %" PRId64 " slots, at most %d work",
                call, ids->shape[0], ids->shape[1], INT32_MAX);
    return MOE_OK;
}

static moe_status check_absent(const moe_tensor *t, const char *call, const char *name,
                               int32_t block)
{
    MOE_REQUIRE(!moei_tensor_present(t), MOE_E_ARGUMENT,
                "%s: %s is given, but block = %d asks for the %s form, which has none", call, name,
                (int)block, block == 0 ? "contiguous" : "block-aligned");
    return MOE_OK;
}

static moe_status fill_form(const moe_sort_args *args, const char *call, int64_t num_slots,
                            moek_sort_args *a)
{
    const int64_t one = 1;
    const int64_t ends = (int64_t)args->num_experts + 1;
    if (args->block == 0) {
        MOE_TRY(check_absent(&args->block_experts, call, "block_experts", args->block));
        MOE_TRY(check_absent(&args->num_padded, call, "num_padded", args->block));
        MOE_TRY(moei_route_view_check(&args->offsets, call, "offsets", I32_BIT, 1, &ends));
        MOE_TRY(moei_route_view_check(&args->slots, call, "slots", I32_BIT, 1, &num_slots));
        a->offsets = i32_data(&args->offsets);
    } else {
        a->padded = moe_sort_padded_size(num_slots, args->num_experts, args->block);
        MOE_REQUIRE(a->padded >= 0 && a->padded <= INT32_MAX, MOE_E_OVERFLOW,
                    "%s: %" PRId64 " slots of num_experts = %d in blocks of %d need more than %d "
                    "positions",
                    call, num_slots, (int)args->num_experts, (int)args->block, INT32_MAX);
        const int64_t blocks = moei_i64_ceil_div(a->padded, args->block);
        MOE_TRY(check_absent(&args->offsets, call, "offsets", args->block));
        MOE_TRY(moei_route_view_check(&args->slots, call, "slots", I32_BIT, 1, &a->padded));
        MOE_TRY(moei_route_view_check(&args->block_experts, call, "block_experts", I32_BIT, 1,
                                      &blocks));
        MOE_TRY(moei_route_view_check(&args->num_padded, call, "num_padded", I32_BIT, 1, &one));
        a->block_experts = i32_data(&args->block_experts);
        a->num_padded = i32_data(&args->num_padded);
    }
    a->slots = i32_data(&args->slots);
    return MOE_OK;
}

moe_status moe_sort(const moe_context *ctx, const moe_sort_args *args, void *stream)
{
    const char *call = "moe_sort";
    int64_t num_slots;
    const int64_t any = -1;
    const int64_t one = 1;
    moe_sort_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    const moei_view views[] = {{&args->offsets, "offsets", true},
                               {&args->slots, "slots", true},
                               {&args->positions, "positions", true},
                               {&args->block_experts, "block_experts", true},
                               {&args->num_padded, "num_padded", true},
                               {&args->counts, "counts", true},
                               {&args->ids, "ids", false},
                               {&args->num_valid, "num_valid", false},
                               {&args->expert_map, "expert_map", false}};
    const size_t num_views = sizeof views / sizeof views[0];
    MOE_TRY(moei_views_check_device(views, num_views, ctx->backend->device, call));
    MOE_REQUIRE(args->num_experts >= 1 && args->num_experts <= MOEI_SORT_MAX_EXPERTS,
                MOE_E_ARGUMENT, "%s: num_experts = %d, must be 1..%d", call, (int)args->num_experts,
                MOEI_SORT_MAX_EXPERTS);
    MOE_REQUIRE(args->block >= 0, MOE_E_ARGUMENT, "%s: block = %d, must be 0 (contiguous) or more",
                call, (int)args->block);
    MOE_TRY(check_ids(&args->ids, call, &num_slots));
    moek_sort_args a = {.tokens = args->ids.shape[0],
                        .top_k = (int32_t)moei_i64_min(args->ids.shape[1], INT32_MAX),
                        .num_experts = args->num_experts,
                        .ids = moei_tensor_data(&args->ids),
                        .id_dtype = args->ids.dtype,
                        .id_token_stride = args->ids.stride[0],
                        .block = args->block};
    MOE_TRY(fill_form(args, call, num_slots, &a));
    if (moei_tensor_present(&args->num_valid)) {
        MOE_TRY(moei_route_view_check(&args->num_valid, call, "num_valid", I32_BIT, 1, &one));
        a.num_valid = i32_data(&args->num_valid);
    }
    if (moei_tensor_present(&args->expert_map)) {
        MOE_TRY(moei_route_view_check(&args->expert_map, call, "expert_map", I32_BIT, 1, &any));
        a.expert_map = i32_data(&args->expert_map);
        a.num_global = (int32_t)moei_i64_min(args->expert_map.shape[0], INT32_MAX);
    }
    if (moei_tensor_present(&args->positions)) {
        MOE_TRY(moei_route_view_check(&args->positions, call, "positions", I32_BIT, 1, &num_slots));
        a.positions = i32_data(&args->positions);
    }
    if (moei_tensor_present(&args->counts)) {
        const int64_t experts = args->num_experts;
        MOE_TRY(moei_route_view_check(&args->counts, call, "counts", MOEI_DTYPES_ID, 1, &experts));
        a.counts = moei_tensor_data(&args->counts);
        a.count_dtype = args->counts.dtype;
    }
    MOE_TRY(moei_views_check_overlap(views, num_views, call));
    const moei_exec exec = moei_exec_make(ctx, stream);
    moei_count_run(ctx, ctx->op_kernel[MOEI_OP_SORT]);
    return ctx->backend->sort(&exec, ctx->op_kernel[MOEI_OP_SORT], &a);
}

typedef struct gather_job {
    const int32_t *rows; // slot -> row of `batched`, -1 absent
    int64_t top_k;
    const unsigned char *x;
    int64_t x_stride; // bytes
    unsigned char *batched;
    int64_t expert_stride, row_stride; // bytes
    int64_t rows_per_expert;
    size_t row_bytes;
} gather_job;

static void gather_token(void *arg, size_t index)
{
    const gather_job *g = arg;
    for (int64_t j = 0; j < g->top_k; j++) {
        const int64_t row = g->rows[(int64_t)index * g->top_k + j];
        if (row >= 0) {
            memcpy(g->batched + row / g->rows_per_expert * g->expert_stride +
                       row % g->rows_per_expert * g->row_stride,
                   g->x + (int64_t)index * g->x_stride, g->row_bytes);
        }
    }
}

// Numbers each slot's row; SHAPE if an expert gets more than it has room for.
static moe_status number_rows(const moe_batched_args *args, const char *call, int32_t *rows)
{
    const int32_t experts = (int32_t)args->batched.shape[0];
    const int64_t room = args->batched.shape[1];
    const int64_t top_k = args->ids.shape[1];
    const void *ids = moei_tensor_data(&args->ids);
    int32_t *counts = i32_data(&args->counts);
    for (int32_t e = 0; e < experts; e++) {
        counts[e] = 0;
    }
    for (int64_t t = 0; t < args->ids.shape[0]; t++) {
        for (int64_t j = 0; j < top_k; j++) {
            const int64_t at = t * args->ids.stride[0] + j;
            const int64_t id = args->ids.dtype == MOE_I64 ? ((const int64_t *)ids)[at]
                                                          : ((const int32_t *)ids)[at];
            int32_t row = -1;
            if (id >= 0 && id < experts) {
                row = (int32_t)(id * room + counts[id]++); // no row where `room` is exceeded
            }
            rows[t * top_k + j] = row;
        }
    }
    for (int32_t e = 0; e < experts; e++) {
        MOE_REQUIRE(counts[e] <= room, MOE_E_SHAPE,
                    "%s: expert %d gets %d rows, batched has room for %" PRId64, call, (int)e,
                    (int)counts[e], room);
    }
    return MOE_OK;
}

moe_status moe_gather_batched(const moe_context *ctx, const moe_batched_args *args, void *stream)
{
    const char *call = "moe_gather_batched";
    int64_t num_slots;
    int64_t num_rows;
    moe_batched_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    MOE_REQUIRE(ctx->backend->host_memory, MOE_E_UNSUPPORTED,
                "%s: works on host memory only, backend \"%s\" has memory of its own", call,
                ctx->backend->name);
    const moei_view views[] = {{&args->batched, "batched", true},
                               {&args->counts, "counts", true},
                               {&args->rows, "rows", true},
                               {&args->ids, "ids", false},
                               {&args->x, "x", false}};
    MOE_TRY(moei_views_check_device(views, 5, ctx->backend->device, call));
    MOE_TRY(check_ids(&args->ids, call, &num_slots));
    const int64_t x_shape[2] = {args->ids.shape[0], -1};
    MOE_TRY(moei_tensor_check(&args->x, call, "x", UINT32_MAX & ~MOEI_DTYPE_BIT(MOE_DTYPE_UNSET), 2,
                              x_shape));
    const int64_t batched_shape[3] = {-1, -1, args->x.shape[1]};
    MOE_TRY(moei_tensor_check(&args->batched, call, "batched", MOEI_DTYPE_BIT(args->x.dtype), 3,
                              batched_shape));
    const int64_t experts = args->batched.shape[0];
    MOE_REQUIRE(experts >= 1 && moei_i64_mul(experts, args->batched.shape[1], &num_rows) &&
                    num_rows <= INT32_MAX,
                MOE_E_SHAPE,
                "%s: batched has %" PRId64 " experts of %" PRId64 " rows, 1..%d rows in all work",
                call, experts, args->batched.shape[1], INT32_MAX);
    const int64_t row_bits = args->x.shape[1] * moe_dtype_bits(args->x.dtype);
    MOE_REQUIRE(row_bits % 8 == 0, MOE_E_SHAPE,
                "%s: a row of x has %" PRId64 " %s elements, which do not fill whole bytes", call,
                args->x.shape[1], moe_dtype_name(args->x.dtype));
    MOE_TRY(moei_route_view_check(&args->counts, call, "counts", I32_BIT, 1, &experts));
    MOE_TRY(moei_route_view_check(&args->rows, call, "rows", I32_BIT, 1, &num_slots));
    MOE_TRY(moei_tensor_check_unfolded(&args->batched, call, "batched"));
    MOE_TRY(moei_views_check_overlap(views, 5, call));
    int32_t *rows = i32_data(&args->rows);
    MOE_ASSUME(rows != NULL);
    MOE_TRY(number_rows(args, call, rows));
    gather_job g = {rows,
                    args->ids.shape[1],
                    moei_tensor_data(&args->x),
                    moei_tensor_stride_bytes(&args->x, 0),
                    moei_tensor_data(&args->batched),
                    moei_tensor_stride_bytes(&args->batched, 0),
                    moei_tensor_stride_bytes(&args->batched, 1),
                    moei_i64_max(args->batched.shape[1], 1),
                    (size_t)(row_bits / 8)};
    moei_parallel_for(&ctx->pool, (size_t)args->ids.shape[0], gather_token, &g);
    return MOE_OK;
}
