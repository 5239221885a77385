// SPDX-License-Identifier: Apache-2.0
// Where packed weights lie: one walk over the plan's matrices that measures or places. Most kernels
// read canonical matrices, so packed form is canonical and compact; those that read another layout
// say how large an expert is.
#define _DEFAULT_SOURCE // madvise
#include <string.h>

#include "api/weights_internal.h"
#include "core/huge.h"
#include "quant/elements.h"

// A stack's formats, sizes and strides, canonical and compact; no pointers.
static moei_matrices stack_geometry(const moei_stack *stack)
{
    const moe_gemm_desc *gemm = stack->gemm;
    const moei_format_info *info = moei_format(gemm->weight_format);
    const moe_gate_up gate_up = stack->gate_up;
    const bool gated = gate_up != MOE_GATE_UP_UNSET;
    moei_matrices m = {0};
    m.format = info;
    m.count = stack->count;
    m.n = stack->n;
    m.k = stack->k;
    m.interleaved_parts = gate_up == MOE_GATE_UP_INTERLEAVED || gate_up == MOE_UP_GATE_INTERLEAVED;
    m.part_rows = gated && !m.interleaved_parts ? m.n / 2 : m.n;
    const int64_t inner = moei_elem_bytes(info->elem, stack->transposed ? m.n : m.k);
    const int64_t outer = stack->transposed ? m.k : m.n;
    m.value_e_stride = inner * outer;
    m.value_n_stride = stack->transposed ? moe_dtype_bits(info->elem) / 8 : inner;
    m.value_k_stride = stack->transposed ? inner : 0;
    if (info->scale_dtypes != 0) {
        m.scale_dtype = gemm->weight_scale_dtype != 0 ? gemm->weight_scale_dtype
                                                      : moei_format_scale_dtype(info);
        m.block_n = info->block_n;
        m.block_k = moei_gemm_block_k(info, gemm);
        m.scale_parts = gated ? 2 : 1;
        const int64_t rows = m.block_n == 0
                                 ? m.scale_parts
                                 : m.n / m.part_rows * moei_i64_ceil_div(m.part_rows, m.block_n);
        const int64_t columns = m.block_k > 0 ? moei_i64_ceil_div(m.k, m.block_k) : 1;
        m.scale_n_stride = columns;
        m.scale_k_stride = 1;
        m.scale_e_stride = rows * columns;
    }
    if (gemm->zero_points != 0) {
        m.zero_n_stride = moei_i64_ceil_div(m.k, m.block_k);
        m.zero_e_stride = m.n * m.zero_n_stride;
    }
    if (info->scale2 || gemm->channel_scale != 0) {
        m.scale2_per_row = gemm->channel_scale != 0;
        m.scale2_parts = m.scale2_per_row ? (int32_t)m.n : gated ? 2 : 1;
        m.scale2_e_stride = m.scale2_parts;
    }
    if (gemm->bias != 0) {
        m.bias_dtype = MOE_F32;
        m.bias_e_stride = m.n;
    }
    return m;
}

moei_matrices moei_packed_geometry(const moe_context *ctx, const moei_stack *stack)
{
    moei_matrices m = stack_geometry(stack);
    m.layout = MOEI_LAYOUT_PACKED;
    m.value_e_stride = (int64_t)ctx->backend->packed_bytes(stack->kernel, &m);
    return m;
}

void moei_stack_place(moei_arena *arena, const moe_context *ctx, const moei_stack *stack,
                      moei_matrices *out, float **act_scale)
{
    const bool packed = stack->kernel->layout == MOEI_LAYOUT_PACKED;
    moei_matrices m = packed ? moei_packed_geometry(ctx, stack) : stack_geometry(stack);
    const size_t count = (size_t)m.count;
    m.values = moei_arena_array(arena, count, (size_t)m.value_e_stride);
    if (m.scale_e_stride > 0 && !packed) {
        m.scales = moei_arena_array(arena, count * (size_t)m.scale_e_stride,
                                    (size_t)moe_dtype_bits(m.scale_dtype) / 8);
    }
    if (m.zero_e_stride > 0 && !packed) {
        m.zeros = moei_arena_array(arena, count, (size_t)m.zero_e_stride);
    }
    if (m.scale2_e_stride > 0) {
        m.scale2 = moei_arena_array(arena, count * (size_t)m.scale2_parts, sizeof(float));
    }
    if (m.bias_e_stride > 0) {
        m.bias = moei_arena_array(arena, count * (size_t)m.n, sizeof(float));
    }
    if (moei_quant_needs_given_scale(&stack->gemm->act)) {
        *act_scale = moei_arena_array(arena, 1, sizeof(float));
        m.act_scale = *act_scale;
    }
    *out = m;
}

// A linear map [n, k] kept in f32: widening is exact.
static void layout_linear(moei_arena *arena, int64_t n, int64_t k, moei_matrices *out)
{
    moei_matrices m = {0};
    m.format = moei_format(MOE_FORMAT_F32);
    m.count = 1;
    m.n = n;
    m.k = k;
    m.part_rows = n;
    m.value_n_stride = k * (int64_t)sizeof(float);
    m.value_e_stride = n * m.value_n_stride;
    m.values = moei_arena_array(arena, (size_t)n, (size_t)m.value_n_stride);
    *out = m;
}

static void layout_all(moei_arena *arena, const moe_plan *plan, moe_weights *w)
{
    for (int g = 0; g < 2; g++) {
        const moei_stack routed = moei_mlp_stack(&plan->routed, g);
        const moei_stack shared = moei_mlp_stack(&plan->shared, g);
        moei_stack_place(arena, plan->ctx, &routed, &w->gemm[g], &w->act_scale[g]);
        if (plan->shared.count > 0) {
            moei_stack_place(arena, plan->ctx, &shared, &w->shared[g], &w->act_scale[2 + g]);
        }
    }
    if (plan->shared.count > 0 && !x_is_float(plan)) {
        w->act_scale[2] = w->act_scale[0];
        w->shared[0].act_scale = w->act_scale[0];
    }
    if (plan->desc.shared.count > 0 && plan->desc.shared.gate == MOE_SHARED_SIGMOID) {
        layout_linear(arena, 1, plan->desc.hidden, &w->shared_gate);
    }
    if (plan->desc.latent > 0) {
        layout_linear(arena, plan->desc.latent, plan->desc.hidden, &w->latent_in);
        layout_linear(arena, plan->desc.hidden, plan->desc.latent, &w->latent_out);
    }
    if (plan->desc.output_bias != 0) {
        w->output_bias_dtype = MOE_F32;
        w->output_bias = moei_arena_array(arena, (size_t)plan->desc.hidden, sizeof(float));
    }
}

size_t moei_weights_place(const moe_plan *plan, const void *memory, moe_weights *w)
{
    moei_arena arena = {(unsigned char *)(uintptr_t)memory, 0};
    layout_all(&arena, plan, w);
    return arena.used;
}

static size_t self_bytes(const moe_plan *plan)
{
    return sizeof(moe_weights) + (size_t)plan->routed.count;
}

moe_status moe_weights_bytes(const moe_plan *plan, size_t *bytes, size_t *align)
{
    MOE_REQUIRE(plan != NULL && bytes != NULL && align != NULL, MOE_E_ARGUMENT,
                "moe_weights_bytes: an argument is NULL");
    moe_weights w;
    memset(&w, 0, sizeof w);
    const size_t need = moei_weights_place(plan, NULL, &w);
    MOE_REQUIRE(need != SIZE_MAX, MOE_E_OVERFLOW, "moe_weights_bytes: the weights exceed %zu bytes",
                SIZE_MAX);
    *bytes = need;
    *align = MOEI_ARENA_ALIGN;
    return MOE_OK;
}

moe_status moei_weights_allocate(const moe_plan *plan, const char *call, moe_weights **out)
{
    const size_t bytes = self_bytes(plan);
    moe_weights *w = moei_alloc(plan->ctx, bytes, 64);
    MOE_REQUIRE(w != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call, bytes);
    memset(w, 0, bytes);
    w->plan = plan;
    w->self_bytes = bytes;
    *out = w;
    return MOE_OK;
}

moe_status moe_weights_create(const moe_plan *plan, void *memory, size_t bytes, moe_weights **out)
{
    const char *call = "moe_weights_create";
    size_t need = 0;
    size_t align = 0;
    MOE_REQUIRE(plan != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                plan == NULL ? "plan" : "out");
    MOE_TRY(moe_weights_bytes(plan, &need, &align));
    MOE_REQUIRE(memory != NULL && bytes >= need, MOE_E_ARGUMENT,
                "%s: memory of %zu bytes, needs %zu", call, memory == NULL ? 0 : bytes, need);
    MOE_REQUIRE((uintptr_t)memory % align == 0, MOE_E_ALIGNMENT,
                "%s: memory is not aligned to %zu bytes", call, align);
    moe_weights *w = NULL;
    MOE_TRY(moei_weights_allocate(plan, call, &w));
    (void)moei_weights_place(plan, memory, w);
    if (plan->ctx->backend->host_memory) {
        moei_ask_huge_pages(memory, need);
    }
    *out = w;
    return MOE_OK;
}

void moe_weights_destroy(moe_weights *weights)
{
    if (weights != NULL) {
        moei_pool_drain(weights->plan->ctx->own_pool); // late tasks read weights
        moei_free(weights->plan->ctx, weights, weights->self_bytes);
    }
}
