// SPDX-License-Identifier: Apache-2.0
// What products of integer codes with packed weights share, whatever the instruction set: scales of
// x, and the chains whose sums may round.
#ifndef MOEI_BACKENDS_CPU_PACKED_INTS_H
#define MOEI_BACKENDS_CPU_PACKED_INTS_H

#include "backends/cpu/packed.h"
#include "backends/cpu/product.h"

/// 4-bit codes less zero points up to this one, times 16 bits of x: a block's sums are exact in f32
/// (32 * 16 * 2^15 = 2^24). Beyond it their order counts.
#define MOEI_CPU_ZERO_TOP 16

/// k up to which the sum of products of int8 has 32 bits.
#define MOEI_CPU_WHOLE_TOP (INT32_MAX / (128 * 128))

/// Scales of a row of x, powers of two, record after record. A group is one record, or several.
typedef struct moei_cpu_x_scales {
    const uint8_t *at;
    int64_t group, stride;
    int64_t records, left; // of a group, of this one
    bool packed;
} moei_cpu_x_scales;

static inline moei_cpu_x_scales moei_cpu_x_scales_of(const moek_ggemm_args *a, int32_t e, int64_t i,
                                                     int64_t r)
{
    int64_t group;
    const int64_t at = moei_x_scale_at(a, e, i, r * MOEI_CPU_RECORD, &group);
    const int64_t records = a->x.group / MOEI_CPU_RECORD;
    const uint8_t *base = a->x.scales;
    return (moei_cpu_x_scales){.at = base + (a->x.packed ? 4 * at : at),
                               .group = group,
                               .stride = a->x.scale_k_stride * (a->x.packed ? 4 : 1),
                               .records = records,
                               .left = records - r % records,
                               .packed = a->x.packed};
}

static inline float moei_cpu_x_scales_next(moei_cpu_x_scales *s)
{
    const uint8_t code = s->packed ? s->at[s->group % 4] : *s->at;
    if (--s->left == 0) {
        s->left = s->records;
        s->group++;
        s->at += !s->packed || s->group % 4 == 0 ? s->stride : 0;
    }
    return moei_e8m0_to_f32(code);
}

/// Record r of a row of x, `bytes` long; past the end of the row there are zeros, in tail.
static inline const uint8_t *moei_cpu_x_record(const uint8_t *row, int64_t row_bytes, int64_t r,
                                               int64_t bytes, uint8_t tail[2 * MOEI_CPU_RECORD])
{
    const int64_t left = row_bytes - r * bytes;
    if (left >= bytes) {
        return row + r * bytes;
    }
    memset(tail, 0, (size_t)bytes);
    memcpy(tail, row + r * bytes, (size_t)left);
    return tail;
}

/// Zero points of a group to [set][output], less `less`. Returns the largest.
static inline uint8_t moei_cpu_load_zeros(const moei_cpu_packed *p, const uint8_t *zeros,
                                          int64_t width, int32_t less,
                                          int32_t (*out)[MOEI_CPU_PANEL])
{
    uint8_t top = 0;
    for (int64_t s = 0; s < p->sets; s++) {
        for (int64_t n = 0; n < width; n++) {
            const uint8_t zero = zeros[s * width + n];
            out[s][n] = zero - less;
            top = zero > top ? zero : top;
        }
    }
    return top;
}

/// The 4-bit code of output n of a panel and element k of a record.
static inline uint8_t moei_cpu_packed_code(const uint8_t *record, int64_t n, int64_t k)
{
    const int64_t strip = n / MOEI_CPU_STRIP * (MOEI_CPU_STRIP * MOEI_CPU_RECORD / 2);
    const uint8_t *unit = record + strip + k / 8 * (4 * MOEI_CPU_STRIP) + n % MOEI_CPU_STRIP * 4;
    const int64_t nibble = k % 8 / 2 + 4 * (k % 2);
    return nibble % 2 == 0 ? unit[nibble / 2] & 15 : unit[nibble / 2] >> 4;
}

/// A record of 4-bit codes as the class has it, a chain per block of `length` k: outputs n0 .. n1 -
/// 1 of a panel and rows i0 .. i1 - 1. zero, scale: [block of the record][output].
static inline void moei_cpu_chain_record(const moek_ggemm_args *a, int32_t e, int64_t i0,
                                         int64_t i1, const uint8_t *record, int64_t r,
                                         int64_t length, int64_t n0, int64_t n1,
                                         int32_t (*zero)[MOEI_CPU_PANEL],
                                         float (*scale)[MOEI_CPU_PANEL],
                                         float (*acc)[MOEI_CPU_PANEL])
{
    const int64_t first = r * MOEI_CPU_RECORD;
    const int64_t last = moei_i64_min(first + MOEI_CPU_RECORD, a->w.k);
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, e, i);
        for (int64_t k0 = first, b = 0; k0 < last; k0 += length, b++) {
            const int64_t k1 = moei_i64_min(k0 + length, last);
            const float x_scale = moei_cpu_operand_scale(a, e, i, k0);
            for (int64_t n = n0; n < n1; n++) {
                float sum = 0.0f;
                for (int64_t k = k0; k < k1; k++) {
                    const int32_t code = moei_cpu_packed_code(record, n, k - first);
                    const float w = (float)(code - zero[b][n]);
                    sum = moei_fmaf(moei_load_one(a->x.dtype, row, k), w, sum);
                }
                acc[i - i0][n] = moei_fmaf(sum * x_scale, scale[b][n], acc[i - i0][n]);
            }
        }
    }
}

// ---- class i32 ---------------------------------------------------------------------------------
// Sums are integers where others have floats. Where k is above MOEI_CPU_WHOLE_TOP, those of some
// records, fewer than it, are added to a total.

static inline void moei_cpu_whole_part(int64_t rows, bool first, float (*acc)[MOEI_CPU_PANEL],
                                       int64_t (*total)[MOEI_CPU_PANEL])
{
    for (int64_t r = 0; r < rows; r++) {
        int32_t sums[MOEI_CPU_PANEL];
        memcpy(sums, acc[r], sizeof sums);
        memset(acc[r], 0, sizeof acc[r]);
        for (int64_t n = 0; n < MOEI_CPU_PANEL; n++) {
            total[r][n] = (first ? 0 : total[r][n]) + sums[n];
        }
    }
}

/// To floats. total: NULL where there is none.
static inline void moei_cpu_whole_end(int64_t rows, float (*acc)[MOEI_CPU_PANEL],
                                      int64_t (*total)[MOEI_CPU_PANEL])
{
    for (int64_t r = 0; r < rows; r++) {
        int32_t sums[MOEI_CPU_PANEL];
        memcpy(sums, acc[r], sizeof sums);
        for (int64_t n = 0; n < MOEI_CPU_PANEL; n++) {
            acc[r][n] = total != NULL ? (float)total[r][n] : (float)sums[n];
        }
    }
}

#endif
