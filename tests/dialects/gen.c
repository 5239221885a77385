// SPDX-License-Identifier: Apache-2.0
#include "dialects/gen.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numerics/bf16.h"

uint64_t gen_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static float unit(uint64_t *state)
{
    return (float)((double)(gen_random(state) >> 40) / (1 << 23) - 1.0);
}

void *gen_keep(gen_layer *layer, size_t bytes)
{
    void *block = calloc(bytes + 1, 1);
    if (block == NULL || layer->num_blocks == (int)(sizeof layer->blocks / sizeof(void *))) {
        abort();
    }
    layer->blocks[layer->num_blocks++] = block;
    return block;
}

void gen_free(gen_layer *layer)
{
    for (int i = 0; i < layer->num_blocks; i++) {
        free(layer->blocks[i]);
    }
    layer->num_blocks = 0;
}

static uint16_t *random_bf16(gen_layer *layer, size_t count, float scale, uint64_t *state)
{
    uint16_t *to = gen_keep(layer, count * sizeof *to);
    for (size_t i = 0; i < count; i++) {
        to[i] = moei_f32_to_bf16(scale * unit(state));
    }
    return to;
}

// ---- weights -----------------------------------------------------------------------------------

static int element_bits(moe_format f)
{
    switch (f) {
    case MOE_FORMAT_BF16:
        return 16;
    case MOE_FORMAT_MXFP4:
    case MOE_FORMAT_NVFP4:
    case MOE_FORMAT_INT4_GROUP:
        return 4;
    default:
        return 8;
    }
}

static bool is_fp8(moe_format f)
{
    return (f >= MOE_FORMAT_E4M3FN_TENSOR && f <= MOE_FORMAT_E4M3FN_BLOCK) ||
           f == MOE_FORMAT_MXFP8_E4M3;
}

// Rows and columns of the scales.
static void scale_shape(gen_matrix *m, moe_format f, int32_t group)
{
    m->scale_rows = m->n;
    m->scale_cols = 1;
    switch (f) {
    case MOE_FORMAT_BF16:
        m->scale_rows = 0;
        break;
    case MOE_FORMAT_E4M3FN_TENSOR:
        m->scale_rows = 1;
        m->one_scale = true;
        break;
    case MOE_FORMAT_E4M3FN_BLOCK:
        m->scale_rows = (m->n + 127) / 128;
        m->scale_cols = (m->k + 127) / 128;
        break;
    case MOE_FORMAT_MXFP4:
    case MOE_FORMAT_MXFP8_E4M3:
        m->scale_cols = (m->k + 31) / 32;
        break;
    case MOE_FORMAT_NVFP4:
        m->scale_cols = (m->k + 15) / 16;
        break;
    case MOE_FORMAT_INT4_GROUP:
    case MOE_FORMAT_INT8_GROUP:
        m->scale_cols = (m->k + group - 1) / group;
        break;
    default:
        break;
    }
}

static size_t scale_size(const gen_matrix *m)
{
    return (size_t)moe_dtype_bits(m->scale_dtype) / 8;
}

static void make_scales(gen_layer *layer, gen_matrix *m, uint64_t *state)
{
    const size_t count = (size_t)(m->scale_rows * m->scale_cols);
    m->scales = gen_keep(layer, count * 4);
    for (size_t i = 0; i < count; i++) {
        const float value = 0.05f + 0.04f * unit(state);
        const uint16_t narrow = moei_f32_to_bf16(value);
        switch (m->scale_dtype) {
        case MOE_F32:
            memcpy(m->scales + 4 * i, &value, 4);
            break;
        case MOE_BF16:
            memcpy(m->scales + 2 * i, &narrow, 2);
            break;
        case MOE_E4M3FN:
            m->scales[i] = (uint8_t)(0x28 + gen_random(state) % 32);
            break;
        default:
            m->scales[i] = (uint8_t)(118 + gen_random(state) % 8);
        }
    }
}

static void make_matrix(gen_layer *layer, gen_matrix *m, int64_t n, int64_t k, moe_format f,
                        moe_dtype scale_dtype, bool shared, uint64_t *state)
{
    const gen_shape *s = &layer->shape;
    const int bits = element_bits(f);
    m->n = n;
    m->k = k;
    m->row_bytes = (size_t)((k * bits + 7) / 8);
    m->values = gen_keep(layer, (size_t)n * m->row_bytes);
    for (size_t i = 0; i < (size_t)n * m->row_bytes; i++) {
        const uint8_t byte = (uint8_t)gen_random(state);
        // No NaN: the codes 0x7F and 0xFF of e4m3fn lose a bit.
        m->values[i] = is_fp8(f) && (byte & 0x7F) == 0x7F ? byte ^ 1 : byte;
    }
    for (int64_t i = 0; f == MOE_FORMAT_BF16 && i < n * k; i++) {
        const uint16_t value = moei_f32_to_bf16(unit(state));
        memcpy(m->values + 2 * i, &value, 2);
    }
    m->scale_dtype = scale_dtype;
    scale_shape(m, f, s->group);
    if (m->scale_rows > 0) {
        make_scales(layer, m, state);
    }
    // Powers of two, whose reciprocals are exact; never 1, so that a reciprocal shows.
    static const float powers[] = {0.125f, 0.25f, 0.5f, 2.0f};
    m->scale2 = powers[gen_random(state) % 4];
    m->input = 0.01f + 0.001f * (float)(gen_random(state) % 16);
    if (s->zeros && !shared) {
        m->zeros = gen_keep(layer, (size_t)(n * m->scale_cols));
        for (int64_t i = 0; i < n * m->scale_cols; i++) {
            m->zeros[i] = (uint8_t)(gen_random(state) % 16);
        }
    }
    if (s->bias && !shared) {
        m->bias = random_bf16(layer, (size_t)n, 1.0f, state);
    }
}

void gen_make(gen_layer *layer, const gen_shape *shape, uint64_t seed)
{
    uint64_t state = seed;
    memset(layer, 0, sizeof *layer);
    layer->shape = *shape;
    const gen_shape *s = &layer->shape;
    const int64_t width = s->latent > 0 ? s->latent : s->hidden;
    for (int32_t e = 0; e < s->experts; e++) {
        for (int p = s->gated ? 0 : 1; p < 3; p++) {
            make_matrix(layer, &layer->m[e][p], p < 2 ? s->inter : width, p < 2 ? width : s->inter,
                        s->format, s->scale_dtype, false, &state);
        }
    }
    for (int p = s->gated ? 0 : 1; p < 3 && s->shared_inter > 0; p++) {
        make_matrix(layer, &layer->shared[p], p < 2 ? s->shared_inter : s->hidden,
                    p < 2 ? s->hidden : s->shared_inter, s->shared_format, s->shared_scale_dtype,
                    true, &state);
    }
    const size_t hidden = (size_t)s->hidden;
    layer->router = random_bf16(layer, (size_t)s->experts * hidden, 0.3f, &state);
    layer->router_bias = random_bf16(layer, (size_t)s->experts, 0.3f, &state);
    layer->shared_gate = random_bf16(layer, hidden, 0.3f, &state);
    layer->latent_in = random_bf16(layer, (size_t)s->latent * hidden, 0.3f, &state);
    layer->latent_out = random_bf16(layer, (size_t)s->latent * hidden, 0.3f, &state);
    layer->correction = gen_keep(layer, (size_t)s->experts * sizeof(float));
    for (int32_t e = 0; e < s->experts; e++) {
        layer->correction[e] = 0.1f * unit(&state);
    }
}

// ---- files -------------------------------------------------------------------------------------

void gen_add(gen_file *file, moe_dtype dtype, int ndim, const int64_t *shape, const void *bytes,
             const char *name, ...)
{
    char *kept = gen_keep(file->owner, 256);
    size_t size = (size_t)moe_dtype_bits(dtype);
    va_list args;
    va_start(args, name);
    (void)vsnprintf(kept, 256, name, args);
    va_end(args);
    for (int i = 0; i < ndim; i++) {
        size *= (size_t)shape[i];
    }
    void *copy = gen_keep(file->owner, size / 8);
    memcpy(copy, bytes, size / 8);
    if (file->count == GEN_MAX_TENSORS) {
        abort();
    }
    file->entries[file->count++] =
        (moe_file_entry){kept, moe_tensor_make(copy, dtype, ndim, shape)};
}

moe_file_entry *gen_find(gen_file *file, const char *name)
{
    for (size_t i = 0; i < file->count; i++) {
        if (strcmp(file->entries[i].name, name) == 0) {
            return &file->entries[i];
        }
    }
    (void)fprintf(stderr, "no tensor %s\n", name);
    abort();
}

static void add2(gen_file *f, const char *stem, const char *suffix, moe_dtype dtype, int64_t d0,
                 int64_t d1, const void *bytes)
{
    const int64_t shape[2] = {d0, d1};
    gen_add(f, dtype, 2, shape, bytes, "%s.%s", stem, suffix);
}

static void add1(gen_file *f, const char *stem, const char *suffix, float value)
{
    const int64_t shape[1] = {1};
    gen_add(f, MOE_F32, 1, shape, &value, "%s.%s", stem, suffix);
}

static uint8_t swap_nibbles(uint8_t byte)
{
    return (uint8_t)(byte >> 4 | byte << 4);
}

static const uint8_t *packed_values(gen_file *f, const gen_matrix *m, gen_wrong wrong)
{
    const size_t bytes = (size_t)m->n * m->row_bytes;
    uint8_t *copy = gen_keep(f->owner, bytes);
    for (size_t i = 0; i < bytes; i++) {
        copy[i] = wrong == GEN_NIBBLES ? swap_nibbles(m->values[i]) : m->values[i];
    }
    return copy;
}

static const uint8_t *float_scales(gen_file *f, const gen_matrix *m, gen_wrong wrong)
{
    const size_t count = (size_t)(m->scale_rows * m->scale_cols);
    float *copy = gen_keep(f->owner, count * sizeof *copy);
    memcpy(copy, m->scales, count * scale_size(m));
    for (size_t i = 0; i < count && wrong == GEN_RECIPROCAL; i++) {
        copy[i] = 1.0f / copy[i];
    }
    return (const uint8_t *)copy;
}

// Words of eight codes or four; the last word of a row may be part empty.
static void add_words(gen_file *f, const char *stem, const gen_matrix *m, int bits, gen_wrong wrong)
{
    const int64_t per_word = 32 / bits;
    const int64_t words = (m->k + per_word - 1) / per_word;
    uint32_t *to = gen_keep(f->owner, (size_t)(m->n * words) * 4);
    for (int64_t n = 0; n < m->n; n++) {
        for (int64_t k = 0; k < m->k; k++) {
            const uint8_t byte = m->values[(size_t)n * m->row_bytes + (size_t)(k * bits / 8)];
            uint32_t code = bits == 8 ? byte ^ 0x80U : k % 2 == 0 ? byte & 15U : byte >> 4;
            code ^= wrong == GEN_OFFSET ? 1U << (bits - 1) : 0U;
            const int64_t at = wrong == GEN_NIBBLES ? per_word - 1 - k % per_word : k % per_word;
            to[n * words + k / per_word] |= code << (at * bits);
        }
    }
    const int64_t shape[2] = {m->n, m->k};
    const int64_t two[1] = {2};
    add2(f, stem, "weight_packed", MOE_I32, m->n, words, to);
    add2(f, stem, "weight_scale", m->scale_dtype, m->n, m->scale_cols, m->scales);
    gen_add(f, MOE_I64, 1, two, shape, "%s.weight_shape", stem);
    if (m->zeros != NULL) {
        const int64_t rows = (m->n + 7) / 8;
        uint32_t *zeros = gen_keep(f->owner, (size_t)(rows * m->scale_cols) * 4);
        for (int64_t n = 0; n < m->n; n++) {
            for (int64_t g = 0; g < m->scale_cols; g++) {
                const uint32_t zero = m->zeros[n * m->scale_cols + g];
                zeros[n / 8 * m->scale_cols + g] |= (wrong == GEN_OFFSET ? zero ^ 8U : zero)
                                                    << (n % 8 * 4);
            }
        }
        add2(f, stem, "weight_zero_point", MOE_I32, rows, m->scale_cols, zeros);
    }
}

static void add_scale2(gen_file *f, const char *stem, const gen_matrix *m, bool divides,
                       gen_wrong wrong)
{
    const bool flip = divides != (wrong == GEN_RECIPROCAL);
    add1(f, stem, divides ? "weight_global_scale" : "weight_scale_2",
         flip ? 1.0f / m->scale2 : m->scale2);
}

// Scales in the grain of the format: one number, one a row, or a matrix.
static void add_fp8(gen_file *f, const char *stem, const gen_matrix *m, const char *suffix,
                    gen_wrong wrong)
{
    add2(f, stem, "weight", MOE_E4M3FN, m->n, m->k, m->values);
    const uint8_t *scales = float_scales(f, m, wrong);
    if (m->one_scale) {
        gen_add(f, m->scale_dtype, 0, NULL, scales, "%s.%s", stem, suffix);
    } else {
        add2(f, stem, suffix, m->scale_dtype, m->scale_rows, m->scale_cols, scales);
    }
}

static void add_matrix(gen_file *f, const char *stem, gen_style style, const gen_matrix *m,
                       gen_wrong wrong)
{
    const int64_t row = (int64_t)m->row_bytes;
    const int64_t cols = m->scale_cols;
    const bool inputs = f->owner->shape.inputs;
    switch (style) {
    case GEN_FLOAT:
        add2(f, stem, "weight", MOE_BF16, m->n, m->k, m->values);
        break;
    case GEN_DEEPSEEK:
        add_fp8(f, stem, m, "weight_scale_inv", wrong);
        break;
    case GEN_FP8:
        add_fp8(f, stem, m, "weight_scale", wrong);
        if (inputs) {
            add1(f, stem, "input_scale", m->input);
        }
        break;
    case GEN_V4:
        add2(f, stem, "weight", MOE_I8, m->n, row, packed_values(f, m, wrong));
        add2(f, stem, "scale", MOE_E8M0, m->n, cols, m->scales);
        break;
    case GEN_V4_FP8:
        add2(f, stem, "weight", MOE_E4M3FN, m->n, m->k, m->values);
        add2(f, stem, "scale", MOE_E8M0, m->scale_rows, cols, m->scales);
        break;
    case GEN_CT_NVFP4:
        add2(f, stem, "weight_packed", MOE_U8, m->n, row, packed_values(f, m, wrong));
        add2(f, stem, "weight_scale", MOE_E4M3FN, m->n, cols, m->scales);
        add_scale2(f, stem, m, true, wrong);
        if (inputs) {
            add1(f, stem, "input_global_scale", 1.0f / m->input);
        }
        break;
    case GEN_MODELOPT:
        add2(f, stem, "weight", MOE_U8, m->n, row, packed_values(f, m, wrong));
        add2(f, stem, "weight_scale", MOE_E4M3FN, m->n, cols, m->scales);
        add_scale2(f, stem, m, false, wrong);
        if (inputs) {
            add1(f, stem, "input_scale", m->input);
        }
        break;
    case GEN_CT_MXFP4:
        add2(f, stem, "weight_packed", MOE_U8, m->n, row, packed_values(f, m, wrong));
        add2(f, stem, "weight_scale", MOE_U8, m->n, cols, m->scales);
        break;
    case GEN_QUARK_MXFP4:
        add2(f, stem, "weight", MOE_U8, m->n, row, packed_values(f, m, wrong));
        add2(f, stem, "weight_scale", MOE_U8, m->n, cols, m->scales);
        break;
    case GEN_MXFP8:
        add2(f, stem, "weight", MOE_E4M3FN, m->n, m->k, m->values);
        add2(f, stem, "weight_scale", MOE_U8, m->n, cols, m->scales);
        break;
    case GEN_CT_INT8:
        add2(f, stem, "weight", MOE_I8, m->n, m->k, m->values);
        add2(f, stem, "weight_scale", m->scale_dtype, m->n, 1, m->scales);
        break;
    case GEN_CT_INT4:
        add_words(f, stem, m, 4, wrong);
        break;
    case GEN_CT_PACKED8:
        add_words(f, stem, m, 8, wrong);
        break;
    default:
        abort();
    }
}

static void add_experts(gen_layer *layer, gen_wrong wrong, gen_file *f)
{
    const gen_shape *s = &layer->shape;
    for (int32_t e = 0; e < s->experts; e++) {
        for (int p = s->gated ? 0 : 1; p < 3; p++) {
            char stem[200];
            const int from = wrong == GEN_GATE_UP && p < 2 ? 1 - p : p;
            (void)snprintf(stem, sizeof stem, "%sexperts.%d.%s", s->prefix, (int)e, s->names[p]);
            add_matrix(f, stem, s->style, &layer->m[e][from], wrong);
        }
    }
}

// Row r of the joined matrix 0 is row *row of the matrix returned.
static const gen_matrix *joined_row(gen_matrix m[3], bool turns, int64_t r, int64_t *row)
{
    const int64_t inter = m[0].n;
    *row = turns ? r / 2 : r % inter;
    return turns ? &m[r % 2] : &m[r / inter];
}

/// A stack of all experts being written: of product `g`, bytes of `elem` per element.
struct stacking {
    gen_layer *layer;
    int g;
    int64_t n;   // rows of an expert
    bool turns;  // rows of gate and up in turn
    bool in_out; // columns before rows
};

// One part (values, scales, bias: row_bytes bytes a row) of all experts.
static uint8_t *stack_rows(const struct stacking *s, size_t row_bytes, size_t elem,
                           const uint8_t *(*part)(const gen_matrix *m))
{
    const size_t each = (size_t)s->n * row_bytes;
    uint8_t *to = gen_keep(s->layer, each * (size_t)s->layer->shape.experts);
    for (int32_t e = 0; e < s->layer->shape.experts; e++) {
        gen_matrix *m = s->layer->m[e];
        for (int64_t r = 0; r < s->n; r++) {
            int64_t row = r;
            const gen_matrix *of = s->g == 0 ? joined_row(m, s->turns, r, &row) : &m[2];
            for (size_t k = 0; k < row_bytes / elem; k++) {
                const size_t at =
                    s->in_out ? k * (size_t)s->n + (size_t)r : (size_t)r * (row_bytes / elem) + k;
                memcpy(to + (size_t)e * each + at * elem,
                       part(of) + (size_t)row * row_bytes + k * elem, elem);
            }
        }
    }
    return to;
}

static const uint8_t *values_of(const gen_matrix *m)
{
    return m->values;
}
static const uint8_t *scales_of(const gen_matrix *m)
{
    return m->scales;
}
static const uint8_t *bias_of(const gen_matrix *m)
{
    return (const uint8_t *)m->bias;
}

static void add_gpt_oss(gen_file *f, const struct stacking *s, const char *stem, gen_wrong wrong)
{
    const gen_matrix *first = &s->layer->m[0][s->g == 0 ? 0 : 2];
    const int64_t experts = s->layer->shape.experts;
    uint8_t *codes = stack_rows(s, first->row_bytes, 1, values_of);
    for (size_t i = 0; wrong == GEN_NIBBLES && i < first->row_bytes * (size_t)(s->n * experts);
         i++) {
        codes[i] = swap_nibbles(codes[i]);
    }
    const int64_t blocks[4] = {experts, s->n, first->k / 32, 16};
    gen_add(f, MOE_U8, 4, blocks, codes, "%s_blocks", stem);
    gen_add(f, MOE_U8, 3, blocks, stack_rows(s, (size_t)(first->k / 32), 1, scales_of), "%s_scales",
            stem);
}

// Block scales of all experts: gate's, then up's.
static void add_stacked_blocks(gen_file *f, const struct stacking *s, const char *stem)
{
    const gen_matrix *first = &s->layer->m[0][s->g == 0 ? 0 : 2];
    const size_t part = (size_t)(first->scale_rows * first->scale_cols) * 4;
    const int parts = s->g == 0 ? 2 : 1;
    const int64_t shape[3] = {s->layer->shape.experts, parts * first->scale_rows,
                              first->scale_cols};
    uint8_t *to = gen_keep(s->layer, part * 2 * (size_t)shape[0]);
    for (int64_t e = 0; e < shape[0]; e++) {
        for (int p = 0; p < parts; p++) {
            memcpy(to + part * (size_t)(e * parts + p), s->layer->m[e][s->g == 0 ? p : 2].scales,
                   part);
        }
    }
    gen_add(f, MOE_F32, 3, shape, to, "%s_scale_inv", stem);
}

static void add_stacks(gen_layer *layer, gen_wrong wrong, gen_file *f)
{
    static const char *const names[2] = {"experts.gate_up_proj", "experts.down_proj"};
    static const char *const granite[2] = {"input_linear.weight", "output_linear.weight"};
    const gen_style style = layer->shape.style;
    for (int g = 0; g < 2; g++) {
        const gen_matrix *first = &layer->m[0][g == 0 ? 0 : 2];
        struct stacking s = {.layer = layer, .g = g, .n = g == 0 ? 2 * first->n : first->n};
        char stem[200];
        s.turns = (style == GEN_STACK_PAIRS || style == GEN_GPT_OSS) != (wrong == GEN_ORDER);
        s.in_out = (style == GEN_STACK_PAIRS || style == GEN_STACK_IN_OUT) !=
                   (wrong == GEN_TRANSPOSED && g == 0);
        (void)snprintf(stem, sizeof stem, "%s%s", layer->shape.prefix,
                       style == GEN_STACK_GRANITE ? granite[g] : names[g]);
        if (style == GEN_GPT_OSS) {
            add_gpt_oss(f, &s, stem, wrong);
        } else {
            const size_t elem = style == GEN_STACK_FP8 ? 1 : 2;
            const int64_t shape[3] = {layer->shape.experts, s.in_out ? first->k : s.n,
                                      s.in_out ? s.n : first->k};
            gen_add(f, elem == 1 ? MOE_E4M3FN : MOE_BF16, 3, shape,
                    stack_rows(&s, first->row_bytes, elem, values_of), "%s", stem);
        }
        if (style == GEN_STACK_FP8) {
            add_stacked_blocks(f, &s, stem);
        }
        if (layer->shape.bias) {
            const int64_t shape[2] = {layer->shape.experts, s.n};
            s.in_out = false;
            gen_add(f, MOE_BF16, 2, shape, stack_rows(&s, 2, 2, bias_of), "%s_bias", stem);
        }
    }
}

static void add_rest(gen_layer *layer, gen_file *f)
{
    const gen_shape *s = &layer->shape;
    const int64_t router[2] = {s->experts, s->hidden};
    const int64_t gate[2] = {1, s->hidden};
    const int64_t latent_in[2] = {s->latent, s->hidden};
    const int64_t latent_out[2] = {s->hidden, s->latent};
    gen_add(f, MOE_BF16, 2, router, layer->router, "%s%s", s->prefix, s->router);
    if (s->router_bias) {
        gen_add(f, MOE_BF16, 1, router, layer->router_bias, "%srouter.bias", s->prefix);
    }
    if (s->correction != NULL) {
        gen_add(f, MOE_F32, 1, router, layer->correction, "%s%s", s->prefix, s->correction);
    }
    if (s->shared_gate) {
        gen_add(f, MOE_BF16, 2, gate, layer->shared_gate, "%sshared_expert_gate.weight", s->prefix);
    }
    if (s->latent > 0) {
        gen_add(f, MOE_BF16, 2, latent_in, layer->latent_in, "%sfc1_latent_proj.weight", s->prefix);
        gen_add(f, MOE_BF16, 2, latent_out, layer->latent_out, "%sfc2_latent_proj.weight",
                s->prefix);
    }
}

void gen_write(gen_layer *layer, gen_wrong wrong, gen_file *out)
{
    const gen_shape *s = &layer->shape;
    memset(out, 0, sizeof *out);
    out->owner = layer;
    if (s->names[1] != NULL) {
        add_experts(layer, wrong, out);
    } else {
        add_stacks(layer, wrong, out);
    }
    for (int p = s->gated ? 0 : 1; p < 3 && s->shared_inter > 0; p++) {
        static const char *const usual[3] = {"gate_proj", "up_proj", "down_proj"};
        char stem[200];
        (void)snprintf(stem, sizeof stem, "%s%s.%s", s->prefix, s->shared_name,
                       s->names[1] != NULL ? s->names[p] : usual[p]);
        add_matrix(out, stem, s->shared_style, &layer->shared[p], wrong);
    }
    add_rest(layer, out);
}

// ---- canonical ---------------------------------------------------------------------------------

// `count` experts of up to two matrices each, one after the other.
static void join_source(gen_layer *layer, gen_matrix (*m)[3], int32_t count, const int *parts,
                        int num, moe_matrix_source *out)
{
    const gen_matrix *a = &m[0][parts[0]];
    const int64_t rows = num * a->n;
    const size_t values = (size_t)a->n * a->row_bytes;
    const size_t scales = (size_t)(a->scale_rows * a->scale_cols) * scale_size(a);
    const size_t zeros = (size_t)(a->n * a->scale_cols);
    const size_t bias = (size_t)a->n * 2;
    const size_t all = (size_t)(count * num);
    uint8_t *v = gen_keep(layer, values * all);
    uint8_t *s = gen_keep(layer, scales * all);
    uint8_t *z = gen_keep(layer, zeros * all);
    uint8_t *b = gen_keep(layer, bias * all);
    float *s2 = gen_keep(layer, sizeof(float) * all);
    size_t at = 0;
    for (int32_t e = 0; e < count; e++) {
        for (int i = 0; i < num; i++, at++) {
            const gen_matrix *from = &m[e][parts[i]];
            memcpy(v + at * values, from->values, values);
            memcpy(s + at * scales, from->scales != NULL ? from->scales : from->values, scales);
            s2[at] = from->scale2;
            if (from->zeros != NULL) {
                memcpy(z + at * zeros, from->zeros, zeros);
            }
            if (from->bias != NULL) {
                memcpy(b + at * bias, from->bias, bias);
            }
        }
    }
    const bool wide = (size_t)a->k * 2 == a->row_bytes;
    out->values = moe_tensor_3d(v, wide ? MOE_BF16 : MOE_U8, count, rows,
                                (int64_t)a->row_bytes / (wide ? 2 : 1));
    if (a->one_scale) {
        out->scales = moe_tensor_2d(s, a->scale_dtype, count, num);
    } else if (a->scale_rows > 0) {
        out->scales = moe_tensor_3d(s, a->scale_dtype, count, num * a->scale_rows, a->scale_cols);
    }
    if (a->scale_dtype == MOE_E4M3FN) {
        out->scale2 = moe_tensor_2d(s2, MOE_F32, count, num);
    }
    if (a->zeros != NULL) {
        out->zero_points = moe_tensor_3d(z, MOE_U8, count, rows, a->scale_cols);
    }
    if (a->bias != NULL) {
        out->bias = moe_tensor_2d(b, MOE_BF16, count, rows);
    }
}

void gen_source(gen_layer *layer, moe_weights_source *out)
{
    static const int first[2] = {0, 1};
    static const int down[1] = {2};
    const gen_shape *s = &layer->shape;
    const int *up = s->gated ? first : first + 1;
    *out = moe_weights_source_default();
    join_source(layer, layer->m, s->experts, up, s->gated ? 2 : 1, &out->gemm[0]);
    join_source(layer, layer->m, s->experts, down, 1, &out->gemm[1]);
    if (s->shared_inter > 0) {
        join_source(layer, &layer->shared, 1, up, s->gated ? 2 : 1, &out->shared[0]);
        join_source(layer, &layer->shared, 1, down, 1, &out->shared[1]);
    }
    if (s->shared_gate) {
        out->shared_gate = moe_tensor_2d(layer->shared_gate, MOE_BF16, 1, s->hidden);
    }
    if (s->latent > 0) {
        out->latent_in = moe_tensor_2d(layer->latent_in, MOE_BF16, s->latent, s->hidden);
        out->latent_out = moe_tensor_2d(layer->latent_out, MOE_BF16, s->hidden, s->latent);
    }
}
