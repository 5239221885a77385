// SPDX-License-Identifier: Apache-2.0
// The CPU's integer products on packed weights against the portable rows on canonical ones, bit by
// bit: every format whose codes are integers, groups with and without zero points, the largest
// codes, the whole range of int8 and int16, scales that overflow, vanish, are NaN or at the edge of
// a range, odd numbers of k and outputs, bands that begin anywhere, rows of x around each tile.
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/packed.h"
#include "core/isa.h"
#include "quant/elements.h"
#include "unit/test.h"

extern const moei_backend moei_backend_cpu;

static uint64_t state = 1;

static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static uint8_t *take(int64_t bytes)
{
    uint8_t *memory = malloc((size_t)bytes);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static uint8_t *drawn(int64_t bytes)
{
    uint8_t *memory = take(bytes);
    for (int64_t i = 0; i < bytes; i++) {
        memory[i] = (uint8_t)draw();
    }
    return memory;
}

static const moei_kernel *row_of(const char *name)
{
    for (size_t i = 0; i < moei_backend_cpu.num_kernels; i++) {
        if (strcmp(moei_backend_cpu.kernels[i].name, name) == 0) {
            return &moei_backend_cpu.kernels[i];
        }
    }
    return NULL;
}

/// How a case is drawn.
typedef enum flavour {
    PLAIN,   // scales around 1
    TOP,     // every code is the largest, or its negative
    EXTREME, // any scale code, the largest and NaN too
    EDGE     // codes at the ends of the half of them that has a way of its own, some beyond
} flavour;

static const char *const flavour_names[] = {"plain", "largest codes", "extreme scales",
                                            "scales at an edge"};

typedef struct form {
    moe_format format;
    int32_t block_k; // 0: the format's
    moe_dtype scale_dtype;
    bool zeros;
    uint8_t zero_top;
} form;

/// One product of one expert, and memory that belongs to it.
typedef struct product {
    moek_ggemm_args args;
    uint8_t *values, *scales, *zeros, *x, *x_scales, *packed;
    float *bias, *scale2;
    const char *what;
} product;

static uint8_t draw_e8m0(flavour f)
{
    if (f == EDGE) {
        const uint32_t kind = draw() % 256;
        return (uint8_t)(kind == 0   ? draw()
                         : kind == 1 ? 63
                         : kind == 2 ? 192
                         : kind < 8  ? 191
                                     : 64 + kind % 2);
    }
    return (uint8_t)(f == EXTREME ? draw() : 110 + draw() % 30);
}

static void draw_scales(moe_dtype dtype, flavour f, int64_t count, uint8_t *to)
{
    for (int64_t i = 0; i < count; i++) {
        const float value = (float)(1 + draw() % 1000) / 512.0f * (draw() % 8 == 0 ? -1.0f : 1.0f);
        switch (dtype) {
        case MOE_E8M0:
            to[i] = draw_e8m0(f);
            break;
        case MOE_E4M3FN:
            to[i] = (uint8_t)(f == EXTREME ? draw() : 0x20 + draw() % 0x30);
            break;
        default:
            moei_store_f32(dtype, to + i * moe_dtype_bits(dtype) / 8, 1, &value);
            break;
        }
    }
}

// A block of x to zeros with this scale, as quantisers write a block that is zero, or one that has
// a NaN.
static void draw_zeros(product *p, int64_t group, int64_t at, int64_t scale_bytes, uint8_t scale)
{
    const int64_t k = p->args.w.k;
    const int64_t k0 = at % scale_bytes * group;
    if (k0 < k) {
        const int64_t bytes = moe_dtype_bits(p->args.x.dtype) / 8;
        p->x_scales[at] = scale;
        memset(p->x + (at / scale_bytes * k + k0) * bytes, 0,
               (size_t)(moei_i64_min(group, k - k0) * bytes));
    }
}

// Scales of x at one edge, and blocks of zeros with the least scale; in some products, one scale
// beyond, or a block of NaN.
static void draw_x_edges(product *p, int64_t group, int64_t rows, int64_t scale_bytes)
{
    const int64_t scales = rows * scale_bytes;
    const uint8_t edge = draw() % 2 == 0 ? 65 : 190;
    for (int64_t i = 0; i < scales; i++) {
        p->x_scales[i] = (uint8_t)(edge + draw() % 2);
        if (draw() % 8 == 0) {
            draw_zeros(p, group, i, scale_bytes, 1);
        }
    }
    switch (draw() % 3) {
    case 0:
        p->x_scales[(int64_t)draw() % scales] = edge == 65 ? 64 : 192;
        break;
    case 1:
        draw_zeros(p, group, (int64_t)draw() % scales, scale_bytes, 255);
        break;
    default:
        break;
    }
}

// group: of k that share a scale.
static void draw_x(product *p, moe_dtype dtype, int64_t group, flavour f, bool wide, int64_t rows,
                   bool packed)
{
    const int64_t k = p->args.w.k;
    const int64_t groups = moei_i64_ceil_div(k, group);
    const int64_t scale_bytes = packed ? moei_i64_round_up(groups, 4) : groups;
    moei_operand *x = &p->args.x;
    p->x = drawn(rows * moei_elem_bytes(dtype, k));
    for (int64_t i = 0; i < rows * k; i++) {
        if (dtype == MOE_I16) {
            int16_t code;
            memcpy(&code, p->x + 2 * i, 2);
            code = code > 32639 && !wide ? 32639 : code;
            if (f == TOP) {
                code = draw() % 16 == 0 ? 32639 : wide ? INT16_MIN : -32639;
            }
            memcpy(p->x + 2 * i, &code, 2);
        } else if (f == TOP) {
            p->x[i] = draw() % 16 == 0 ? 127 : 0x80;
        }
    }
    p->x_scales = take(rows * scale_bytes);
    draw_scales(MOE_E8M0, f, rows * scale_bytes, p->x_scales);
    *x = (moei_operand){.data = p->x,
                        .dtype = dtype,
                        .row_stride = moei_elem_bytes(dtype, k),
                        .scales = p->x_scales,
                        .scale_dtype = MOE_E8M0,
                        .group = (int32_t)group,
                        .packed = packed,
                        .scale_row_stride = packed ? scale_bytes / 4 : scale_bytes,
                        .scale_k_stride = 1};
    if (f == EDGE) {
        draw_x_edges(p, group, rows, scale_bytes);
    }
}

static void draw_weights(product *p, const form *how, flavour f, int64_t n, int64_t k)
{
    const moei_format_info *info = moei_format(how->format);
    const int64_t block_k = how->block_k > 0 ? how->block_k : info->block_k;
    const int64_t columns = block_k > 0 ? moei_i64_ceil_div(k, block_k) : 1;
    moei_matrices *m = &p->args.w;
    *m = (moei_matrices){.format = info, .n = n, .k = k, .count = 1, .part_rows = n};
    m->value_n_stride = moei_elem_bytes(info->elem, k);
    m->value_e_stride = n * m->value_n_stride;
    m->values = p->values = drawn(m->value_e_stride);
    for (int64_t i = 0; f == TOP && i < m->value_e_stride; i++) {
        const uint8_t top = info->elem == MOE_E2M1 ? (draw() % 16 == 0 ? 0x77 : 0xFF)
                            : info->elem == MOE_I8 ? (draw() % 16 == 0 ? 0x7F : 0x80)
                                                   : (draw() % 16 == 0 ? 0x00 : 0xFF);
        p->values[i] = top;
    }
    m->scale_dtype = how->scale_dtype;
    m->block_n = info->block_n;
    m->block_k = (int32_t)block_k;
    m->scale_parts = 1;
    m->scale_n_stride = columns;
    m->scale_k_stride = 1;
    m->scale_e_stride = columns * (info->block_n > 0 ? moei_i64_ceil_div(n, info->block_n) : 1);
    p->scales = take(m->scale_e_stride * moe_dtype_bits(m->scale_dtype) / 8);
    draw_scales(m->scale_dtype, f, m->scale_e_stride, p->scales);
    m->scales = p->scales;
    if (how->zeros) {
        m->zero_n_stride = columns;
        m->zero_e_stride = n * columns;
        m->zeros = p->zeros = drawn(n * columns);
        for (int64_t i = 0; i < n * columns; i++) {
            p->zeros[i] = (uint8_t)(f == TOP ? 0 : p->zeros[i] % (how->zero_top + 1));
        }
    }
    if (info->scale2) {
        p->scale2 = (float *)(void *)take(sizeof(float));
        p->scale2[0] = 0.37f;
        m->scale2 = p->scale2;
        m->scale2_parts = 1;
    }
    p->bias = (float *)(void *)take(n * (int64_t)sizeof(float));
    for (int64_t i = 0; i < n; i++) {
        p->bias[i] = (float)(int32_t)draw() * 0x1p-31f;
    }
    m->bias = f == EDGE ? NULL : p->bias; // beside which small sums would vanish
    m->bias_dtype = MOE_F32;
}

static void release(product *p)
{
    void *all[] = {p->values,   p->scales, p->zeros, p->x,
                   p->x_scales, p->packed, p->bias,  p->scale2};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free(all[i]);
    }
}

static moek_ggemm_args packed_args(product *p)
{
    moek_ggemm_args a = p->args;
    const size_t bytes = moei_cpu_packed_bytes(NULL, &p->args.w);
    free(p->packed);
    // Aligned as packed experts are.
    p->packed = aligned_alloc(64, bytes);
    if (p->packed == NULL) {
        abort();
    }
    CHECK(moei_cpu_pack(NULL, &p->args.w, p->packed) == MOE_OK, "%s", moe_last_error());
    a.w.layout = MOEI_LAYOUT_PACKED;
    a.w.values = p->packed;
    a.w.value_e_stride = (int64_t)bytes;
    a.w.scales = NULL;
    a.w.zeros = NULL;
    return a;
}

static const struct {
    const char *name;
    uint64_t needs;
} isas[] = {{"avx2", MOEI_ISA_AVX2_FMA},
            {"avx512", MOEI_ISA_AVX512_VNNI},
            {"neon_dotprod", MOEI_ISA_NEON_DOTPROD},
            {"neon", MOEI_ISA_NEON}};
#define NUM_ISAS (sizeof isas / sizeof isas[0])

static bool is_here(size_t isa, const char *variant)
{
    char name[64];
    (void)snprintf(name, sizeof name, "moek_ggemm_any_i8_packed__%s_%s", isas[isa].name, variant);
    return (moei_isa_detect() & isas[isa].needs) != 0 && row_of(name) != NULL;
}

// The product by the portable row, and by the packed ones in three bands.
static void compare(product *p, const char *text)
{
    char name[1 + NUM_ISAS][64];
    const moei_matrices *m = &p->args.w;
    char variant[16] = "i32";
    if (p->args.x.group > 0) { // the finer one
        const int64_t w = m->block_k > 0 ? m->block_k : p->args.x.group;
        (void)snprintf(variant, sizeof variant, "b%d", (int)moei_i64_min(w, p->args.x.group));
    }
    (void)snprintf(name[0], sizeof name[0], "moek_ggemm_any_any_any__ref_fma_%s", variant);
    if (row_of(name[0]) == NULL) { // no such build on this architecture
        (void)snprintf(name[0], sizeof name[0], "moek_ggemm_any_any_any__ref_%s", variant);
    }
    const int64_t rows = p->args.rows;
    const int64_t bands[] = {0, m->n / 3, m->n - m->n / 5, m->n};
    float *y[1 + NUM_ISAS] = {NULL};
    for (size_t i = 0; i <= NUM_ISAS; i++) {
        if (i > 0 && !is_here(i - 1, variant)) {
            continue;
        }
        moek_ggemm_args args = i == 0 ? p->args : packed_args(p);
        if (i > 0) {
            (void)snprintf(name[i], sizeof name[i], "moek_ggemm_any_%s_packed__%s_%s",
                           p->args.x.dtype == MOE_I8 ? "i8" : "i16", isas[i - 1].name, variant);
        }
        y[i] = (float *)(void *)take(rows * m->n * (int64_t)sizeof(float));
        memset(y[i], 0xEE, (size_t)(rows * m->n) * sizeof(float));
        args.y = (uint8_t *)y[i];
        args.y_row_stride = m->n * (int64_t)sizeof(float);
        args.y_dtype = MOE_F32;
        for (int b = 0; b < 3; b++) {
            ((moek_ggemm_fn *)row_of(name[i])->fn)(&args, 0, 0, rows, bands[b], bands[b + 1]);
        }
        int64_t at = 0;
        while (at < rows * m->n && memcmp(&y[0][at], &y[i][at], sizeof(float)) == 0) {
            at++;
        }
        CHECK(at == rows * m->n,
              "%s, %s in groups of %d%s, x in groups of %d, %d rows, n %d, k %d%s: output %d of "
              "row %d is %.9g, not %.9g",
              name[i], m->format->name, (int)m->block_k, m->zeros != NULL ? ", zero points" : "",
              (int)p->args.x.group, (int)rows, (int)m->n, (int)m->k, text, (int)(at % m->n),
              (int)(at / m->n), (double)y[i][at], (double)y[0][at]);
    }
    for (size_t i = 0; i <= NUM_ISAS; i++) {
        free(y[i]);
    }
}

static void test_case(const form *how, moe_dtype x_dtype, int64_t group, flavour f, bool wide,
                      int64_t n, int64_t k, int64_t rows)
{
    product p = {.args = {.rows = rows, .row_divisor = 1}};
    char text[64];
    (void)snprintf(text, sizeof text, ", %s%s", flavour_names[f], wide ? ", all of int16" : "");
    draw_weights(&p, how, f, n, k);
    draw_x(&p, x_dtype, group, f, wide, rows, draw() % 2 == 0);
    compare(&p, text);
    release(&p);
}

// int8 with int8 and a scale of a row: integers are summed over all of k.
static void test_whole(const form *how, flavour f, int64_t n, int64_t k, int64_t rows)
{
    product p = {.args = {.rows = rows, .row_divisor = 1}};
    draw_weights(&p, how, f, n, k);
    draw_x(&p, MOE_I8, 32, f, false, rows, false);
    free(p.x_scales);
    p.x_scales = take(rows * (int64_t)sizeof(float));
    draw_scales(MOE_F32, f, rows, p.x_scales);
    p.args.x.scales = p.x_scales;
    p.args.x.scale_dtype = MOE_F32;
    p.args.x.group = 0;
    p.args.x.scale_row_stride = 1;
    compare(&p, flavour_names[f]);
    release(&p);
}

// The longest k whose sums fit in 32 bits, and longer ones.
static void test_longest(const form *how)
{
    static const int64_t ks[] = {131071, 131072, 200003};
    for (int i = 0; i < 3; i++) {
        for (int64_t rows = 1; rows < 6; rows += 4) {
            test_whole(how, TOP, 17, ks[i], rows);
        }
    }
}

static void test_form(const form *how)
{
    static const int64_t sizes[][2] = {{97, 272}, {64, 96}, {200, 33}, {17, 15}, {150, 335}};
    static const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 40};
    const bool bytes = moe_dtype_bits(moei_format(how->format)->elem) == 8;
    int turn = 0;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        for (int i = PLAIN; i <= EXTREME; i++) {
            const flavour f = (flavour)i;
            const int64_t *size = sizes[turn++ % 5];
            if (bytes && moei_format(how->format)->block_k == 0) {
                test_whole(how, f, size[0], size[1], rows[r]);
            }
            test_case(how, MOE_I8, 32, f, false, size[0], size[1], rows[r]);
            test_case(how, MOE_I8, 128, f, false, size[0], size[1], rows[r]);
            for (int wide = 0; !bytes && wide < 2; wide++) {
                test_case(how, MOE_I16, 32, f, wide == 1, size[0], size[1], rows[r]);
            }
        }
    }
}

// Panels that are whole, so that scales decide which way a record goes.
static void test_edges(const form *how)
{
    for (int64_t rows = 1; rows < 14; rows++) {
        for (int turn = 0; turn < 6; turn++) {
            test_case(how, MOE_I8, turn % 2 == 0 ? 32 : 128, EDGE, false, 150, 335, rows);
        }
    }
}

int main(void)
{
    static const form forms[] = {
        {MOE_FORMAT_MXFP4, 0, MOE_E8M0, false, 0},
        {MOE_FORMAT_NVFP4, 0, MOE_E4M3FN, false, 0},
        {MOE_FORMAT_INT4_GROUP, 16, MOE_BF16, false, 0},
        {MOE_FORMAT_INT4_GROUP, 16, MOE_F16, true, 15},
        {MOE_FORMAT_INT4_GROUP, 32, MOE_F32, true, 16},
        {MOE_FORMAT_INT4_GROUP, 64, MOE_F16, false, 0},
        {MOE_FORMAT_INT4_GROUP, 128, MOE_F32, true, 255}, // sums with int16 round
        {MOE_FORMAT_INT8_TENSOR, 0, MOE_F32, false, 0},
        {MOE_FORMAT_INT8_CHANNEL, 0, MOE_BF16, false, 0},
        {MOE_FORMAT_INT8_BLOCK, 0, MOE_F32, false, 0},
        {MOE_FORMAT_INT8_GROUP, 64, MOE_F16, false, 0},
        {MOE_FORMAT_UINT8_GROUP, 32, MOE_F32, false, 0},
        {MOE_FORMAT_UINT8_GROUP, 16, MOE_F32, true, 255}};
    size_t here = 0;
    for (size_t i = 0; i < NUM_ISAS; i++) {
        here += is_here(i, "b32");
        if (!is_here(i, "b32")) {
            (void)printf("skipped: %s: not on this machine\n", isas[i].name);
        } else if (!is_here(i, "i32")) {
            (void)printf("skipped: %s: no row of class i32\n", isas[i].name);
        }
    }
    if (here == 0) {
        return 0;
    }
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        test_form(&forms[i]);
    }
    // Rows so long that not all of x is prepared at once, and more panels than keep their sums.
    test_case(&forms[0], MOE_I8, 32, PLAIN, false, 330, 4000, 32);
    test_case(&forms[0], MOE_I8, 128, PLAIN, false, 330, 4000, 27);
    test_case(&forms[6], MOE_I8, 128, PLAIN, false, 330, 4000, 27);
    test_case(&forms[8], MOE_I8, 128, PLAIN, false, 330, 4000, 27);
    test_case(&forms[4], MOE_I16, 32, PLAIN, false, 330, 2100, 40);
    test_longest(&forms[8]);
    test_edges(&forms[0]);
    return test_summary();
}
