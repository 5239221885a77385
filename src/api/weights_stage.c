// SPDX-License-Identifier: Apache-2.0
// One expert's canonical matrix where the host can work on it: in place, or as a copy of device
// memory or of a packed layout. Only here does the library touch weights that lie on a device, and
// only through the backend.
#include "api/weights_internal.h"
#include "quant/elements.h"

// Bytes of a part of one expert, from its first to its last; strides are the matrix's own.
static size_t part_bytes(const moei_matrices *m, moei_part part)
{
    const int64_t groups = m->block_k > 0 ? moei_i64_ceil_div(m->k, m->block_k) : 1;
    const bool transposed = m->value_k_stride != 0;
    const int64_t lines = transposed ? m->k : m->n;
    const int64_t pairs = m->zero_form == MOEI_ZERO_PAIRS ? moei_i64_ceil_div(m->n, 2) : m->n;
    switch (part) {
    case MOEI_PART_VALUES:
        return (size_t)((lines - 1) * (transposed ? m->value_k_stride : m->value_n_stride) +
                        moei_elem_bytes(m->format->elem, transposed ? m->n : m->k));
    case MOEI_PART_SCALES:
        return (size_t)((moei_scale_rows(m) - 1) * m->scale_n_stride +
                        (moei_scale_columns(m) - 1) * m->scale_k_stride + 1) *
               (size_t)moe_dtype_bits(m->scale_dtype) / 8;
    case MOEI_PART_SCALE2:
        return (size_t)m->scale2_parts * sizeof(float);
    case MOEI_PART_ZEROS:
        return (size_t)((pairs - 1) * m->zero_n_stride + (m->zero_form == MOEI_ZERO_NIBBLES
                                                              ? moei_i64_ceil_div(groups, 2)
                                                              : groups));
    case MOEI_PART_BIAS:
        return (size_t)(m->n * moe_dtype_bits(m->bias_dtype) / 8);
    default:
        return sizeof(float);
    }
}

// The parts of expert e, NULL where the matrix has none.
static void list_parts(const moei_matrices *m, int32_t e, const uint8_t *at[MOEI_NUM_PARTS])
{
    const int64_t scale = e * m->scale_e_stride * moe_dtype_bits(m->scale_dtype) / 8;
    const int64_t bias = e * m->bias_e_stride * moe_dtype_bits(m->bias_dtype) / 8;
    at[MOEI_PART_VALUES] = m->values != NULL ? m->values + e * m->value_e_stride : NULL;
    at[MOEI_PART_SCALES] = m->scales != NULL ? (const uint8_t *)m->scales + scale : NULL;
    at[MOEI_PART_SCALE2] =
        m->scale2 != NULL ? (const uint8_t *)(m->scale2 + e * m->scale2_e_stride) : NULL;
    at[MOEI_PART_ZEROS] = m->zeros != NULL ? m->zeros + e * m->zero_e_stride : NULL;
    at[MOEI_PART_BIAS] = m->bias != NULL ? (const uint8_t *)m->bias + bias : NULL;
    at[MOEI_PART_ACT_SCALE] = (const uint8_t *)m->act_scale;
}

static void set_parts(moei_matrices *m, const uint8_t *const at[MOEI_NUM_PARTS])
{
    m->count = 1;
    m->values = at[MOEI_PART_VALUES];
    m->scales = at[MOEI_PART_SCALES];
    m->scale2 = (const float *)(const void *)at[MOEI_PART_SCALE2];
    m->zeros = at[MOEI_PART_ZEROS];
    m->bias = at[MOEI_PART_BIAS];
    m->act_scale = (const float *)(const void *)at[MOEI_PART_ACT_SCALE];
}

moei_matrices moei_expert_of(const moei_matrices *m, int32_t e)
{
    const uint8_t *at[MOEI_NUM_PARTS];
    moei_matrices one = *m;
    list_parts(m, e, at);
    set_parts(&one, at);
    return one;
}

// The parts that a packed block holds.
#define PACKED_PARTS                                                                               \
    (MOEI_PART_BIT(MOEI_PART_VALUES) | MOEI_PART_BIT(MOEI_PART_SCALES) |                           \
     MOEI_PART_BIT(MOEI_PART_ZEROS))

// The parts of which a stage holds a copy: those asked for that the matrix has. A block is packed
// and unpacked as a whole.
static uint32_t copied_parts(const moei_stage *stage, uint32_t asked)
{
    uint32_t parts = 0;
    for (int p = 0; p < MOEI_NUM_PARTS; p++) {
        if (stage->at[p] != NULL && (asked & MOEI_PART_BIT(p)) != 0) {
            parts |= MOEI_PART_BIT(p);
        }
    }
    if (stage->kernel != NULL) {
        parts |= MOEI_PART_BIT(MOEI_PART_VALUES);
        parts |= stage->m.scale_e_stride > 0 ? MOEI_PART_BIT(MOEI_PART_SCALES) : 0;
        parts |= stage->m.zero_e_stride > 0 ? MOEI_PART_BIT(MOEI_PART_ZEROS) : 0;
    }
    return parts;
}

// Copies the parts, and the block, between where they lie and the stage.
static moe_status move_parts(const moei_stage *stage, bool write)
{
    const uint8_t *staged[MOEI_NUM_PARTS];
    list_parts(&stage->m, 0, staged);
    for (int p = 0; p < MOEI_NUM_PARTS; p++) {
        if (staged[p] == NULL ||
            (stage->kernel != NULL && (PACKED_PARTS & MOEI_PART_BIT(p)) != 0)) {
            continue;
        }
        uint8_t *there = (uint8_t *)(uintptr_t)stage->at[p];
        uint8_t *here = (uint8_t *)(uintptr_t)staged[p];
        MOE_TRY(write ? moei_put_bytes(stage->ctx, there, here, stage->bytes[p])
                      : moei_get_bytes(stage->ctx, here, there, stage->bytes[p]));
    }
    if (stage->kernel == NULL) {
        return MOE_OK;
    }
    uint8_t *there = (uint8_t *)(uintptr_t)stage->at[MOEI_PART_VALUES];
    if (write) {
        return moei_put_bytes(stage->ctx, there, stage->packed, stage->packed_bytes);
    }
    MOE_TRY(moei_get_bytes(stage->ctx, stage->packed, there, stage->packed_bytes));
    stage->ctx->backend->unpack(stage->kernel, stage->packed, &stage->m);
    return MOE_OK;
}

moe_status moei_stage_begin(const moe_context *ctx, const moei_kernel *kernel,
                            const moei_matrices *m, int32_t e, moei_place place, uint32_t parts,
                            bool fetch, const char *call, moei_stage *out)
{
    const bool packed = m->layout == MOEI_LAYOUT_PACKED;
    const uint8_t *staged[MOEI_NUM_PARTS] = {NULL};
    moei_stage stage = {.m = *m, .ctx = ctx, .kernel = packed ? kernel : NULL};
    list_parts(m, e, stage.at);
    if (!packed && (place == MOEI_ON_HOST || ctx->backend->host_memory)) {
        stage.m = moei_expert_of(m, e);
        *out = stage;
        return MOE_OK;
    }
    parts = copied_parts(&stage, parts);
    stage.packed_bytes = packed ? (size_t)m->value_e_stride : 0;
    for (int pass = 0; pass < 2; pass++) { // measures, then places
        moei_arena arena = {stage.buffer, 0};
        for (int p = 0; p < MOEI_NUM_PARTS; p++) {
            if ((parts & MOEI_PART_BIT(p)) != 0) {
                stage.bytes[p] = part_bytes(m, (moei_part)p);
                staged[p] = moei_arena_take(&arena, stage.bytes[p]);
            }
        }
        stage.packed = moei_arena_take(&arena, stage.packed_bytes);
        stage.buffer_bytes = arena.used;
        if (pass == 0 && arena.used > 0) {
            stage.buffer = moei_alloc(ctx, arena.used, MOEI_ARENA_ALIGN);
            MOE_REQUIRE(stage.buffer != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call,
                        arena.used);
        }
    }
    set_parts(&stage.m, staged);
    if (packed) {
        stage.m.layout = MOEI_LAYOUT_ROW;
        stage.m.value_e_stride = (int64_t)stage.bytes[MOEI_PART_VALUES];
    }
    const moe_status status = fetch ? move_parts(&stage, false) : MOE_OK;
    if (status != MOE_OK) {
        moei_free(ctx, stage.buffer, stage.buffer_bytes);
        return status;
    }
    *out = stage;
    return MOE_OK;
}

moe_status moei_stage_pack(moei_stage *stage)
{
    return stage->kernel != NULL
               ? stage->ctx->backend->pack(stage->kernel, &stage->m, stage->packed)
               : MOE_OK;
}

moe_status moei_stage_end(moei_stage *stage, bool write)
{
    if (stage->buffer == NULL) {
        return MOE_OK;
    }
    const moe_status status = write ? move_parts(stage, true) : MOE_OK;
    moei_free(stage->ctx, stage->buffer, stage->buffer_bytes);
    return status;
}

moe_status moei_put_bytes(const moe_context *ctx, void *to, const void *from, size_t bytes)
{
    if (ctx->backend->host_memory) {
        memcpy(to, from, bytes);
        return MOE_OK;
    }
    return moe_memory_copy(ctx, to, from, bytes, MOE_COPY_TO_DEVICE, NULL);
}

moe_status moei_get_bytes(const moe_context *ctx, void *to, const void *from, size_t bytes)
{
    if (ctx->backend->host_memory) {
        memcpy(to, from, bytes);
        return MOE_OK;
    }
    return moe_memory_copy(ctx, to, from, bytes, MOE_COPY_FROM_DEVICE, NULL);
}
