// SPDX-License-Identifier: Apache-2.0
// How often each expert of each layer was chosen, for people, spreadsheets and pages.
#ifndef MOE_CLI_LOAD_H
#define MOE_CLI_LOAD_H

#include <stdint.h>
#include <stdio.h>

/// Counts [layers, experts].
typedef struct load_table {
    const int64_t *counts;
    int64_t layers;
    int32_t experts;
} load_table;

/// Measures of one layer's balance, all of them in use: engines disagree about which one "balance"
/// is. mean is never 0 but where all counts are.
typedef struct load_measures {
    int64_t total, max;
    int32_t busiest, idle;  ///< idle: experts without a token
    double mean, max_ratio; ///< max / mean
    double excess;          ///< (max - mean) / mean
    double entropy;         ///< in bits; at most log2(experts)
} load_measures;
load_measures load_measure(const load_table *table, int64_t layer);

/// A heat map: a line per layer, a cell per expert (or per few neighbours, where the line would be
/// wider than `width`), shades by count / mean. Colour only where `colour` is set.
void load_print_map(const load_table *table, int width, int colour, FILE *out);

/// A line per layer with its measures.
void load_print_measures(const load_table *table, FILE *out);

/// layer,expert,count with a header line (RFC 4180, LF).
void load_print_csv(const load_table *table, FILE *out);

/// {"layers": [{"counts": [..], "max_over_mean": ..}, ..]}, without the braces around.
void load_print_json(const load_table *table, FILE *out);

/// A picture of its own, with a legend; every cell has a title that viewers show.
void load_print_svg(const load_table *table, const char *title, FILE *out);

#endif
