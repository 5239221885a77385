// SPDX-License-Identifier: Apache-2.0
// The arithmetic of figures: quartiles, floors, ratios. docs/bench.md defines them.
#include <stdlib.h>

#include "bench.h"

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

// Between two of the sorted values, linearly.
static double quantile(const double *sorted, int count, double q)
{
    const double at = q * (count - 1);
    const int below = (int)at;
    const int above = below + 1 < count ? below + 1 : below;
    return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
}

bench_times bench_quartiles(double *seconds, int count, int64_t sets)
{
    const double ms = 1e3 / (double)sets;
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += seconds[i];
    }
    qsort(seconds, (size_t)count, sizeof *seconds, compare);
    return (bench_times){.median = ms * quantile(seconds, count, 0.5),
                         .q1 = ms * quantile(seconds, count, 0.25),
                         .q3 = ms * quantile(seconds, count, 0.75),
                         .mean = ms * sum / count};
}

double bench_floor(const bench_work *work, const char **kind)
{
    const double memory = work->read > 0 ? 1e3 * work->bytes / work->read : 0;
    double products = 0;
    for (int g = 0; g < 2; g++) {
        products += work->peak[g] > 0 ? 1e3 * work->flops[g] / work->peak[g] : 0;
    }
    *kind = memory <= 0 && products <= 0 ? NULL : memory >= products ? "mem" : "mma";
    return memory >= products ? memory : products;
}

double bench_percent(double floor_ms, double ms)
{
    return floor_ms > 0 && ms > 0 ? 100 * floor_ms / ms : 0;
}

bench_ratio bench_compare_times(bench_times a, bench_times b)
{
    return (bench_ratio){b.median / a.median, b.q1 / a.q3, b.q3 / a.q1};
}
