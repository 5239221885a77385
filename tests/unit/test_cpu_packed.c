// SPDX-License-Identifier: Apache-2.0
// The CPU's packed layout: every element lies where packed.h says, and all comes back as it was
// given, for every format that has one, odd sizes, transposed weights, zero points.
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/packed.h"
#include "quant/elements.h"
#include "unit/test.h"

static uint64_t state = 1;

static uint8_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(state >> 56);
}

static uint8_t *filled(int64_t bytes)
{
    uint8_t *memory = malloc((size_t)bytes + 1);
    if (memory == NULL) {
        abort();
    }
    for (int64_t i = 0; i < bytes; i++) {
        memory[i] = draw();
    }
    return memory;
}

/// An expert and what its parts take.
typedef struct expert {
    moei_matrices m;
    int64_t values, scales, zeros; // bytes
} expert;

static expert make(const moei_format_info *info, int64_t n, int64_t k, int64_t block_k,
                   int64_t part_rows, bool transposed, bool zeros)
{
    const int bits = moe_dtype_bits(info->elem);
    const int64_t inner = moei_elem_bytes(info->elem, transposed ? n : k);
    const int64_t columns = block_k > 0 ? moei_i64_ceil_div(k, block_k) : 1;
    expert e = {.m = {.format = info, .n = n, .k = k, .count = 1, .part_rows = part_rows}};
    moei_matrices *m = &e.m;
    e.values = inner * (transposed ? k : n);
    m->value_e_stride = e.values;
    m->value_n_stride = transposed ? bits / 8 : inner;
    m->value_k_stride = transposed ? inner : 0;
    m->values = filled(e.values);
    if (info->scale_dtypes != 0) {
        const int64_t rows = info->block_n > 0
                                 ? n / part_rows * moei_i64_ceil_div(part_rows, info->block_n)
                                 : n / part_rows;
        m->scale_dtype = moei_format_scale_dtype(info);
        m->block_n = info->block_n;
        m->block_k = (int32_t)block_k;
        m->scale_parts = (int32_t)(n / part_rows);
        m->scale_n_stride = columns;
        m->scale_k_stride = 1;
        m->scale_e_stride = rows * columns;
        e.scales = m->scale_e_stride * moe_dtype_bits(m->scale_dtype) / 8;
        m->scales = filled(e.scales);
        if (block_k == 0) { // kept as f32: no NaN, whose payload would not come back
            for (int64_t i = 0; i < m->scale_e_stride; i++) {
                const float value = 1.0f + (float)i / 8.0f;
                uint8_t *at = (uint8_t *)(uintptr_t)m->scales;
                moei_store_f32(m->scale_dtype, at + i * moe_dtype_bits(m->scale_dtype) / 8, 1,
                               &value);
            }
        }
    }
    if (zeros) {
        m->zero_n_stride = columns;
        m->zero_e_stride = e.zeros = n * columns;
        m->zeros = filled(e.zeros);
    }
    return e;
}

static void release(const expert *e)
{
    free((void *)(uintptr_t)e->m.values);
    free((void *)(uintptr_t)e->m.scales);
    free((void *)(uintptr_t)e->m.zeros);
}

static float code_of(const moei_matrices *m, int64_t n, int64_t k)
{
    return m->value_k_stride == 0
               ? moei_load_one(m->format->elem, m->values + n * m->value_n_stride, k)
               : moei_load_one(m->format->elem, m->values + k * m->value_k_stride, n);
}

// The element as the text at the head of packed.h places it.
static float code_in(const moei_matrices *m, const uint8_t *strip, int64_t o, int64_t k)
{
    uint8_t bytes[2];
    switch (m->format->elem) {
    case MOE_BF16:
        return moei_load_one(MOE_BF16, strip + k / 2 * 64 + o * 4, k % 2);
    case MOE_F16:
        return moei_load_one(MOE_F16, strip + k * 32 + o * 2, 0);
    case MOE_E4M3FN:
    case MOE_E5M2:
        return moei_load_one(m->format->elem, strip + k / 2 * 32 + o * 2, k % 2);
    case MOE_I8:
    case MOE_U8:
        return moei_load_one(m->format->elem, strip + k / 4 * 64 + o * 4, k % 4);
    default: {
        const int64_t nibble = k % 8 / 2 + 4 * (k % 2);
        bytes[0] = strip[k / 8 * 64 + o * 4 + nibble / 2];
        return moei_load_one(m->format->elem, bytes, nibble % 2);
    }
    }
}

static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static int64_t check_places(const expert *e, const uint8_t *packed)
{
    const moei_matrices *m = &e->m;
    const moei_cpu_packed p = moei_cpu_packed_of(m);
    int64_t wrong = 0;
    for (int64_t n = 0; n < m->n; n++) {
        const int64_t panel = n / 64;
        const int64_t width = moei_cpu_panel_width(&p, panel);
        for (int64_t k = 0; k < m->k; k++) {
            const int64_t block = m->block_k > 32 ? m->block_k : m->block_k > 0 ? 32 : m->k;
            const uint8_t *group = packed + moei_cpu_group_at(&p, panel, width, k / block);
            const uint8_t *record = group + width * (p.head + k % block / 32 * p.record);
            wrong += !same(code_of(m, n, k),
                           code_in(m, record + n % 64 / 16 * 16 * p.record, n % 16, k % 32));
            const int64_t scale = moei_w_scale_at(m, 0, n, k);
            const int64_t set = m->block_k == 16 ? k % 32 / 16 : 0;
            if (m->scales != NULL && m->block_k > 0) {
                wrong += memcmp(group + (set * width + n % 64) * p.scale,
                                (const uint8_t *)m->scales + scale * p.scale, (size_t)p.scale) != 0;
            } else if (m->scales != NULL) {
                float value;
                memcpy(&value, packed + p.scales_at + n * 4, sizeof value);
                wrong += !same(value, moei_load_one(m->scale_dtype, m->scales, scale));
            }
            if (m->zeros != NULL) {
                wrong += group[p.sets * width * p.scale + set * width + n % 64] !=
                         moei_zero_point(m, 0, n, k / m->block_k);
            }
        }
    }
    return wrong;
}

static void test_format(const moei_format_info *info, int64_t n, int64_t k, int64_t block_k,
                        int64_t part_rows, bool transposed, bool zeros)
{
    const expert e = make(info, n, k, block_k, part_rows, transposed, zeros);
    const size_t bytes = moei_cpu_packed_bytes(NULL, &e.m);
    uint8_t *packed = filled((int64_t)bytes);
    expert back = e;
    back.m.values = filled(e.values);
    back.m.scales = e.m.scales != NULL ? filled(e.scales) : NULL;
    back.m.zeros = e.m.zeros != NULL ? filled(e.zeros) : NULL;
    CHECK(moei_cpu_pack(NULL, &e.m, packed) == MOE_OK, "%s", moe_last_error());
    CHECK(bytes % 64 == 0, "%s: %zu bytes", info->name, bytes);
    const int64_t wrong = check_places(&e, packed);
    CHECK(wrong == 0, "%s [%d, %d]: %d elements, scales or zero points lie elsewhere", info->name,
          (int)n, (int)k, (int)wrong);
    moei_cpu_unpack(NULL, packed, &back.m);
    CHECK(memcmp(back.m.values, e.m.values, (size_t)e.values) == 0 &&
              (e.m.scales == NULL || memcmp(back.m.scales, e.m.scales, (size_t)e.scales) == 0) &&
              (e.m.zeros == NULL || memcmp(back.m.zeros, e.m.zeros, (size_t)e.zeros) == 0),
          "%s [%d, %d] in blocks of %d: comes back changed", info->name, (int)n, (int)k,
          (int)block_k);
    free(packed);
    release(&back);
    release(&e);
}

int main(void)
{
    static const int64_t sizes[][2] = {{64, 64}, {80, 256}, {1, 1}, {130, 33}, {200, 321}};
    int formats = 0;
    for (int f = 1; moei_format((moe_format)f) != NULL; f++) {
        const moei_format_info *info = moei_format((moe_format)f);
        if (!moei_cpu_packed_takes(info, info->block_k)) {
            continue;
        }
        formats++;
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            const int64_t n = sizes[s][0];
            const int64_t k = sizes[s][1];
            const bool halves = n % 2 == 0;
            test_format(info, n, k, info->block_k, halves ? n / 2 : n, false, false);
            if (moe_dtype_bits(info->elem) >= 8) {
                test_format(info, n, k, info->block_k, halves ? n / 2 : n, true, false);
            }
            for (int64_t group = 16; info->free_group && group <= 256; group *= 4) {
                test_format(info, n, k, group < 32 ? 16 : group, n, false, info->zero_point >= 0);
            }
        }
    }
    CHECK(formats >= 16, "%d formats", formats);
    CHECK(!moei_cpu_packed_takes(moei_format(MOE_FORMAT_INT4_GROUP), 48) &&
              !moei_cpu_packed_takes(moei_format(MOE_FORMAT_MXFP6_E2M3), 32),
          "a form that packed.h does not describe is taken");
    return test_summary();
}
