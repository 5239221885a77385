// SPDX-License-Identifier: Apache-2.0
#include "load.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "svg.h"

load_measures load_measure(const load_table *table, int64_t layer)
{
    const int64_t *counts = table->counts + layer * table->experts;
    load_measures m = {0};
    for (int32_t e = 0; e < table->experts; e++) {
        m.total += counts[e];
        m.idle += counts[e] == 0;
        if (counts[e] > m.max) {
            m.max = counts[e];
            m.busiest = e;
        }
    }
    m.mean = (double)m.total / table->experts;
    if (m.total > 0) {
        m.max_ratio = (double)m.max / m.mean;
        m.excess = ((double)m.max - m.mean) / m.mean;
    }
    for (int32_t e = 0; e < table->experts; e++) {
        const double share = m.total > 0 ? (double)counts[e] / (double)m.total : 0;
        m.entropy -= share > 0 ? share * log2(share) : 0;
    }
    return m;
}

// Tokens of experts [e * experts / cells, ..) of a layer over what would be even: 1 is even.
static double cell_ratio(const load_table *table, int64_t layer, int32_t cell, int32_t cells)
{
    const int32_t first = (int32_t)((int64_t)cell * table->experts / cells);
    const int32_t end = (int32_t)((int64_t)(cell + 1) * table->experts / cells);
    const double mean = load_measure(table, layer).mean;
    int64_t sum = 0;
    for (int32_t e = first; e < end; e++) {
        sum += table->counts[layer * table->experts + e];
    }
    return mean > 0 ? (double)sum / (mean * (end - first)) : 0;
}

// 0 nothing, 4 and 5 around even, 9 twice even and more.
static int shade(double ratio)
{
    const int step = 1 + (int)(ratio * 4);
    return ratio <= 0 ? 0 : step > 9 ? 9 : step;
}

void load_print_map(const load_table *table, int width, int colour, FILE *out)
{
    static const char shades[] = " .:-=+*#%@";
    static const int codes[] = {16, 17, 18, 24, 30, 65, 101, 137, 173, 209}; // of 256 colours
    const int32_t cells = table->experts < width - 12 ? table->experts : width - 12;
    for (int64_t layer = 0; layer < table->layers; layer++) {
        (void)fprintf(out, "layer %-4" PRId64 "[", layer);
        for (int32_t c = 0; c < cells; c++) {
            const int s = shade(cell_ratio(table, layer, c, cells));
            if (colour) {
                (void)fprintf(out, "\x1b[48;5;%dm\x1b[97m%c\x1b[0m", codes[s], shades[s]);
            } else {
                (void)fputc(shades[s], out);
            }
        }
        (void)fprintf(out, "]\n");
    }
    (void)fprintf(out, "%d experts%s; ' ' none, '=' even load, '@' twice even and more\n",
                  (int)table->experts, cells < table->experts ? ", several per cell" : "");
}

void load_print_measures(const load_table *table, FILE *out)
{
    (void)fprintf(out, "%5s %10s %10s %8s %6s %9s %15s %8s (of %.2f)\n", "layer", "choices", "max",
                  "busiest", "idle", "max/mean", "(max-mean)/mean", "entropy",
                  log2((double)table->experts));
    for (int64_t layer = 0; layer < table->layers; layer++) {
        const load_measures m = load_measure(table, layer);
        (void)fprintf(out, "%5" PRId64 " %10" PRId64 " %10" PRId64 " %8d %6d %9.3f %15.3f %8.3f\n",
                      layer, m.total, m.max, (int)m.busiest, (int)m.idle, m.max_ratio, m.excess,
                      m.entropy);
    }
}

void load_print_csv(const load_table *table, FILE *out)
{
    (void)fprintf(out, "layer,expert,count\n");
    for (int64_t i = 0; i < table->layers * table->experts; i++) {
        (void)fprintf(out, "%" PRId64 ",%" PRId64 ",%" PRId64 "\n", i / table->experts,
                      i % table->experts, table->counts[i]);
    }
}

void load_print_json(const load_table *table, FILE *out)
{
    (void)fprintf(out, "\"layers\": [");
    for (int64_t layer = 0; layer < table->layers; layer++) {
        const load_measures m = load_measure(table, layer);
        (void)fprintf(out, "%s{\"counts\": [", layer > 0 ? ", " : "");
        for (int32_t e = 0; e < table->experts; e++) {
            (void)fprintf(out, "%s%" PRId64, e > 0 ? ", " : "",
                          table->counts[layer * table->experts + e]);
        }
        (void)fprintf(out,
                      "], \"choices\": %" PRId64 ", \"max\": %" PRId64
                      ", \"busiest\": %d, \"idle\": %d, \"max_over_mean\": %.6g, "
                      "\"max_minus_mean_over_mean\": %.6g, \"entropy_bits\": %.6g}",
                      m.total, m.max, (int)m.busiest, (int)m.idle, m.max_ratio, m.excess,
                      m.entropy);
    }
    (void)fprintf(out, "]");
}

// -- SVG -----------------------------------------------------------------------------------------

#define CELL 14 // of a heat map, in user units
#define LEFT 70
#define TOP  56

// White for nothing, through yellow at even load, to dark red at twice even and more.
static void svg_colour(double ratio, FILE *out)
{
    static const int stops[3][3] = {{255, 255, 255}, {254, 196, 79}, {140, 20, 20}};
    const double at = ratio > 2 ? 2 : ratio;
    const int from = at < 1 ? 0 : 1;
    const double share = at - from;
    (void)fputc('#', out);
    for (int c = 0; c < 3; c++) {
        (void)fprintf(out, "%02x",
                      (unsigned)(stops[from][c] + share * (stops[from + 1][c] - stops[from][c])));
    }
}

static void svg_cell(const load_table *table, int64_t layer, int32_t expert, FILE *out)
{
    const double ratio = cell_ratio(table, layer, expert, table->experts);
    (void)fprintf(out, "<rect x=\"%d\" y=\"%" PRId64 "\" width=\"%d\" height=\"%d\" fill=\"",
                  LEFT + expert * CELL, TOP + layer * CELL, CELL - 1, CELL - 1);
    svg_colour(ratio, out);
    (void)fprintf(out,
                  "\"><title>layer %" PRId64 ", expert %d: %" PRId64
                  " choices, %.2f of even</title></rect>\n",
                  layer, (int)expert, table->counts[layer * table->experts + expert], ratio);
}

void load_print_svg(const load_table *table, const char *title, FILE *out)
{
    const int width = LEFT + table->experts * CELL + 20;
    const int height = TOP + (int)table->layers * CELL + 44;
    svg_begin(width < 420 ? 420 : width, height, out);
    (void)fprintf(out, "<text x=\"%d\" y=\"20\" font-size=\"14\">", LEFT);
    svg_text(title, out);
    (void)fprintf(out, "</text>\n<text x=\"%d\" y=\"%d\">expert 0 to %d</text>\n", LEFT, TOP - 6,
                  (int)table->experts - 1);
    for (int64_t layer = 0; layer < table->layers; layer++) {
        (void)fprintf(out, "<text x=\"10\" y=\"%" PRId64 "\">layer %" PRId64 "</text>\n",
                      TOP + layer * CELL + 10, layer);
        for (int32_t e = 0; e < table->experts; e++) {
            svg_cell(table, layer, e, out);
        }
    }
    for (int i = 0; i <= 8; i++) {
        (void)fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"20\" height=\"10\" fill=\"",
                      LEFT + 20 * i, height - 30);
        svg_colour(i / 4.0, out);
        (void)fprintf(out, "\"/>\n");
    }
    (void)fprintf(out,
                  "<text x=\"%d\" y=\"%d\">none</text>\n<text x=\"%d\" y=\"%d\">even</text>\n"
                  "<text x=\"%d\" y=\"%d\">twice and more</text>\n</svg>\n",
                  LEFT, height - 8, LEFT + 80, height - 8, LEFT + 160, height - 8);
}
