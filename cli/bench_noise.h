// SPDX-License-Identifier: Apache-2.0
// Normal numbers in an element type; matrices are cut from them, row by row, from random places.
#ifndef MOE_CLI_BENCH_NOISE_H
#define MOE_CLI_BENCH_NOISE_H

#include "checkmoe/checkmoe.h"
#include "quant/formats.h"

#define BENCH_NOISE 65536 // elements

typedef struct bench_noise {
    uint8_t bytes[BENCH_NOISE * sizeof(float)];
    size_t size;
    double rms; // root of the mean square of the values
} bench_noise;

/// f32, bf16 or f16.
void bench_noise_floats(bench_noise *noise, moe_dtype dtype, double deviation, moec_rng *rng);

/// Codes of a format of at most 8 bits: those nearest to a normal number whose deviation is a third
/// of the largest value. Values are without scales, zero points taken off.
void bench_noise_codes(bench_noise *noise, const moei_format_info *info, moec_rng *rng);

/// Fills rows of row_bytes bytes; elements lie packed, low bits first.
void bench_noise_rows(const bench_noise *noise, moec_rng *rng, void *to, int64_t rows,
                      size_t row_bytes);

#endif
