// SPDX-License-Identifier: Apache-2.0
// Classes amx_bf16 and amx_bf16_b32: every row of this machine, and the rows of AMX with tiles that
// are emulated, against the portable one, bit by bit. That of MXFP4 needs AVX-512: the test is
// built twice. Operands and sums around the smallest normal number, where
// results are flushed; any finite bits; rows, outputs and k around each tile; rows of x that lie in
// order, anywhere, or where they clash; bands that begin anywhere.
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/packed.h"
#include "core/isa.h"
#include "quant/elements.h"
#include "unit/test.h"

#define MOEI_TILES                      "unit/emulated_tiles.h"
#define moek_ggemm_any_bf16_packed__amx emulated_row
#ifdef __AVX512BW__
#define moek_ggemm_any_bf16_packed__amx_b32 emulated_row
#include "backends/cpu/amx/ggemm_bf16_packed_b32.c" // NOLINT
#define FORMAT MOE_FORMAT_MXFP4
#define CLASS  "amx_b32"
#define NEEDS  MOEI_ISA_AVX512
#else
#define moek_ggemm_any_bf16_packed__amx emulated_row
#include "backends/cpu/amx/ggemm_bf16_packed.c" // NOLINT
#define FORMAT MOE_FORMAT_BF16
#define CLASS  "amx"
#define NEEDS  MOEI_ISA_AVX2_FMA
#endif

extern const moei_backend moei_backend_cpu;

static uint64_t state = 1;

static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static void *take(int64_t bytes)
{
    void *memory = aligned_alloc(64, (size_t)moei_i64_round_up(bytes, 64));
    if (memory == NULL) {
        abort();
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

/// How operands are drawn.
typedef enum flavour {
    NORMAL,
    SMALL, // products around 2^-126
    TINY,  // subnormal operands among huge ones
    FAINT, // x so small that scales could take it below 2^-126
    FAR,   // any scales
    ANY,   // any finite bits
    NUM_FLAVOURS
} flavour;

static const char *const flavour_names[] = {"normal", "around 2^-126", "subnormal operands",
                                            "faint",  "any scales",    "any"};

static uint16_t draw_bf16(flavour f)
{
    const uint32_t sign_fraction = draw() & 0x807Fu;
    const uint32_t exponent = f == NORMAL || f == FAR ? 120 + draw() % 8
                              : f == SMALL            ? 60 + draw() % 9
                              : f == FAINT            ? 10 + draw() % 10
                              : f == TINY             ? (draw() % 4 == 0 ? 0 : 100 + draw() % 100)
                                                      : draw() % 255;
    return (uint16_t)(sign_fraction | exponent << 7);
}

static uint16_t *drawn(flavour f, int64_t count)
{
    uint16_t *to = take(2 * count);
    for (int64_t i = 0; i < count; i++) {
        to[i] = draw() % 16 == 0 ? 0 : draw_bf16(f);
    }
    return to;
}

// Codes of 4 bits, and their scales.
static void draw_codes(flavour f, moei_matrices *m)
{
    const int64_t blocks = moei_i64_ceil_div(m->k, 32);
    uint8_t *values = take(m->value_e_stride);
    uint8_t *scales = take(m->n * blocks);
    for (int64_t i = 0; i < m->value_e_stride; i++) {
        values[i] = (uint8_t)draw();
    }
    for (int64_t i = 0; i < m->n * blocks; i++) {
        scales[i] = (uint8_t)(f >= FAR ? draw() % 255 : 100 + draw() % 50);
    }
    m->values = values;
    m->scales = scales;
    m->scale_dtype = MOE_E8M0;
    m->block_k = 32;
    m->block_n = 1;
    m->scale_parts = 1;
    m->scale_k_stride = 1;
    m->scale_n_stride = blocks;
    m->scale_e_stride = m->n * blocks;
}

/// A product of one expert.
typedef struct product {
    moek_ggemm_args args, packed;
    int32_t *index;
    const char *text;
} product;

static void make(product *p, flavour f, int64_t n, int64_t k, int64_t rows, int form)
{
    const int64_t stride = form == 2 ? moei_i64_round_up(2 * k, 1024) : 2 * k;
    *p = (product){.args = {.rows = rows, .row_divisor = 1}};
    moei_matrices *m = &p->args.w;
    const int64_t bytes_of_k = moei_elem_bytes(moei_format(FORMAT)->elem, k);
    *m = (moei_matrices){.format = moei_format(FORMAT),
                         .n = n,
                         .k = k,
                         .count = 1,
                         .part_rows = n,
                         .value_n_stride = bytes_of_k,
                         .value_e_stride = bytes_of_k * n};
    if (FORMAT == MOE_FORMAT_BF16) {
        m->values = (const uint8_t *)drawn(f, n * k);
    } else {
        draw_codes(f, m);
    }
    p->args.x = (moei_operand){.data = (const uint8_t *)drawn(f, rows * stride / 2),
                               .dtype = MOE_BF16,
                               .row_stride = stride};
    if (form == 1) {
        p->index = take(rows * (int64_t)sizeof *p->index);
        for (int64_t i = 0; i < rows; i++) {
            p->index[i] = (int32_t)(draw() % (uint32_t)rows);
        }
        p->args.row_index = p->index;
    }
    p->args.y_dtype = MOE_F32;
    p->args.y_row_stride = 4 * n;
    const size_t bytes = moei_cpu_packed_bytes(NULL, m);
    uint8_t *packed = take((int64_t)bytes);
    CHECK(moei_cpu_pack(NULL, m, packed) == MOE_OK, "%s", moe_last_error());
    p->packed = p->args;
    p->packed.w.layout = MOEI_LAYOUT_PACKED;
    p->packed.w.values = packed;
    p->packed.w.value_e_stride = (int64_t)bytes;
    p->packed.w.scales = NULL;
}

static void release(product *p)
{
    free((void *)(uintptr_t)p->args.w.values);
    free((void *)(uintptr_t)p->packed.w.values);
    free((void *)(uintptr_t)p->args.w.scales);
    free((void *)(uintptr_t)p->args.x.data);
    free(p->index);
}

// In three bands.
static float *run_args(moek_ggemm_args a, moek_ggemm_fn *fn)
{
    const int64_t n = a.w.n;
    const int64_t bands[] = {0, n / 3, n - n / 5, n};
    float *y = take(4 * n * a.rows);
    memset(y, 0xEE, (size_t)(4 * n * a.rows));
    a.y = (uint8_t *)y;
    for (int b = 0; b < 3; b++) {
        fn(&a, 0, 0, a.rows, bands[b], bands[b + 1]);
    }
    return y;
}

static float *run(const product *p, moek_ggemm_fn *fn, bool packed)
{
    return run_args(packed ? p->packed : p->args, fn);
}

static void compare_y(const product *p, const float *want, float *y, const char *name)
{
    const int64_t n = p->args.w.n;
    int64_t first = 0;
    while (first < p->args.rows * n && memcmp(&y[first], &want[first], sizeof *y) == 0) {
        first++;
    }
    CHECK(first == p->args.rows * n,
          "%s: %s, %d rows, n %d, k %d: output %d of row %d is %.9g, not %.9g", name, p->text,
          (int)p->args.rows, (int)n, (int)p->args.w.k, (int)(first % n), (int)(first / n),
          (double)y[first], (double)want[first]);
    free(y);
}

static void compare(const product *p, const float *want, moek_ggemm_fn *fn, bool packed,
                    const char *name)
{
    compare_y(p, want, run(p, fn, packed), name);
}

// x is tiles already, which two tasks made.
static void compare_tiled(const product *p, const float *want)
{
    moek_ggemm_args a = p->packed;
    const int64_t count = moei_i64_ceil_div(a.rows, MOEI_CPU_TILE_ROWS);
    const int64_t k = a.w.k;
    const int64_t half = k / 2 / MOEI_CPU_RECORD * MOEI_CPU_RECORD;
    moei_cpu_x_tiles x = {.k = k, .bytes = moei_cpu_x_tiles_bytes(k)};
    x.at = take(count * x.bytes);
    memset(x.at, 0xEE, (size_t)(count * x.bytes));
    for (int64_t t = 0; t < count; t++) {
        moei_cpu_x_tiles_begin(&x, t);
    }
    moei_cpu_x_tiles_fill(&x, 0, &a, 0, 0, a.rows, 0, half);
    moei_cpu_x_tiles_fill(&x, 0, &a, 0, 0, a.rows, half, k);
    a.x.data = x.at;
    a.x.row_stride = MOEI_CPU_TILED;
    a.row_index = NULL;
    compare_y(p, want, run_args(a, emulated_row), "emulated tiles, x as tiles");
    free(x.at);
}

static uint64_t isa;

static void test_rows(const product *p, const float *want)
{
    static const char *const names[] = {
        "moek_ggemm_any_any_any__ref_fma_" CLASS, "moek_ggemm_any_any_any__avx2_" CLASS,
        "moek_ggemm_any_any_any__avx512_" CLASS, "moek_ggemm_any_bf16_packed__avx512_" CLASS};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const moei_kernel *row = row_of(names[i]);
        CHECK(row != NULL, "there is no %s", names[i]);
        if (row != NULL && (row->isa & ~isa) == 0) {
            compare(p, want, (moek_ggemm_fn *)row->fn, row->layout == MOEI_LAYOUT_PACKED, names[i]);
        }
    }
    if (p->args.rows > FEW || (isa & MOEI_ISA_AVX512) != 0) {
        tiles = (emulated_tiles){.faults = 0};
        compare(p, want, emulated_row, true, "emulated tiles");
        CHECK(tiles.begun == tiles.ended && tiles.faults == 0,
              "tiles are set up %d times, released %d times; %d faults", tiles.begun, tiles.ended,
              tiles.faults);
        CHECK((tiles.begun > 0) == (p->args.rows > FEW), "%d rows: tiles are set up %d times",
              (int)p->args.rows, tiles.begun);
        compare_tiled(p, want);
        CHECK(tiles.begun == tiles.ended && tiles.faults == 0,
              "x as tiles: %d set up, %d released; %d faults", tiles.begun, tiles.ended,
              tiles.faults);
    }
}

static moek_ggemm_fn *portable(void)
{
    return (moek_ggemm_fn *)row_of("moek_ggemm_any_any_any__ref_" CLASS)->fn;
}

static void test_case(flavour f, int64_t n, int64_t k, int64_t rows, int form)
{
    static const char *const forms[] = {"in order", "anywhere", "1 KiB apart"};
    char text[96];
    product p;
    make(&p, f, n, k, rows, form);
    (void)snprintf(text, sizeof text, "%s, rows lie %s", flavour_names[f], forms[form]);
    p.text = text;
    float *want = run(&p, portable(), false);
    test_rows(&p, want);
    free(want);
    release(&p);
}

#if !defined(__AVX512BW__)
// One output: products x[k] * w[k] that are given as powers of two with factors.
static void test_value(const char *text, const float x[4], const float w[4], float want)
{
    product p;
    make(&p, NORMAL, 1, 4, 3, 0);
    p.text = text;
    for (int k = 0; k < 4; k++) {
        const uint16_t values[2] = {moei_f32_to_bf16(x[k]), moei_f32_to_bf16(w[k])};
        for (int r = 0; r < 3; r++) {
            memcpy((uint8_t *)(uintptr_t)p.args.x.data + 8 * r + 2 * k, &values[0], 2);
        }
        memcpy((uint8_t *)(uintptr_t)p.args.w.values + 2 * k, &values[1], 2);
    }
    CHECK(moei_cpu_pack(NULL, &p.args.w, (uint8_t *)(uintptr_t)p.packed.w.values) == MOE_OK, "%s",
          moe_last_error());
    const float all[3] = {want, want, want};
    compare(&p, all, portable(), false, "portable");
    test_rows(&p, all);
    release(&p);
}

// What is flushed, and what is not, from the definition alone.
static void test_values(void)
{
    // Just below the smallest normal number, a product in the same chain as it.
    test_value("2^-126 - 2^-151 rounds up", (float[]){0x1p-60f, 0, -0x1p-76f, 0},
               (float[]){0x1p-66f, 0, 0x1p-75f, 0}, 0x1p-126f);
    test_value("2^-126 - 1.5 * 2^-151 does not", (float[]){0x1p-60f, 0, -0x1.8p-76f, 0},
               (float[]){0x1p-66f, 0, 0x1p-75f, 0}, 0.0f);
    test_value("2^-127 + 2^-127 in one chain", (float[]){0x1p-60f, 0, 0x1p-60f, 0},
               (float[]){0x1p-67f, 0, 0x1p-67f, 0}, 0.0f);
    test_value("1.5 * 2^-126 - 2^-126 of two chains", (float[]){0x1.8p-60f, -0x1p-60f, 0, 0},
               (float[]){0x1p-66f, 0x1p-66f, 0, 0}, 0.0f);
    test_value("a subnormal operand", (float[]){0x1p-127f, 0x1p-126f, 0, 0},
               (float[]){0x1p100f, 0x1p100f, 0, 0}, 0x1p-26f);
    test_value("even and odd sums are rounded apart", (float[]){1, 1, 0x1p-24f, 0x1p-24f},
               (float[]){1, 1, 1, 1}, 2.0f);
}
#else
static void test_values(void)
{
}
#endif

int main(void)
{
    static const int64_t sizes[][2] = {{97, 272}, {64, 96},  {200, 33}, {17, 15},  {150, 64},
                                       {16, 335}, {70, 600}, {330, 40}, {272, 545}};
    static const int64_t rows[] = {1, 2, 3, 5, 16, 17, 31, 32, 33, 64, 70, 97, 270};
    int turn = 0;
    isa = moei_isa_detect();
    if ((isa & NEEDS) == 0) {
        (void)printf("skipped: no %s here\n",
                     NEEDS == MOEI_ISA_AVX512 ? "AVX-512" : "AVX2 and FMA");
        return 0;
    }
    test_values();
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        for (int f = 0; f < NUM_FLAVOURS; f++) {
            const int64_t *size = sizes[turn++ % 9];
            const int64_t k = FORMAT == MOE_FORMAT_BF16 ? size[1] : moei_i64_round_up(size[1], 2);
            test_case((flavour)f, size[0], k, rows[r], turn % 3);
        }
    }
    return test_summary();
}
