// SPDX-License-Identifier: Apache-2.0
// Packed bytes outside a process: a text that names how they lie, and weights made of them again.
// The text is words "name=value", so that a refusal can say which differ. A packed layout is named
// by what the backend's pack makes of a small matrix: a layout that changes has another name,
// whether or not somebody thought of a version.
#include <inttypes.h>
#include <stdlib.h>

#include "api/weights_internal.h"

#define LAYOUT_VERSION 1   // of the order in which weights_layout.c places matrices
#define PROBE_SIZE     256 // outputs and inputs of the probe: at least so many, and the same modulo
#define PROBE_MODULUS  64  // this, so that panels and their tails are there

// ---- the name of a packed layout ---------------------------------------------------------------

static int64_t probe_size(int64_t size)
{
    return size < PROBE_SIZE + PROBE_MODULUS ? size : PROBE_SIZE + size % PROBE_MODULUS;
}

// One expert of the same formats; gate and up have the same rows.
static moei_stack probe_stack(const moei_stack *stack)
{
    moei_stack probe = *stack;
    const int64_t parts = stack->gate_up != MOE_GATE_UP_UNSET ? 2 : 1;
    probe.count = 1;
    probe.n = parts * probe_size(stack->n / parts);
    probe.k = probe_size(stack->k);
    return probe;
}

// Bytes that make finite numbers of middling size in any type. (xorshift64)
#define PROBE_BITS  0xE6
#define PROBE_SET   0x11
#define PROBE_ZEROS 0x0F // zero points fit in a nibble

static void fill_probe(const void *bytes, size_t size, uint8_t bits, uint8_t set, uint64_t *state)
{
    uint8_t *to = (uint8_t *)(uintptr_t)bytes;
    for (size_t i = 0; i < size; i++) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        to[i] = (uint8_t)((*state >> 32 & bits) | set);
    }
}

// FNV-1a.
static uint64_t hash_of(const uint8_t *bytes, size_t size)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001B3u;
    }
    return hash;
}

static moe_status packed_name(const moe_context *ctx, const moei_stack *stack, const char *call,
                              uint64_t *out)
{
    const moei_stack small = probe_stack(stack);
    const moei_matrices m = moei_packed_geometry(ctx, &small);
    uint64_t state = 0x9E3779B97F4A7C15u;
    moei_stage stage;
    MOE_TRY(moei_stage_begin(ctx, stack->kernel, &m, 0, MOEI_ON_DEVICE, 0, false, call, &stage));
    fill_probe(stage.m.values, stage.bytes[MOEI_PART_VALUES], PROBE_BITS, PROBE_SET, &state);
    fill_probe(stage.m.scales, stage.bytes[MOEI_PART_SCALES], PROBE_BITS, PROBE_SET, &state);
    fill_probe(stage.m.zeros, stage.bytes[MOEI_PART_ZEROS], PROBE_ZEROS, 0, &state);
    const moe_status status = moei_stage_pack(&stage);
    *out = hash_of(stage.packed, status == MOE_OK ? stage.packed_bytes : 0);
    (void)moei_stage_end(&stage, false);
    return status;
}

// ---- the text ----------------------------------------------------------------------------------

void moei_put_layout_head(const moe_context *ctx, moei_text *t)
{
    moei_put(t, "version=%d backend=%s", LAYOUT_VERSION, ctx->backend->name);
}

moe_status moei_put_stack(const moe_context *ctx, const moei_stack *stack, const moei_matrices *m,
                          const char *name, const char *call, moei_text *t)
{
    const moe_quant_desc *act = &stack->gemm->act;
    moei_put(t, " %s.experts=%d %s.n=%" PRId64 " %s.k=%" PRId64 " %s.format=%s", name,
             (int)m->count, name, m->n, name, m->k, name, m->format->name);
    moei_put(t, " %s.order=%d %s.transposed=%d", name, (int)stack->gate_up, name,
             (int)stack->transposed);
    if (m->scale_e_stride > 0) {
        moei_put(t, " %s.scales=%s %s.block=%dx%d", name, moe_dtype_name(m->scale_dtype), name,
                 (int)m->block_n, (int)m->block_k);
    }
    if (m->zero_e_stride > 0) {
        moei_put(t, " %s.zero_points=u8", name);
    }
    if (m->scale2_e_stride > 0) {
        moei_put(t, " %s.scale2=%d", name, (int)m->scale2_parts);
    }
    if (m->bias_e_stride > 0) {
        moei_put(t, " %s.bias=f32", name);
    }
    if (moei_quant_needs_given_scale(act)) { // whose value depends on the quantiser
        moei_put(t, " %s.input_scale=%s", name, moe_quant_name(act->spec));
    }
    if (m->layout == MOEI_LAYOUT_ROW) {
        moei_put(t, " %s.layout=rows", name);
        return MOE_OK;
    }
    uint64_t hash = 0;
    MOE_TRY(packed_name(ctx, stack, call, &hash));
    moei_put(t, " %s.layout=packed-%016" PRIx64 "-%" PRId64, name, hash, m->value_e_stride);
    return MOE_OK;
}

static moe_status put_layout(const void *arg, const char *call, moei_text *t)
{
    const moe_plan *plan = arg;
    moe_weights w;
    memset(&w, 0, sizeof w);
    const size_t bytes = moei_weights_place(plan, NULL, &w);
    moei_put_layout_head(plan->ctx, t);
    for (int g = 0; g < 2; g++) {
        const moei_stack stack = moei_mlp_stack(&plan->routed, g);
        MOE_TRY(
            moei_put_stack(plan->ctx, &stack, &w.gemm[g], g == 0 ? "gate_up" : "down", call, t));
    }
    for (int g = 0; g < 2 && plan->shared.count > 0; g++) {
        const moei_stack stack = moei_mlp_stack(&plan->shared, g);
        MOE_TRY(moei_put_stack(plan->ctx, &stack, &w.shared[g],
                               g == 0 ? "shared.gate_up" : "shared.down", call, t));
    }
    const struct {
        const char *name;
        const moei_matrices *m;
    } maps[] = {{"shared_gate", &w.shared_gate},
                {"latent_in", &w.latent_in},
                {"latent_out", &w.latent_out}};
    for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) {
        if (maps[i].m->n > 0) {
            moei_put(t, " %s=f32:%" PRId64 "x%" PRId64, maps[i].name, maps[i].m->n, maps[i].m->k);
        }
    }
    if (plan->desc.output_bias != 0) {
        moei_put(t, " output_bias=f32:%" PRId64, plan->desc.hidden);
    }
    moei_put(t, " bytes=%zu", bytes); // last: what differs has been named
    return MOE_OK;
}

moe_status moe_weights_layout(const moe_plan *plan, char *buffer, size_t capacity, size_t *needed)
{
    const char *call = "moe_weights_layout";
    MOE_TRY(moei_text_check(plan, buffer, capacity, call));
    moei_text t = {buffer, capacity, 0};
    MOE_TRY(put_layout(plan, call, &t));
    if (needed != NULL) {
        *needed = t.length;
    }
    return MOE_OK;
}

// ---- adopting ----------------------------------------------------------------------------------

// The word that begins at *text, which moves on to the next.
static int next_word(const char **text, const char **word)
{
    const int size = (int)strcspn(*text, " ");
    *word = *text;
    *text += size + ((*text)[size] == ' ' ? 1 : 0);
    return size;
}

// Names the first word that differs.
static moe_status compare_layouts(const char *have, const char *need, const moei_layout_of *of,
                                  const char *call)
{
    static const char none[] = "no more";
    const char *a;
    const char *b;
    int a_size;
    int b_size;
    if (strcmp(have, need) == 0) {
        return MOE_OK;
    }
    do {
        a_size = next_word(&have, &a);
        b_size = next_word(&need, &b);
    } while (a_size > 0 && a_size == b_size && memcmp(a, b, (size_t)a_size) == 0);
    return moe_fail(MOE_E_UNSUPPORTED,
                    "%s: the packed bytes have %.*s, %s have %.*s; pack again with this %s", call,
                    a_size > 0 ? (a_size < 120 ? a_size : 120) : (int)sizeof none - 1,
                    a_size > 0 ? a : none, of->bytes, b_size > 0 ? b_size : (int)sizeof none - 1,
                    b_size > 0 ? b : none, of->maker);
}

moe_status moei_layout_check(const moe_context *ctx, const moei_layout_of *of, const char *layout,
                             const char *call)
{
    moei_text measured = {NULL, 0, 0};
    MOE_TRY(of->put(of->arg, call, &measured));
    const size_t size = measured.length + 1;
    char *text = moei_alloc(ctx, size, 64);
    MOE_REQUIRE(text != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call, size);
    moei_text t = {text, size, 0};
    moe_status status = of->put(of->arg, call, &t);
    status = status == MOE_OK ? compare_layouts(layout, text, of, call) : status;
    moei_free(ctx, text, size);
    return status;
}

// What packing sees to; nothing else of the bytes could lead a kernel astray.
static moe_status check_act_scales(const moe_weights *w, const char *call)
{
    static const char *const names[4] = {"gate_up", "down", "shared gate_up", "shared down"};
    for (int i = 0; i < 4; i++) {
        float scale = 1.0f;
        if (w->act_scale[i] != NULL) {
            MOE_TRY(moei_get_bytes(w->plan->ctx, &scale, w->act_scale[i], sizeof scale));
        }
        MOE_TRY(moei_act_scale_check(scale, call, names[i]));
    }
    return MOE_OK;
}

moe_status moe_weights_adopt(const moe_plan *plan, const void *memory, size_t bytes,
                             const char *layout, moe_weights **out)
{
    const char *call = "moe_weights_adopt";
    size_t need = 0;
    size_t align = 0;
    MOE_REQUIRE(plan != NULL && memory != NULL && layout != NULL && out != NULL, MOE_E_ARGUMENT,
                "%s: %s is NULL", call,
                plan == NULL     ? "plan"
                : memory == NULL ? "memory"
                : layout == NULL ? "layout"
                                 : "out");
    MOE_TRY(moe_weights_bytes(plan, &need, &align));
    const moei_layout_of of = {put_layout, plan, "the plan's weights", "plan"};
    MOE_TRY(moei_layout_check(plan->ctx, &of, layout, call));
    MOE_REQUIRE(bytes == need, MOE_E_SHAPE, "%s: %zu packed bytes, the plan's weights take %zu",
                call, bytes, need);
    MOE_REQUIRE((uintptr_t)memory % align == 0, MOE_E_ALIGNMENT,
                "%s: memory is not aligned to %zu bytes", call, align);
    moe_weights *w = NULL;
    MOE_TRY(moei_weights_allocate(plan, call, &w));
    (void)moei_weights_place(plan, memory, w);
    const moe_status status = check_act_scales(w, call);
    if (status != MOE_OK) {
        moe_weights_destroy(w);
        return status;
    }
    w->adopted = true;
    memset(w->has_expert, 3, (size_t)plan->routed.count);
    w->has_shared[0] = w->has_shared[1] = plan->shared.count > 0;
    w->has_shared_gate = w->shared_gate.values != NULL;
    w->has_latent_in = w->latent_in.values != NULL;
    w->has_latent_out = w->latent_out.values != NULL;
    w->has_output_bias = w->output_bias != NULL;
    *out = w;
    return MOE_OK;
}
