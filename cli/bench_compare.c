// SPDX-License-Identifier: Apache-2.0
// Two files of moe bench, row by row: how much longer B takes than A.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "io/json.h"

/// What must agree for two rows to be of the same thing.
static const char *const keys[] = {"shape",   "hidden", "inter",        "experts", "top_k",
                                   "format",  "glu",    "activation",   "x",       "level",
                                   "routing", "tokens", "routing_only", "context", "device"};

static bool same_value(const json_t *a, const json_t *b)
{
    return (a == NULL) == (b == NULL) && (a == NULL || json_equal(a, b) != 0);
}

static bool same_thing(const json_t *a, const json_t *b)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (!same_value(json_object_get(a, keys[i]), json_object_get(b, keys[i]))) {
            return false;
        }
    }
    return same_value(json_object_get(json_object_get(a, "machine"), "threads"),
                      json_object_get(json_object_get(b, "machine"), "threads"));
}

static bool read_times(const bench_results *r, const json_t *row, bench_times *out)
{
    const struct {
        const char *key;
        double *value;
    } fields[] = {{"ms", &out->median}, {"ms_q1", &out->q1}, {"ms_q3", &out->q3}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const moe_status status = moei_json_double(&r->doc, row, fields[i].key, fields[i].value);
        if (status != MOE_OK) {
            (void)cli_failed(status);
            return false;
        }
        if (!(*fields[i].value > 0)) {
            (void)fprintf(stderr, "moe: %s: \"%s\" is %g, must be above 0\n", r->doc.label,
                          fields[i].key, *fields[i].value);
            return false;
        }
    }
    return true;
}

static void print_name(const json_t *row)
{
    const json_t *format = json_array_get(json_object_get(row, "format"), 0);
    const char *shape = json_string_value(json_object_get(row, "shape"));
    char name[64];
    char tokens[32];
    (void)snprintf(name, sizeof name, "%s %s", shape != NULL ? shape : "?",
                   json_is_string(format) ? json_string_value(format) : "routing alone");
    (void)snprintf(tokens, sizeof tokens, "%" JSON_INTEGER_FORMAT,
                   json_integer_value(json_object_get(row, "tokens")));
    cli_plain_string(name);
    (void)printf("%*s %7s ", (int)(strlen(name) < 36 ? 36 - strlen(name) : 0), "", tokens);
}

// A difference counts where the intervals of the quartiles do not meet.
static const char *verdict(bench_ratio r)
{
    return r.low > 1 ? "slower" : r.high < 1 ? "faster" : "";
}

static bool print_pair(const bench_results *a, const json_t *x, const bench_results *b,
                       const json_t *y)
{
    bench_times times[2];
    if (!read_times(a, x, &times[0]) || !read_times(b, y, &times[1])) {
        return false;
    }
    const bench_ratio r = bench_compare_times(times[0], times[1]);
    print_name(x);
    (void)printf("%10.4g %10.4g %7.3f  %6.3f .. %6.3f  %s\n", times[0].median, times[1].median,
                 r.value, r.low, r.high, verdict(r));
    return true;
}

static int compare(const bench_results *a, const bench_results *b)
{
    size_t pairs = 0;
    const size_t counts[2] = {json_array_size(a->rows), json_array_size(b->rows)};
    (void)printf("%-36s %7s %10s %10s %7s  %s\n", "layer", "tokens", "A ms", "B ms", "B / A",
                 "from the quartiles");
    for (size_t i = 0; i < counts[0]; i++) {
        for (size_t j = 0; j < counts[1]; j++) {
            const json_t *x = json_array_get(a->rows, i);
            const json_t *y = json_array_get(b->rows, j);
            if (same_thing(x, y)) {
                if (!print_pair(a, x, b, y)) {
                    return CLI_FAILED;
                }
                pairs++;
                break;
            }
        }
    }
    if (pairs == 0) {
        (void)fprintf(stderr, "moe: no row of %s (%zu rows) is in %s (%zu rows)\n", a->doc.label,
                      counts[0], b->doc.label, counts[1]);
        return CLI_FAILED;
    }
    (void)printf("%zu rows compared, %zu of A and %zu of B have no counterpart\n", pairs,
                 counts[0] - pairs, counts[1] - pairs);
    return CLI_OK;
}

int bench_compare(const char *a, const char *b)
{
    bench_results x = {0};
    bench_results y = {0};
    const int code =
        bench_results_open(a, &x) && bench_results_open(b, &y) ? compare(&x, &y) : CLI_FAILED;
    bench_results_close(&x);
    bench_results_close(&y);
    return code;
}
