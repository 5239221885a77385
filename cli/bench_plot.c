// SPDX-License-Identifier: Apache-2.0
// Two pictures of what moe bench --json wrote, side by side and logarithmic: milliseconds over
// tokens, each with its floor dashed, and operations per second over operations per byte, under
// the ceilings of the fastest machine among the files. Where rows of one layer and number of tokens
// differ in threads, the first picture is over threads.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "io/write_whole.h"
#include "svg.h"

#define MAX_POINTS 1024
#define MAX_SERIES 32
#define NAME_BYTES 160
#define WIDTH      500 // of a picture
#define HEIGHT     340
#define LEFT       60
#define TOP        40
#define GAP        80
#define LINE       16 // of the legend

typedef struct point {
    int series;
    double tokens, threads, ms, q1, q3, floor; // floor 0: not known
    double intensity, rate;                    // operations per byte, per second; 0: not known
} point;

typedef struct plot {
    point points[MAX_POINTS];
    int num_points;
    char names[MAX_SERIES][NAME_BYTES];
    int num_series;
    double ceilings[MOEI_NUM_CEILINGS]; // per second; 0: none
    bool over_threads, host;
} plot;

static const char *const colours[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd",
                                      "#ff7f0e", "#17becf", "#8c564b", "#444444"};
#define NUM_COLOURS ((int)(sizeof colours / sizeof colours[0]))

// ---- reading -----------------------------------------------------------------------------------

static double number_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static const char *first_string(const json_t *object, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_array_get(json_object_get(object, key), 0));
    return text != NULL ? text : otherwise;
}

// What the points of one line have in common, as the legend names it.
static void name_of(const json_t *row, const char *file, bool tokens_too, char name[NAME_BYTES])
{
    const char *shape = json_string_value(json_object_get(row, "shape"));
    const char *device = json_string_value(json_object_get(row, "device"));
    const char *act = first_string(row, "activation", "none");
    const char *routing = json_string_value(json_object_get(row, "routing"));
    const char *slash = strrchr(file, '/');
    const json_t *machine = json_object_get(row, "machine");
    char more[48];
    if (tokens_too) {
        (void)snprintf(more, sizeof more, ", %.0f tokens", number_of(row, "tokens"));
    } else {
        (void)snprintf(more, sizeof more, ", %.0f threads", number_of(machine, "threads"));
    }
    (void)snprintf(
        name, NAME_BYTES, "%s %s%s%s on %s%s%s%s%s%s", shape != NULL ? shape : "?",
        first_string(row, "format", "routing alone"), strcmp(act, "none") != 0 ? " x " : "",
        strcmp(act, "none") != 0 ? act : "", device != NULL ? device : "?", more,
        routing != NULL && strcmp(routing, "zipf") == 0 ? ", zipf" : "", tokens_too ? "" : " (",
        tokens_too      ? ""
        : slash != NULL ? slash + 1
                        : file,
        tokens_too ? "" : ")");
}

static int series_of(plot *p, const char name[NAME_BYTES])
{
    for (int i = 0; i < p->num_series; i++) {
        if (strcmp(p->names[i], name) == 0) {
            return i;
        }
    }
    if (p->num_series == MAX_SERIES) {
        return -1;
    }
    memcpy(p->names[p->num_series], name, NAME_BYTES);
    return p->num_series++;
}

static bool is_host(const json_t *row)
{
    const char *device = json_string_value(json_object_get(row, "device"));
    return device != NULL && strcmp(device, "cpu") == 0;
}

static void raise_ceilings(plot *p, const json_t *row)
{
    const json_t *ceilings = json_object_get(row, "ceilings");
    const bool host = is_host(row);
    for (int i = 0; i < MOEI_NUM_CEILINGS; i++) {
        char key[32];
        const double unit = bench_ceiling_key((moei_ceiling)i, host, key, sizeof key);
        const double value = number_of(ceilings, key) / unit;
        p->ceilings[i] = value > p->ceilings[i] ? value : p->ceilings[i];
    }
    p->host = host;
}

static bool add_row(plot *p, const bench_results *file, const json_t *row)
{
    char name[NAME_BYTES];
    name_of(row, file->doc.label, p->over_threads, name);
    point at = {.series = series_of(p, name),
                .tokens = number_of(row, "tokens"),
                .threads = number_of(json_object_get(row, "machine"), "threads"),
                .ms = number_of(row, "ms"),
                .q1 = number_of(row, "ms_q1"),
                .q3 = number_of(row, "ms_q3"),
                .floor = number_of(row, "floor_ms")};
    if (!(at.tokens > 0) || !(at.threads > 0) || !(at.q1 > 0) || !(at.ms >= at.q1) ||
        !(at.q3 >= at.ms)) {
        (void)fprintf(stderr, "moe: %s: a row with %g tokens, %g threads, %g ms (%g .. %g)\n",
                      file->doc.label, at.tokens, at.threads, at.ms, at.q1, at.q3);
        return false;
    }
    if (at.series < 0 || p->num_points == MAX_POINTS) {
        (void)fprintf(stderr, "moe: more than %d lines or %d points to draw\n", MAX_SERIES,
                      MAX_POINTS);
        return false;
    }
    const double flops = number_of(row, "flops");
    const double bytes = number_of(row, "bytes");
    if (flops > 0 && bytes > 0) {
        at.intensity = flops / bytes;
        at.rate = 1e3 * flops / at.ms;
    }
    raise_ceilings(p, row);
    p->points[p->num_points++] = at;
    return true;
}

static bool read_rows(plot *p, const bench_results *files, int count)
{
    p->num_points = p->num_series = 0;
    for (int f = 0; f < count; f++) {
        for (size_t i = 0; i < json_array_size(files[f].rows); i++) {
            if (!add_row(p, &files[f], json_array_get(files[f].rows, i))) {
                return false;
            }
        }
    }
    return true;
}

// Whether several points of a line would stand above each other for their threads' sake.
static bool differ_in_threads(const bench_results *files, int count)
{
    double tokens = 0;
    double threads = 0;
    bool other_tokens = false;
    bool other_threads = false;
    for (int f = 0; f < count; f++) {
        for (size_t i = 0; i < json_array_size(files[f].rows); i++) {
            const json_t *row = json_array_get(files[f].rows, i);
            const double t = number_of(row, "tokens");
            const double n = number_of(json_object_get(row, "machine"), "threads");
            other_tokens |= tokens > 0 && t != tokens;
            other_threads |= threads > 0 && n != threads;
            tokens = t;
            threads = n;
        }
    }
    return other_threads && !other_tokens;
}

// ---- drawing -----------------------------------------------------------------------------------

/// A logarithmic picture: what its edges stand for.
typedef struct area {
    double x0, x1, y0, y1;
    int left;
} area;

static double place(double value, double low, double high, double size)
{
    return size * log(value / low) / log(high / low);
}

static double at_x(const area *a, double x)
{
    return a->left + place(x, a->x0, a->x1, WIDTH);
}

static double at_y(const area *a, double y)
{
    return TOP + HEIGHT - place(y, a->y0, a->y1, HEIGHT);
}

static void include(double value, double *low, double *high)
{
    *low = *low == 0 || value < *low ? value : *low;
    *high = value > *high ? value : *high;
}

// Edges at powers of ten (or two), apart.
static void widen(double base, double *low, double *high)
{
    const double l = floor(log(*low) / log(base) + 1e-9);
    const double h = ceil(log(*high) / log(base) - 1e-9);
    *low = pow(base, l);
    *high = pow(base, h > l ? h : l + 1);
}

static void draw_frame(const area *a, double x_base, const char *x, const char *y, FILE *out)
{
    (void)fprintf(out,
                  "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"#ffffff\" "
                  "stroke=\"#888888\"/>\n<text x=\"%d\" y=\"%d\" font-size=\"13\">%s</text>\n"
                  "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n",
                  a->left, TOP, WIDTH, HEIGHT, a->left, TOP - 12, y, a->left + WIDTH,
                  TOP + HEIGHT + 32, x);
    for (double v = a->x0; v <= a->x1 * 1.0001; v *= x_base) {
        (void)fprintf(out,
                      "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#e0e0e0\"/>"
                      "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                      at_x(a, v), at_x(a, v), TOP, TOP + HEIGHT, at_x(a, v), TOP + HEIGHT + 16, v);
    }
    for (double v = a->y0; v <= a->y1 * 1.0001; v *= 10) {
        (void)fprintf(out,
                      "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#e0e0e0\"/>"
                      "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                      a->left, a->left + WIDTH, at_y(a, v), at_y(a, v), a->left - 6, at_y(a, v) + 4,
                      v);
    }
}

static double x_of(const plot *p, const point *at)
{
    return p->over_threads ? at->threads : at->tokens;
}

// One line of a series: times, or floors.
static void draw_line(const plot *p, const area *a, int series, bool floors, FILE *out)
{
    (void)fprintf(out, "<polyline fill=\"none\" stroke=\"%s\"%s points=\"",
                  colours[series % NUM_COLOURS], floors ? " stroke-dasharray=\"4 3\"" : "");
    for (int i = 0; i < p->num_points; i++) {
        const point *at = &p->points[i];
        if (at->series == series && (!floors || at->floor > 0)) {
            (void)fprintf(out, "%.1f,%.1f ", at_x(a, x_of(p, at)),
                          at_y(a, floors ? at->floor : at->ms));
        }
    }
    (void)fprintf(out, "\"/>\n");
}

static void draw_times(const plot *p, FILE *out)
{
    area a = {.left = LEFT};
    for (int i = 0; i < p->num_points; i++) {
        const point *at = &p->points[i];
        include(x_of(p, at), &a.x0, &a.x1);
        include(at->q1, &a.y0, &a.y1);
        include(at->q3, &a.y0, &a.y1);
        if (at->floor > 0) {
            include(at->floor, &a.y0, &a.y1);
        }
    }
    widen(2, &a.x0, &a.x1);
    widen(10, &a.y0, &a.y1);
    const double step = a.x1 / a.x0 > 1024 ? 4 : 2;
    draw_frame(&a, step, p->over_threads ? "threads" : "tokens", "ms of a layer (dashed: floor)",
               out);
    for (int s = 0; s < p->num_series; s++) {
        draw_line(p, &a, s, false, out);
        draw_line(p, &a, s, true, out);
    }
    for (int i = 0; i < p->num_points; i++) {
        const point *at = &p->points[i];
        const double x = at_x(&a, x_of(p, at));
        const char *colour = colours[at->series % NUM_COLOURS];
        (void)fprintf(out,
                      "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>"
                      "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>%.4g ms (%.4g .. "
                      "%.4g)</title></circle>\n",
                      x, x, at_y(&a, at->q1), at_y(&a, at->q3), colour, x, at_y(&a, at->ms), colour,
                      at->ms, at->q1, at->q3);
    }
}

static void draw_roofline(const plot *p, FILE *out)
{
    const double read = p->ceilings[MOEI_CEILING_READ];
    area a = {.left = LEFT + WIDTH + GAP};
    for (int i = 0; i < p->num_points; i++) {
        if (p->points[i].rate > 0) {
            include(p->points[i].intensity, &a.x0, &a.x1);
            include(1e-12 * p->points[i].rate, &a.y0, &a.y1);
        }
    }
    for (int c = MOEI_CEILING_READ + 1; c < MOEI_NUM_CEILINGS && a.x0 > 0; c++) {
        if (p->ceilings[c] > 0) {
            include(1e-12 * p->ceilings[c], &a.y0, &a.y1);
        }
    }
    if (a.x0 == 0) {
        return; // routing alone has no products
    }
    widen(10, &a.x0, &a.x1);
    widen(10, &a.y0, &a.y1);
    draw_frame(&a, 10, "operations per byte of weights", "TFLOP/s under the machine's ceilings",
               out);
    for (int c = MOEI_CEILING_READ + 1; c < MOEI_NUM_CEILINGS; c++) {
        if (p->ceilings[c] > 0) {
            char key[32];
            (void)bench_ceiling_key((moei_ceiling)c, p->host, key, sizeof key);
            (void)fprintf(out,
                          "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#000000\"/>"
                          "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                          a.left, a.left + WIDTH, at_y(&a, 1e-12 * p->ceilings[c]),
                          at_y(&a, 1e-12 * p->ceilings[c]), a.left + WIDTH - 4,
                          at_y(&a, 1e-12 * p->ceilings[c]) - 4, key);
        }
    }
    if (read > 0) { // as far as it stays in the picture
        const double x0 = fmax(a.x0, 1e12 * a.y0 / read);
        const double x1 = fmin(a.x1, 1e12 * a.y1 / read);
        if (x0 < x1) {
            (void)fprintf(out,
                          "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" "
                          "stroke=\"#000000\"/>\n",
                          at_x(&a, x0), at_x(&a, x1), at_y(&a, 1e-12 * x0 * read),
                          at_y(&a, 1e-12 * x1 * read));
        }
    }
    for (int i = 0; i < p->num_points; i++) {
        const point *at = &p->points[i];
        if (at->rate > 0) {
            (void)fprintf(out,
                          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>%.0f tokens: "
                          "%.4g TFLOP/s</title></circle>\n",
                          at_x(&a, at->intensity), at_y(&a, 1e-12 * at->rate),
                          colours[at->series % NUM_COLOURS], at->tokens, 1e-12 * at->rate);
        }
    }
}

static bool draw(FILE *out, void *arg)
{
    const plot *p = arg;
    const int legend = TOP + HEIGHT + 56;
    svg_begin(LEFT + 2 * WIDTH + GAP + 20, legend + LINE * p->num_series + 10, out);
    draw_times(p, out);
    draw_roofline(p, out);
    for (int s = 0; s < p->num_series; s++) {
        (void)fprintf(out,
                      "<rect x=\"%d\" y=\"%d\" width=\"10\" height=\"10\" fill=\"%s\"/>"
                      "<text x=\"%d\" y=\"%d\">",
                      LEFT, legend + LINE * s, colours[s % NUM_COLOURS], LEFT + 16,
                      legend + LINE * s + 9);
        svg_text(p->names[s], out);
        (void)fprintf(out, "</text>\n");
    }
    (void)fprintf(out, "</svg>\n");
    return ferror(out) == 0;
}

static int plot_files(const char *svg, const bench_results *files, int count)
{
    plot *p = bench_take(sizeof *p);
    int code = CLI_FAILED;
    if (p == NULL) {
        return code;
    }
    memset(p, 0, sizeof *p);
    p->over_threads = differ_in_threads(files, count);
    if (!read_rows(p, files, count)) {
        // said
    } else if (p->num_points == 0) {
        (void)fprintf(stderr, "moe: %s: no rows to draw\n", files[0].doc.label);
    } else if (strcmp(svg, "-") == 0) {
        code = draw(stdout, p) ? CLI_OK : CLI_FAILED;
    } else {
        const moe_status status = moei_write_whole("moe bench --plot", svg, draw, p);
        code = status == MOE_OK ? CLI_OK : cli_failed(status);
    }
    free(p);
    return code;
}

int bench_plot(const char *svg, const char *const *files, int count)
{
    bench_results *results = calloc((size_t)count, sizeof *results);
    int code = CLI_FAILED;
    int opened = 0;
    while (results != NULL && opened < count &&
           bench_results_open(files[opened], &results[opened])) {
        opened++;
    }
    if (results != NULL && opened == count) {
        code = plot_files(svg, results, count);
    }
    for (int i = 0; results != NULL && i < count && i <= opened; i++) {
        bench_results_close(&results[i]);
    }
    free(results);
    return code;
}
