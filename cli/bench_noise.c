// SPDX-License-Identifier: Apache-2.0
#include "bench_noise.h"

#include <math.h>
#include <string.h>

#include "quant/elements.h"

#define STEP 8 // elements of any type that fill whole bytes

typedef struct code_table {
    uint8_t code[256];
    double value[256];
    int count;
    double largest;
} code_table;

// The finite codes with their values, zero points taken off.
static void list_codes(const moei_format_info *info, code_table *t)
{
    const double zero = info->zero_point >= 0 ? info->zero_point : 0;
    t->count = 0;
    t->largest = 0;
    for (int code = 0; code < 1 << moe_dtype_bits(info->elem); code++) {
        const uint8_t row[4] = {(uint8_t)code};
        const double value = (double)moei_load_one(info->elem, row, 0) - zero;
        if (isfinite(value)) {
            t->code[t->count] = (uint8_t)code;
            t->value[t->count++] = value;
            t->largest = fabs(value) > t->largest ? fabs(value) : t->largest;
        }
    }
}

static int nearest(const code_table *t, double value)
{
    int best = 0;
    for (int i = 1; i < t->count; i++) {
        if (fabs(t->value[i] - value) < fabs(t->value[best] - value)) {
            best = i;
        }
    }
    return best;
}

void bench_noise_floats(bench_noise *noise, moe_dtype dtype, double deviation, moec_rng *rng)
{
    const size_t bytes = (size_t)moe_dtype_bits(dtype) / 8;
    for (size_t i = 0; i < BENCH_NOISE; i++) {
        const float value = (float)(deviation * moec_normal(rng));
        moei_store_f32(dtype, noise->bytes + i * bytes, 1, &value);
    }
    noise->size = BENCH_NOISE * bytes;
    noise->rms = deviation;
}

void bench_noise_codes(bench_noise *noise, const moei_format_info *info, moec_rng *rng)
{
    const unsigned bits = (unsigned)moe_dtype_bits(info->elem);
    code_table table;
    double squares = 0;
    list_codes(info, &table);
    noise->size = BENCH_NOISE * bits / 8;
    memset(noise->bytes, 0, noise->size);
    for (size_t i = 0; i < BENCH_NOISE; i++) {
        const int at = nearest(&table, table.largest / 3 * moec_normal(rng));
        for (unsigned b = 0; b < bits; b++) { // low bits first, whatever the width
            const size_t bit = i * bits + b;
            noise->bytes[bit / 8] |= (uint8_t)((table.code[at] >> b & 1) << bit % 8);
        }
        squares += table.value[at] * table.value[at];
    }
    noise->rms = sqrt(squares / BENCH_NOISE);
}

void bench_noise_rows(const bench_noise *noise, moec_rng *rng, void *to, int64_t rows,
                      size_t row_bytes)
{
    const size_t step = noise->size / (BENCH_NOISE / STEP);
    uint8_t *at = to;
    for (int64_t r = 0; r < rows; r++) {
        size_t from = (size_t)moec_below(rng, BENCH_NOISE / STEP) * step;
        for (size_t left = row_bytes; left > 0;) {
            const size_t piece = left < noise->size - from ? left : noise->size - from;
            memcpy(at, noise->bytes + from, piece);
            at += piece;
            left -= piece;
            from = 0;
        }
    }
}
