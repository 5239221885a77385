// SPDX-License-Identifier: Apache-2.0
// One expert's matrix between a source and its packed place: what of it is checked first, and how
// it is packed, or copied back.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "api/weights_internal.h"
#include "backends/backends.h"
#include "quant/elements.h"

// ---- checks of scales --------------------------------------------------------------------------

// Whether all scales are finite, where that is seen at once: E8M0 has one code that is not.
static bool scales_are_plain(const moei_matrices *m)
{
    const int64_t columns = moei_scale_columns(m);
    if (m->scales == NULL || m->scale_dtype != MOE_E8M0 || m->scale_k_stride != 1) {
        return m->scales == NULL;
    }
    for (int64_t r = 0; r < moei_scale_rows(m); r++) {
        if (memchr((const uint8_t *)m->scales + r * m->scale_n_stride, 0xFF, (size_t)columns) !=
            NULL) {
            return false;
        }
    }
    return true;
}

moe_status moei_act_scale_check(float scale, const char *call, const char *name)
{
    MOE_REQUIRE(isfinite(scale) && scale > 0.0f, MOE_E_VALUE,
                "%s: %s activation scale is %g, must be finite and above 0", call, name,
                (double)scale);
    return MOE_OK;
}

// One expert, m of count 1; `e` names it.
static moe_status check_expert_scales(const moei_matrices *m, int32_t e, const char *call,
                                      const char *name)
{
    const bool plain = scales_are_plain(m);
    for (int64_t r = 0; !plain && r < moei_scale_rows(m); r++) {
        for (int64_t c = 0; c < moei_scale_columns(m); c++) {
            const float s = moei_load_one(m->scale_dtype, m->scales,
                                          r * m->scale_n_stride + c * m->scale_k_stride);
            MOE_REQUIRE(isfinite(s), MOE_E_VALUE,
                        "%s: %s scales of expert %d: element [%" PRId64 ", %" PRId64
                        "] is %s, must be finite",
                        call, name, (int)e, r, c, isnan(s) ? "NaN" : "infinite");
        }
    }
    for (int32_t p = 0; m->scale2 != NULL && p < m->scale2_parts; p++) {
        const float s = moei_load_one(MOE_F32, m->scale2, p);
        MOE_REQUIRE(isfinite(s), MOE_E_VALUE,
                    "%s: %s %s scale of expert %d: element [%d] is %s, must be finite", call, name,
                    m->scale2_per_row ? "channel" : "second-level", (int)e, (int)p,
                    isnan(s) ? "NaN" : "infinite");
    }
    if (m->act_scale != NULL) {
        MOE_TRY(moei_act_scale_check(moei_load_one(MOE_F32, m->act_scale, 0), call, name));
    }
    return MOE_OK;
}

moe_status moei_scales_check(const moe_context *ctx, const moei_matrices *m, moei_place place,
                             int32_t first, const char *call, const char *name)
{
    for (int32_t e = 0; e < m->count; e++) {
        moei_stage stage;
        MOE_TRY(moei_stage_begin(ctx, NULL, m, e, place, MOEI_PARTS_SCALES, true, call, &stage));
        const moe_status status = check_expert_scales(&stage.m, first + e, call, name);
        (void)moei_stage_end(&stage, false);
        MOE_TRY(status);
    }
    return MOE_OK;
}

// ---- the activation scale -----------------------------------------------------------------------

moe_status moei_act_scale_agree(const moe_context *ctx, const moei_matrices *from, float *packed,
                                uint32_t *agreed, bool set, const char *call, const char *name,
                                const char *rule)
{
    if (packed == NULL || from->act_scale == NULL) {
        return MOE_OK;
    }
    const float given = moei_load_one(MOE_F32, from->act_scale, 0);
    uint32_t bits;
    memcpy(&bits, &given, sizeof bits);
    uint32_t before = __atomic_load_n(agreed, __ATOMIC_RELAXED);
    if (before == bits || (before == 0 && !set)) {
        return MOE_OK;
    }
    if (before == 0 && __atomic_compare_exchange_n(agreed, &before, bits, false, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {
        return moei_put_bytes(ctx, packed, &bits, sizeof bits); // who set it writes it
    }
    if (before == bits) {
        return MOE_OK;
    }
    float earlier;
    memcpy(&earlier, &before, sizeof earlier);
    return moe_fail(MOE_E_VALUE, "%s: %s activation scale is %.9g, an earlier call gave %.9g; %s",
                    call, name, (double)given, (double)earlier, rule);
}

// ---- in --------------------------------------------------------------------------------------

// Names the expert before what the backend says of it.
static moe_status pack_stage(moei_stage *stage, int32_t e, const char *call, const char *name)
{
    const moe_status status = moei_stage_pack(stage);
    if (status == MOE_OK) {
        return MOE_OK;
    }
    char reason[256];
    (void)snprintf(reason, sizeof reason, "%s", moe_last_error());
    return moe_fail(status, "%s: %s of expert %d: %s", call, name, (int)e, reason);
}

#define PACK_SHARES 4 // parts of an expert per thread

/// A matrix on its way from a source on the host straight into its place: nothing of it is held
/// between.
typedef struct packing {
    moei_pack_part_fn *fn; // NULL: rows are copied
    moei_matrices from;
    const moei_matrices *stack;
    int32_t expert;
    int64_t parts;
} packing;

static void pack_task(void *arg, size_t index)
{
    const packing *p = arg;
    const int64_t part = (int64_t)index;
    if (p->fn == NULL) {
        moei_copy_part(&p->from, 0, p->stack, p->expert, part, p->parts);
        return;
    }
    p->fn(&p->from, part, p->parts,
          (uint8_t *)(uintptr_t)p->stack->values + p->expert * p->stack->value_e_stride);
    if (part == 0) {
        moei_copy_beside(&p->from, 0, p->stack, p->expert);
    }
}

// An expert as the packer reads it: what the packed stack is, where the source lies.
static moei_matrices as_source(const moei_matrices *stack, const moei_matrices *expert)
{
    moei_matrices m = *expert;
    m.scale_e_stride = stack->scale_e_stride; // says that there are some
    m.zero_e_stride = stack->zero_e_stride;
    return m;
}

static void pack_in_place(const moe_context *ctx, moei_pack_part_fn *fn,
                          const moei_matrices *source, int32_t se, const moei_matrices *stack,
                          int32_t de)
{
    const moei_matrices expert = moei_expert_of(source, se);
    packing p = {.fn = fn,
                 .from = fn != NULL ? as_source(stack, &expert) : expert,
                 .stack = stack,
                 .expert = de,
                 .parts = ctx->num_threads > 1 ? (int64_t)PACK_SHARES * ctx->num_threads : 1};
    moei_parallel_for(&ctx->pool, (size_t)p.parts, pack_task, &p);
}

// Whether a matrix can be packed in place, and by what.
static bool packs_in_place(const moe_context *ctx, const moei_matrices *stack,
                           moei_pack_part_fn **fn)
{
    const bool packed = stack->layout == MOEI_LAYOUT_PACKED;
    *fn = packed ? moei_backend_pack_part(ctx->backend) : NULL;
    return ctx->backend->host_memory && (!packed || *fn != NULL);
}

moe_status moei_put_expert(const moe_context *ctx, const moei_put_one *puts, int count, int32_t se,
                           int32_t de, const char *call)
{
    moei_pack_part_fn *fn;
    moei_stage stages[MOEI_MOST_PUTS];
    int begun = 0;
    moe_status status = MOE_OK;
    for (int i = 0; i < count && status == MOE_OK; i++) {
        const moei_put_one *put = &puts[i];
        if (packs_in_place(ctx, put->stack, &fn)) {
            pack_in_place(ctx, fn, put->source, se, put->stack, de);
            continue;
        }
        moei_stage *stage = &stages[begun];
        status = moei_stage_begin(ctx, put->kernel, put->stack, de, MOEI_ON_DEVICE,
                                  MOEI_PARTS_EXPERT, false, call, stage);
        if (status == MOE_OK) {
            begun++;
            moei_copy_expert(put->source, se, &stage->m, 0);
            status = pack_stage(stage, de, call, put->name);
        }
    }
    for (int i = 0; i < begun; i++) {
        const moe_status end = moei_stage_end(&stages[i], status == MOE_OK);
        status = status == MOE_OK ? end : status;
    }
    return status;
}

// ---- out -------------------------------------------------------------------------------------

// A nibble holds zero points up to 15; packed ones are bytes.
static moe_status check_zeros_fit(const moei_matrices *from, const moei_matrices *to,
                                  const char *call, const char *name)
{
    const int64_t groups = from->zeros != NULL ? moei_i64_ceil_div(from->k, from->block_k) : 0;
    for (int64_t n = 0; to->zero_form != MOEI_ZERO_BYTES && n < from->n; n++) {
        for (int64_t g = 0; g < groups; g++) {
            const int zero = moei_zero_point(from, 0, n, g);
            MOE_REQUIRE(zero < 16, MOE_E_VALUE,
                        "%s: %s zero point [%" PRId64 ", %" PRId64
                        "] is %d, a nibble holds 0..15; a U8 view [n, N, groups] works",
                        call, name, n, g, zero);
        }
    }
    return MOE_OK;
}

// One scale for gate and up takes two only where these are the same. `from` is one expert.
static moe_status check_expert_fits(const moei_matrices *from, const moei_matrices *to,
                                    const char *call, const char *name)
{
    const size_t bytes = (size_t)moe_dtype_bits(from->scale_dtype) / 8;
    if (from->scales != NULL && from->block_n == 0 && from->scale_parts > to->scale_parts) {
        const uint8_t *at = from->scales;
        MOE_REQUIRE(memcmp(at, at + (size_t)from->scale_n_stride * bytes, bytes) == 0, MOE_E_SHAPE,
                    "%s: %s scales of gate and up differ, the view is [n]; [n, 2] works", call,
                    name);
    }
    if (from->scale2 != NULL && from->scale2_parts > to->scale2_parts) {
        const float *at = from->scale2;
        MOE_REQUIRE(
            at[0] == at[1], MOE_E_SHAPE,
            "%s: %s second-level scales of gate and up differ, the view is [n]; [n, 2] works", call,
            name);
    }
    return check_zeros_fit(from, to, call, name);
}

moe_status moei_fits_check(const moe_context *ctx, const moei_kernel *kernel,
                           const moei_matrices *from, int32_t e, const moei_matrices *to,
                           const char *call, const char *name)
{
    const uint32_t parts = MOEI_PARTS_SCALES | MOEI_PART_BIT(MOEI_PART_ZEROS);
    moei_stage stage;
    MOE_TRY(moei_stage_begin(ctx, kernel, from, e, MOEI_ON_DEVICE, parts, true, call, &stage));
    const moe_status status = check_expert_fits(&stage.m, to, call, name);
    (void)moei_stage_end(&stage, false);
    return status;
}

moe_status moei_get_expert(const moe_context *ctx, const moei_kernel *kernel,
                           const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de,
                           const char *call)
{
    moei_stage stage;
    MOE_TRY(moei_stage_begin(ctx, kernel, s, se, MOEI_ON_DEVICE, MOEI_PARTS_EXPERT, true, call,
                             &stage));
    moei_copy_expert(&stage.m, 0, d, de);
    return moei_stage_end(&stage, false);
}
