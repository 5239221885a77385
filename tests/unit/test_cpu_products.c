// SPDX-License-Identifier: Apache-2.0
// The CPU's products with AVX2, or NEON, against the portable ones, bit by bit: every format, rows
// as long as those of real layers (of which a kernel takes 64, 32 or 16 outputs at a time), numbers
// of rows of x around each tile, canonical, transposed and packed, x of any magnitude. Buffers end
// where their data does, for sanitizers.
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/packed.h"
#include "core/isa.h"
#include "ops/ggemm.h"
#include "quant/elements.h"
#include "unit/test.h"

extern const moei_backend moei_backend_cpu;

#if defined(__aarch64__)
#define NEEDED   MOEI_ISA_NEON
#define TUNED    "neon"
#define PORTABLE "ref"
#else
#define NEEDED   MOEI_ISA_AVX2_FMA
#define TUNED    "avx2"
#define PORTABLE "ref_fma"
#endif

static uint64_t state = 1;

static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

// Numbers of both signs around 1; of types with few bits any code but NaN and infinity.
static void fill(moe_dtype dtype, uint8_t *to, int64_t count)
{
    const int64_t bytes = moei_elem_bytes(dtype, count);
    for (int64_t i = 0; i < bytes; i++) {
        to[i] = (uint8_t)draw();
        switch (dtype) {
        case MOE_F32:
            to[i] = i % 4 == 3 ? (to[i] & 0x80) | 0x3F : i % 4 == 2 ? to[i] & 0x7F : to[i];
            break;
        case MOE_BF16:
            to[i] = i % 2 == 1 ? (to[i] & 0x80) | 0x3F : to[i];
            break;
        case MOE_F16:
            to[i] = i % 2 == 1 ? (to[i] & 0x83) | 0x38 : to[i];
            break;
        case MOE_E8M0:
            to[i] = (uint8_t)(100 + to[i] % 40);
            break;
        case MOE_E4M3FN:
        case MOE_E4M3FNUZ:
        case MOE_E5M2:
            to[i] &= 0xBF;
            break;
        default:
            break;
        }
    }
}

static void *take(int64_t bytes)
{
    void *memory = malloc((size_t)bytes);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static void *filled(moe_dtype dtype, int64_t count)
{
    uint8_t *memory = take(moei_elem_bytes(dtype, count));
    fill(dtype, memory, count);
    return memory;
}

// That of floats (integers need x as codes).
static const moei_kernel *row_of(const char *isa, moei_weight_layout layout, moei_arith arith)
{
    for (size_t i = 0; i < moei_backend_cpu.num_kernels; i++) {
        const moei_kernel *kernel = &moei_backend_cpu.kernels[i];
        if (kernel->op == MOEI_OP_GGEMM && kernel->arith == arith && kernel->layout == layout &&
            strcmp(kernel->isa_name, isa) == 0 && strstr(kernel->name, "_any_any_") != NULL) {
            return kernel;
        }
    }
    return NULL;
}

/// One product of one expert.
typedef struct product {
    moek_ggemm_args args;
    void *values, *scales, *zeros, *scale2, *bias, *x;
    moei_arith arith;
} product;

static void make(product *p, const moei_format_info *info, int64_t n, int64_t k, int64_t rows,
                 bool transposed, bool zeros, moe_dtype x_dtype)
{
    moei_matrices *m = &p->args.w;
    const int bits = moe_dtype_bits(info->elem);
    *p = (product){.arith = MOEI_ARITH_FMA_C256};
    *m = (moei_matrices){.format = info, .n = n, .k = k, .count = 1, .part_rows = n};
    const int64_t inner = moei_elem_bytes(info->elem, transposed ? n : k);
    const int64_t outer = transposed ? k : n;
    p->values = take(inner * outer);
    for (int64_t i = 0; i < outer; i++) {
        fill(info->elem, (uint8_t *)p->values + i * inner, transposed ? n : k);
    }
    m->values = p->values;
    m->value_e_stride = inner * outer;
    m->value_n_stride = transposed ? bits / 8 : inner;
    m->value_k_stride = transposed ? inner : 0;
    if (info->scale_dtypes != 0) {
        const moei_arith arith[] = {MOEI_ARITH_FMA_B16, MOEI_ARITH_FMA_B32, MOEI_ARITH_FMA_B64,
                                    MOEI_ARITH_FMA_B128};
        const int64_t columns = info->block_k > 0 ? moei_i64_ceil_div(k, info->block_k) : 1;
        m->scale_dtype = moei_format_scale_dtype(info);
        m->block_n = info->block_n;
        m->block_k = info->block_k;
        m->scale_n_stride = info->block_n > 0 ? columns : 0;
        m->scale_k_stride = 1;
        m->scale_parts = 1;
        m->scale_e_stride = columns * (info->block_n > 0 ? moei_i64_ceil_div(n, info->block_n) : 1);
        p->scales = filled(m->scale_dtype, m->scale_e_stride);
        m->scales = p->scales;
        for (int i = 0; i < 4; i++) {
            p->arith = info->block_k == 16 << i ? arith[i] : p->arith;
        }
    }
    if (zeros) {
        m->zero_n_stride = moei_i64_ceil_div(k, info->block_k);
        m->zero_e_stride = n * m->zero_n_stride;
        p->zeros = filled(MOE_U8, m->zero_e_stride);
        m->zeros = p->zeros;
        m->zero_form = MOEI_ZERO_BYTES;
    }
    if (info->scale2) {
        p->scale2 = filled(MOE_F32, 1);
        m->scale2 = p->scale2;
        m->scale2_parts = 1;
    }
    p->bias = filled(MOE_BF16, n);
    m->bias = p->bias;
    m->bias_dtype = MOE_BF16;
    p->x = filled(x_dtype, rows * k);
    p->args.x.data = p->x;
    p->args.x.dtype = x_dtype;
    p->args.x.row_stride = moei_elem_bytes(x_dtype, k);
    p->args.rows = rows;
    p->args.row_divisor = 1;
    p->args.y_dtype = MOE_F32;
    p->args.y_row_stride = n * (int64_t)sizeof(float);
}

static void release(product *p)
{
    void *all[] = {p->values, p->scales, p->zeros, p->scale2, p->bias, p->x};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free(all[i]);
    }
}

static float *run(product *p, const moei_kernel *kernel)
{
    const int64_t bytes = p->args.rows * p->args.y_row_stride;
    float *y = take(bytes);
    memset(y, 0xEE, (size_t)bytes);
    p->args.y = (uint8_t *)y;
    ((moek_ggemm_fn *)kernel->fn)(&p->args, 0, 0, p->args.rows, 0, p->args.w.n);
    return y;
}

static void compare(product *p, const moei_kernel *kernel, const float *want, const char *text)
{
    float *y = run(p, kernel);
    const int64_t count = p->args.rows * p->args.w.n;
    int64_t first = 0;
    while (first < count && memcmp(&want[first], &y[first], sizeof(float)) == 0) {
        first++;
    }
    CHECK(first == count,
          "%s, %s x %s, %d rows, n %d, k %d%s%s: output %d of row %d is %.9g, not %.9g",
          kernel->name, moe_dtype_name(p->args.x.dtype), p->args.w.format->name, (int)p->args.rows,
          (int)p->args.w.n, (int)p->args.w.k, p->args.w.zeros != NULL ? ", zero points" : "", text,
          (int)(first % p->args.w.n), (int)(first / p->args.w.n), (double)y[first],
          (double)want[first]);
    free(y);
}

static void compare_rows(product *p, const char *text)
{
    const moei_kernel *kernel = row_of(TUNED, MOEI_LAYOUT_PACKED, p->arith);
    float *want = run(p, row_of(PORTABLE, MOEI_LAYOUT_ROW, p->arith));
    compare(p, row_of(TUNED, MOEI_LAYOUT_ROW, p->arith), want, text);
    if (kernel != NULL && moei_cpu_packed_takes(p->args.w.format, p->args.w.block_k)) {
        const int64_t bytes = (int64_t)moei_cpu_packed_bytes(kernel, &p->args.w);
        uint8_t *packed = take(bytes);
        CHECK(moei_cpu_pack(kernel, &p->args.w, packed) == MOE_OK, "not packed");
        p->args.w.values = packed;
        p->args.w.value_e_stride = bytes;
        compare(p, kernel, want, text);
        free(packed);
    }
    free(want);
}

// One x that a power of two would make subnormal, or infinite.
static void make_extreme(product *p, bool tiny)
{
    const float value = tiny ? 0x1.8p-125f : 0x1.8p126f;
    const int64_t at = draw() % (uint32_t)(p->args.rows * p->args.w.k);
    const int64_t size = moe_dtype_bits(p->args.x.dtype) / 8;
    moei_store_f32(p->args.x.dtype, (uint8_t *)p->x + at * size, 1, &value);
}

static void test_format(const moei_format_info *info)
{
    // Sizes of n and k; rows of 7300, 2112 and 1100 elements of two bytes take each width of a
    // panel; those of 2048 meet in few sets of a cache.
    static const int64_t sizes[][2] = {{97, 1100}, {67, 2112}, {41, 2048},
                                       {35, 4161}, {33, 7300}, {7, 63}};
    static const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 13, 37};
    static const moe_dtype floats[] = {MOE_F32, MOE_BF16, MOE_F16};
    const bool whole = moe_dtype_bits(info->elem) >= 8;
    int turn = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            for (int form = 0; form < 3; form++) {
                const bool zeros = form == 1;
                const bool transposed = form == 2;
                if ((zeros && info->zero_point < 0) || (transposed && (!whole || s != 0))) {
                    continue;
                }
                product p;
                make(&p, info, sizes[s][0], sizes[s][1], rows[r], transposed, zeros,
                     floats[turn++ % 3]);
                if (p.args.x.dtype == MOE_F32) {
                    make_extreme(&p, rows[r] % 2 == 0);
                }
                compare_rows(&p, transposed ? ", transposed" : "");
                release(&p);
            }
        }
    }
    // Blocks of rows, and more panels and k than are prepared at once.
    product p;
    make(&p, info, 449, 300, 190, false, false, MOE_BF16);
    compare_rows(&p, ", blocks");
    release(&p);
}

int main(void)
{
    const moei_format_info *info;
    if ((moei_isa_detect() & NEEDED) == 0 ||
        row_of(TUNED, MOEI_LAYOUT_ROW, MOEI_ARITH_FMA_C256) == NULL) {
        (void)printf("skipped: no %s here\n", TUNED);
        return 0;
    }
    for (size_t f = 0; (info = moei_format_at(f)) != NULL; f++) {
        test_format(info);
    }
    return test_summary();
}
