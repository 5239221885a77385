// SPDX-License-Identifier: Apache-2.0
// Forms of a routing result: structural checks, and the way to and from a bit matrix with ragged
// metadata. All on host memory.
#include <inttypes.h>
#include <string.h>

#include "core/safemath.h"
#include "core/tensor.h"
#include "ops/route.h"
#include "quant/elements.h"

#define I32_BIT MOEI_DTYPE_BIT(MOE_I32)

static int64_t id_at(const moe_tensor *ids, int64_t t, int64_t j)
{
    const void *data = moei_tensor_data(ids);
    const int64_t at = t * ids->stride[0] + j;
    return ids->dtype == MOE_I64 ? ((const int64_t *)data)[at] : ((const int32_t *)data)[at];
}

static void set_id(const moe_tensor *ids, int64_t t, int64_t j, int64_t id)
{
    void *data = moei_tensor_data(ids);
    const int64_t at = t * ids->stride[0] + j;
    if (ids->dtype == MOE_I64) {
        ((int64_t *)data)[at] = id;
    } else {
        ((int32_t *)data)[at] = (int32_t)id;
    }
}

static float weight_at(const moe_tensor *weights, int64_t i)
{
    return moei_load_one(weights->dtype, moei_tensor_data(weights), i);
}

static void set_weight(const moe_tensor *weights, int64_t i, float value)
{
    moei_store_f32(weights->dtype,
                   moei_tensor_data(weights) + i * moe_dtype_bits(weights->dtype) / 8, 1, &value);
}

static int32_t *i32_data(const moe_tensor *t)
{
    return (int32_t *)(void *)moei_tensor_data(t);
}

static bool given(const moe_tensor *t)
{
    return t != NULL && moei_tensor_present(t);
}

// ids [T, k], weights [T, k] where given, and a number of experts that the forms can hold.
static moe_status check_dense(const moe_tensor *ids, const moe_tensor *weights, int32_t num_experts,
                              const char *call, int64_t *num_slots)
{
    const int64_t any[2] = {-1, -1};
    MOE_REQUIRE(ids != NULL, MOE_E_ARGUMENT, "%s: ids is NULL", call);
    MOE_REQUIRE(num_experts >= 1 && num_experts <= MOEI_ROUTE_MAX_ROWS, MOE_E_ARGUMENT,
                "%s: num_experts = %d, must be 1..%d", call, (int)num_experts, MOEI_ROUTE_MAX_ROWS);
    MOE_TRY(moei_route_view_check(ids, call, "ids", MOEI_DTYPES_ID, 2, any));
    MOE_REQUIRE(moei_i64_mul(ids->shape[0], ids->shape[1], num_slots) && *num_slots <= INT32_MAX,
                MOE_E_OVERFLOW, "%s: ids has %" PRId64 " x %" PRId64 " slots, at most %d work",
                call, ids->shape[0], ids->shape[1], INT32_MAX);
    if (given(weights)) {
        MOE_TRY(moei_route_view_check(weights, call, "weights", MOEI_DTYPES_WEIGHT, 2, ids->shape));
    }
    return MOE_OK;
}

moe_status moe_routing_validate(const moe_tensor *ids, const moe_tensor *weights,
                                int32_t num_experts, float weight_sum, float tolerance)
{
    const char *call = "moe_routing_validate";
    uint64_t seen[MOEI_ROUTE_MAX_ROWS / 64] = {0};
    int64_t num_slots;
    MOE_REQUIRE(weight_sum >= 0.0f && tolerance >= 0.0f, MOE_E_ARGUMENT,
                "%s: weight_sum = %g, tolerance = %g, must be at least 0", call, (double)weight_sum,
                (double)tolerance);
    MOE_TRY(check_dense(ids, weights, num_experts, call, &num_slots));
    MOE_REQUIRE(given(weights) || !(weight_sum > 0.0f), MOE_E_ARGUMENT,
                "%s: weight_sum = %g, but weights is absent", call, (double)weight_sum);
    for (int64_t t = 0; t < ids->shape[0]; t++) {
        int64_t present = 0;
        double sum = 0.0;
        for (int64_t j = 0; j < ids->shape[1]; j++) {
            const int64_t id = id_at(ids, t, j);
            MOE_REQUIRE(id >= -1 && id < num_experts, MOE_E_VALUE,
                        "%s: token %" PRId64 " slot %" PRId64 ": id %" PRId64
                        ", must be -1 or 0..%d",
                        call, t, j, id, (int)num_experts - 1);
            if (given(weights)) {
                const float w = weight_at(weights, t * weights->stride[0] + j);
                MOE_REQUIRE(w >= 0.0f && w <= 3.40282347e38f, MOE_E_VALUE,
                            "%s: token %" PRId64 " slot %" PRId64 ": weight %g, must be finite and "
                            "at least 0",
                            call, t, j, (double)w);
                sum += (double)w;
            }
            if (id >= 0) {
                const uint64_t bit = (uint64_t)1 << (id % 64);
                MOE_REQUIRE((seen[id / 64] & bit) == 0, MOE_E_VALUE,
                            "%s: token %" PRId64 " slot %" PRId64 ": id %" PRId64 " is there twice",
                            call, t, j, id);
                seen[id / 64] |= bit;
                present++;
            }
        }
        // A token without any expert (padding) has no weights to add up.
        MOE_REQUIRE(!(weight_sum > 0.0f) || present == 0 ||
                        (sum - (double)weight_sum <= (double)tolerance &&
                         (double)weight_sum - sum <= (double)tolerance),
                    MOE_E_VALUE, "%s: token %" PRId64 ": weights add up to %.9g, not %.9g +- %g",
                    call, t, sum, (double)weight_sum, (double)tolerance);
        for (int64_t j = 0; j < ids->shape[1]; j++) {
            const int64_t id = id_at(ids, t, j);
            if (id >= 0) {
                seen[id / 64] = 0;
            }
        }
    }
    return MOE_OK;
}

static moe_status check_sparse(const moe_routing_sparse *s, int64_t tokens, int64_t num_slots,
                               int32_t num_experts, const char *call)
{
    const int64_t words = ((int64_t)num_experts + 31) / 32;
    const int64_t bits_shape[2] = {tokens, words};
    const int64_t experts = num_experts;
    const int64_t ends = experts + 1;
    MOE_TRY(moei_tensor_check_any_order(&s->bitmatrix, call, "bitmatrix", MOEI_DTYPE_BIT(MOE_U32),
                                        2, bits_shape));
    MOE_TRY(moei_tensor_check_aligned(&s->bitmatrix, call, "bitmatrix"));
    MOE_TRY(moei_tensor_check_unfolded(&s->bitmatrix, call, "bitmatrix"));
    MOE_TRY(moei_route_view_check(&s->counts, call, "counts", I32_BIT, 1, &experts));
    MOE_TRY(moei_route_view_check(&s->offsets, call, "offsets", I32_BIT, 1, &ends));
    MOE_TRY(moei_route_view_check(&s->gather, call, "gather", I32_BIT, 1, &num_slots));
    MOE_TRY(moei_route_view_check(&s->scatter, call, "scatter", I32_BIT, 1, &num_slots));
    if (given(&s->gate_scale)) {
        MOE_TRY(moei_route_view_check(&s->gate_scale, call, "gate_scale", MOEI_DTYPES_WEIGHT, 1,
                                      &num_slots));
    }
    return MOE_OK;
}

// No written view may share memory with another.
static moe_status check_overlaps(const moe_routing_sparse *s, const moe_tensor *ids,
                                 const moe_tensor *weights, bool sparse_written, const char *call)
{
    const moe_tensor absent = {.data = NULL};
    const struct {
        const char *name;
        const moe_tensor *t;
    } views[] = {{"bitmatrix", &s->bitmatrix},
                 {"counts", &s->counts},
                 {"offsets", &s->offsets},
                 {"gather", &s->gather},
                 {"scatter", &s->scatter},
                 {"gate_scale", &s->gate_scale},
                 {"ids", ids},
                 {"weights", weights != NULL ? weights : &absent}};
    for (size_t i = 0; i < 8; i++) {
        for (size_t j = i + 1; j < 8; j++) {
            const bool written = sparse_written ? i < 6 : j >= 6;
            MOE_REQUIRE(!written || !moei_tensor_overlap(views[i].t, views[j].t), MOE_E_OVERLAP,
                        "%s: %s overlaps %s", call, views[i].name, views[j].name);
        }
    }
    return MOE_OK;
}

static uint32_t *word_of(const moe_tensor *bitmatrix, int64_t t, int64_t id)
{
    return (uint32_t *)(void *)moei_tensor_data(bitmatrix) + t * bitmatrix->stride[0] +
           id / 32 * bitmatrix->stride[1];
}

// Clears the bit matrix and sets a bit for each id in [0, E); VALUE where an id comes twice.
static moe_status fill_bits(const moe_tensor *ids, int32_t num_experts, const char *call,
                            const moe_tensor *bitmatrix)
{
    for (int64_t t = 0; t < ids->shape[0]; t++) {
        for (int64_t id = 0; id < num_experts; id += 32) {
            *word_of(bitmatrix, t, id) = 0;
        }
        for (int64_t j = 0; j < ids->shape[1]; j++) {
            const int64_t id = id_at(ids, t, j);
            if (id < 0 || id >= num_experts) {
                continue;
            }
            uint32_t *word = word_of(bitmatrix, t, id);
            const uint32_t bit = (uint32_t)1 << (id % 32);
            MOE_REQUIRE((*word & bit) == 0, MOE_E_VALUE,
                        "%s: token %" PRId64 " slot %" PRId64 ": id %" PRId64
                        " is there twice; a bit matrix holds it once",
                        call, t, j, id);
            *word |= bit;
        }
    }
    return MOE_OK;
}

moe_status moe_routing_to_sparse(const moe_tensor *ids, const moe_tensor *weights,
                                 int32_t num_experts, const moe_routing_sparse *out)
{
    const char *call = "moe_routing_to_sparse";
    int64_t num_slots;
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "%s: out is NULL", call);
    MOE_TRY(check_dense(ids, weights, num_experts, call, &num_slots));
    MOE_TRY(check_sparse(out, ids->shape[0], num_slots, num_experts, call));
    MOE_REQUIRE(given(weights) == given(&out->gate_scale), MOE_E_ARGUMENT,
                "%s: %s is given without %s", call, given(weights) ? "weights" : "gate_scale",
                given(weights) ? "gate_scale" : "weights");
    MOE_TRY(check_overlaps(out, ids, weights, true, call));
    MOE_TRY(fill_bits(ids, num_experts, call, &out->bitmatrix));
    int32_t *counts = i32_data(&out->counts);
    int32_t *offsets = i32_data(&out->offsets);
    int32_t *gather = i32_data(&out->gather);
    int32_t *scatter = i32_data(&out->scatter);
    const int64_t top_k = ids->shape[1];
    for (int32_t e = 0; e < num_experts; e++) {
        counts[e] = 0;
    }
    for (int64_t i = 0; i < num_slots; i++) {
        const int64_t id = id_at(ids, i / top_k, i % top_k);
        if (id >= 0 && id < num_experts) {
            counts[id]++;
        }
        gather[i] = -1;
    }
    offsets[0] = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        offsets[e + 1] = offsets[e] + counts[e];
        counts[e] = 0; // counts again while placing
    }
    for (int64_t i = 0; i < num_slots; i++) {
        const int64_t id = id_at(ids, i / top_k, i % top_k);
        scatter[i] = -1;
        if (id >= 0 && id < num_experts) {
            scatter[i] = offsets[id] + counts[id]++;
            gather[scatter[i]] = (int32_t)i;
        }
    }
    for (int64_t i = 0; given(weights) && i < num_slots; i++) {
        const int32_t slot = gather[i];
        const float w =
            slot < 0 ? 0.0f : weight_at(weights, slot / top_k * weights->stride[0] + slot % top_k);
        set_weight(&out->gate_scale, i, w);
    }
    return MOE_OK;
}

// ids from offsets and gather; every slot at most once, and where `scatter` says.
static moe_status place_ids(const moe_routing_sparse *s, int32_t num_experts, const char *call,
                            const moe_tensor *ids)
{
    const int32_t *counts = i32_data(&s->counts);
    const int32_t *offsets = i32_data(&s->offsets);
    const int32_t *gather = i32_data(&s->gather);
    const int32_t *scatter = i32_data(&s->scatter);
    const int64_t top_k = ids->shape[1];
    const int64_t num_slots = ids->shape[0] * top_k;
    for (int64_t i = 0; i < num_slots; i++) {
        set_id(ids, i / top_k, i % top_k, -1);
    }
    MOE_REQUIRE(offsets[0] == 0, MOE_E_VALUE, "%s: offsets[0] = %d, must be 0", call,
                (int)offsets[0]);
    for (int32_t e = 0; e < num_experts; e++) {
        MOE_REQUIRE(counts[e] >= 0 && (int64_t)offsets[e] + counts[e] == offsets[e + 1] &&
                        offsets[e + 1] <= num_slots,
                    MOE_E_VALUE,
                    "%s: expert %d: counts = %d, offsets = %d and %d, %" PRId64 " slots", call,
                    (int)e, (int)counts[e], (int)offsets[e], (int)offsets[e + 1], num_slots);
        for (int32_t p = offsets[e]; p < offsets[e + 1]; p++) {
            const int32_t slot = gather[p];
            MOE_REQUIRE(slot >= 0 && slot < num_slots && scatter[slot] == p, MOE_E_VALUE,
                        "%s: gather[%d] = %d, but scatter there is %d", call, (int)p, (int)slot,
                        slot >= 0 && slot < num_slots ? (int)scatter[slot] : -1);
            set_id(ids, slot / top_k, slot % top_k, e);
        }
    }
    return MOE_OK;
}

static int64_t bits_in(uint32_t word)
{
    int64_t n = 0;
    for (; word != 0; word &= word - 1) {
        n++;
    }
    return n;
}

moe_status moe_routing_from_sparse(const moe_routing_sparse *sparse, int32_t num_experts,
                                   const moe_tensor *ids, const moe_tensor *weights)
{
    const char *call = "moe_routing_from_sparse";
    int64_t num_slots;
    MOE_REQUIRE(sparse != NULL, MOE_E_ARGUMENT, "%s: sparse is NULL", call);
    MOE_TRY(check_dense(ids, weights, num_experts, call, &num_slots));
    MOE_TRY(check_sparse(sparse, ids->shape[0], num_slots, num_experts, call));
    MOE_REQUIRE(!given(weights) || given(&sparse->gate_scale), MOE_E_ARGUMENT,
                "%s: weights is given, but gate_scale is absent", call);
    MOE_TRY(moei_tensor_check_unfolded(ids, call, "ids"));
    if (given(weights)) {
        MOE_TRY(moei_tensor_check_unfolded(weights, call, "weights"));
    }
    MOE_TRY(check_overlaps(sparse, ids, weights, false, call));
    MOE_TRY(place_ids(sparse, num_experts, call, ids));
    const int32_t *scatter = i32_data(&sparse->scatter);
    const int64_t top_k = ids->shape[1];
    for (int64_t t = 0; t < ids->shape[0]; t++) {
        int64_t set = 0;
        int64_t present = 0;
        for (int64_t id = 0; id < num_experts; id += 32) {
            set += bits_in(*word_of(&sparse->bitmatrix, t, id));
        }
        for (int64_t j = 0; j < top_k; j++) {
            const int64_t id = id_at(ids, t, j);
            const int32_t p = scatter[t * top_k + j];
            MOE_REQUIRE((id >= 0) == (p >= 0), MOE_E_VALUE,
                        "%s: token %" PRId64 " slot %" PRId64 ": scatter = %d, but no expert "
                        "gathers it",
                        call, t, j, (int)p);
            MOE_REQUIRE(id < 0 || (*word_of(&sparse->bitmatrix, t, id) >> (id % 32) & 1) != 0,
                        MOE_E_VALUE,
                        "%s: token %" PRId64 " slot %" PRId64 ": id %" PRId64
                        " is not set in the bit matrix",
                        call, t, j, id);
            present += id >= 0;
            if (given(weights)) {
                set_weight(weights, t * weights->stride[0] + j,
                           p >= 0 ? weight_at(&sparse->gate_scale, p) : 0.0f);
            }
        }
        MOE_REQUIRE(set == present, MOE_E_VALUE,
                    "%s: token %" PRId64 ": the bit matrix has %" PRId64
                    " experts, its slots %" PRId64,
                    call, t, set, present);
    }
    return MOE_OK;
}
