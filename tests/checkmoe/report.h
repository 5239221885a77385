// SPDX-License-Identifier: Apache-2.0
/// @file report.h  Compares two tensors element by element against a bound for each, and says what
/// there is to know about a failure: how far, how many, where, which pattern, how to repeat it.
#ifndef MOEC_REPORT_H
#define MOEC_REPORT_H

#include <stdint.h>
#include <stdio.h>

#include "moe/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Verdict of a comparison: largest error / bound up to 0.5, up to 1, beyond.
typedef enum moec_verdict { MOEC_PASS, MOEC_MARGINAL, MOEC_FAIL } moec_verdict;

/// "PASS", "MARGINAL", "FAIL".
const char *moec_verdict_name(moec_verdict verdict);

/// What to compare. Both tensors have the same shape, any strides, and lie in host memory.
typedef struct moec_compare {
    const char *label;
    moe_tensor actual;   ///< f32, bf16, f16, f64
    moe_tensor expected; ///< the same; f64 where it comes from an oracle in double
    const double *bound; ///< one per element, row-major; NULL: atol + rtol * |expected|
    double atol, rtol;
    int exact;       ///< 1: equal bits, same dtype; bound, atol, rtol and nan_matches are not used
    int nan_matches; ///< 1: NaN in both is equal; 0: any NaN fails
    const char *repro; ///< command that repeats the case, NULL: none
    FILE *out;         ///< where failures go; NULL: nowhere
    int always;        ///< 1: print on success too
} moec_compare;

/// One side's values.
typedef struct moec_side {
    double min, max; ///< of the finite values; both 0 if there are none
    int64_t nan, inf, zero;
} moec_side;

/// What a comparison found.
typedef struct moec_stats {
    moec_verdict verdict;
    int64_t count;
    int64_t over;     ///< elements beyond their bound
    double max_diff;  ///< largest |actual - expected|; infinite where only one is finite
    double mean_diff; ///< over the elements where both are finite
    double max_ratio; ///< largest error / bound
    int64_t worst;    ///< row-major index of that element, -1: no elements
    moec_side actual, expected;
} moec_stats;

/// Compares, and prints a report on failure (or always). A NaN in actual is a failure of the code,
/// never one of precision; so is one in expected. Shapes or dtypes that do not fit are a failure.
/// @param[out] stats  may be NULL
moec_verdict moec_report_compare(const moec_compare *compare, moec_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
