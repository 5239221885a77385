// SPDX-License-Identifier: Apache-2.0
// The report of a comparison. One pass over the elements gathers everything; a failure gets a
// second look for the patterns that mistakes in this trade leave: a factor, zeros, a wrong sign, a
// row or column taken from elsewhere.
#include "checkmoe/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "numerics/bf16.h"
#include "numerics/f16.h"

#define MAX_ROW_SEARCH 4096 // rows and columns that the search for patterns looks at

const char *moec_verdict_name(moec_verdict verdict)
{
    return verdict == MOEC_PASS ? "PASS" : verdict == MOEC_MARGINAL ? "MARGINAL" : "FAIL";
}

// -- Elements -----------------------------------------------------------------------------------

static size_t elem_bytes(moe_dtype dtype)
{
    return dtype == MOE_F64 ? 8 : dtype == MOE_F32 ? 4 : 2;
}

static const char *elem_name(moe_dtype dtype)
{
    return dtype == MOE_F64    ? "f64"
           : dtype == MOE_F32  ? "f32"
           : dtype == MOE_BF16 ? "bf16"
           : dtype == MOE_F16  ? "f16"
                               : "?";
}

static int64_t num_elems(const moe_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++) {
        n *= t->shape[i];
    }
    return n;
}

// Address of the element with the row-major index `at`.
static const char *elem_at(const moe_tensor *t, int64_t at)
{
    int64_t offset = 0;
    for (int32_t i = t->ndim; i-- > 0;) {
        offset += at % t->shape[i] * t->stride[i];
        at /= t->shape[i];
    }
    return (const char *)t->data + t->byte_offset + offset * (int64_t)elem_bytes(t->dtype);
}

static double value_at(const moe_tensor *t, int64_t at)
{
    const char *p = elem_at(t, at);
    double d;
    float f;
    uint16_t h;
    switch (t->dtype) {
    case MOE_F64:
        memcpy(&d, p, sizeof d);
        return d;
    case MOE_F32:
        memcpy(&f, p, sizeof f);
        return (double)f;
    case MOE_BF16:
        memcpy(&h, p, sizeof h);
        return (double)moei_bf16_to_f32(h);
    default:
        memcpy(&h, p, sizeof h);
        return (double)moei_f16_to_f32(h);
    }
}

static unsigned long long bits_at(const moe_tensor *t, int64_t at)
{
    unsigned long long bits = 0;
    memcpy(&bits, elem_at(t, at), elem_bytes(t->dtype));
    return bits;
}

// Numbers of the dtype between two values, so that a rounding shows as 1.
static double ulps_apart(moe_dtype dtype, double a, double b)
{
    const int digits = dtype == MOE_F64 ? 53 : dtype == MOE_F32 ? 24 : dtype == MOE_F16 ? 11 : 8;
    const double big = fmax(fabs(a), fabs(b));
    int exponent;
    (void)frexp(big, &exponent);
    return big > 0 ? fabs(a - b) / ldexp(1.0, exponent - digits) : 0;
}

// -- Statistics ---------------------------------------------------------------------------------

static void side_add(moec_side *side, double value, bool *first)
{
    if (isnan(value)) {
        side->nan++;
    } else if (isinf(value)) {
        side->inf++;
    } else {
        side->zero += !(value < 0) && !(value > 0);
        side->min = *first || value < side->min ? value : side->min;
        side->max = *first || value > side->max ? value : side->max;
        *first = false;
    }
}

/// One element's place in the comparison.
struct element {
    double actual, expected, bound, diff, ratio;
};

static struct element element_at(const moec_compare *c, int64_t at)
{
    struct element e;
    e.actual = value_at(&c->actual, at);
    e.expected = value_at(&c->expected, at);
    e.bound = c->exact ? 0 : c->bound != NULL ? c->bound[at] : c->atol + c->rtol * fabs(e.expected);
    const bool nan_a = isnan(e.actual);
    const bool nan_e = isnan(e.expected);
    const bool same =
        c->exact ? memcmp(elem_at(&c->actual, at), elem_at(&c->expected, at),
                          elem_bytes(c->actual.dtype)) == 0
                 : (nan_a && nan_e && c->nan_matches) ||
                       (!(e.actual < e.expected) && !(e.actual > e.expected) && !nan_a && !nan_e);
    if (same) {
        e.diff = 0;
        // A bound that is no number proves nothing about a number.
        e.ratio = isnan(e.bound) && isfinite(e.expected) ? HUGE_VAL : 0;
        return e;
    }
    const bool finite = isfinite(e.actual) && isfinite(e.expected);
    e.diff = finite ? fabs(e.actual - e.expected) : HUGE_VAL;
    e.ratio = finite && e.bound > 0 && isfinite(e.bound) ? e.diff / e.bound : HUGE_VAL;
    return e;
}

// Whether a NaN alone is no failure.
static bool nan_may_be(const moec_compare *c)
{
    return c->nan_matches || c->exact;
}

static void gather(const moec_compare *c, moec_stats *s)
{
    const int64_t n = num_elems(&c->actual);
    bool first_a = true;
    bool first_e = true;
    int64_t finite = 0;
    double sum = 0;
    s->count = n;
    for (int64_t i = 0; i < n; i++) {
        const struct element e = element_at(c, i);
        side_add(&s->actual, e.actual, &first_a);
        side_add(&s->expected, e.expected, &first_e);
        s->over += e.ratio > 1;
        s->max_diff = fmax(s->max_diff, e.diff);
        if (isfinite(e.diff)) {
            sum += e.diff;
            finite++;
        }
        if (s->worst < 0 || e.ratio > s->max_ratio) {
            s->max_ratio = e.ratio;
            s->worst = i;
        }
    }
    s->mean_diff = finite > 0 ? sum / (double)finite : 0;
}

// -- Patterns -----------------------------------------------------------------------------------

/// The failing elements, seen as rows of the last dimension.
struct spread {
    int64_t rows, cols; ///< of the tensor
    int64_t bad_rows;   ///< rows with a failure
    int64_t first_row, last_row;
    int64_t first_col, last_col;
    bool all_zero, all_negated; ///< of actual, at every failure
    double factor_min, factor_max;
    double offset_min, offset_max;
};

static struct spread spread_of(const moec_compare *c, const moec_stats *s)
{
    struct spread p;
    memset(&p, 0, sizeof p);
    p.cols = c->actual.ndim > 0 ? c->actual.shape[c->actual.ndim - 1] : 1;
    p.rows = p.cols > 0 ? s->count / p.cols : 0;
    p.all_zero = p.all_negated = true;
    p.first_col = p.cols;
    p.last_col = -1;
    p.first_row = -1;
    p.factor_min = p.offset_min = HUGE_VAL;
    p.factor_max = p.offset_max = -HUGE_VAL;
    for (int64_t i = 0; i < s->count; i++) {
        const struct element e = element_at(c, i);
        if (!(e.ratio > 1)) {
            continue;
        }
        const int64_t row = i / p.cols;
        const int64_t col = i % p.cols;
        p.bad_rows += p.bad_rows == 0 || row != p.last_row;
        p.first_row = p.first_row < 0 ? row : p.first_row;
        p.last_row = row;
        p.first_col = col < p.first_col ? col : p.first_col;
        p.last_col = col > p.last_col ? col : p.last_col;
        p.all_zero = p.all_zero && fabs(e.actual) <= 0;
        p.all_negated = p.all_negated && fabs(e.actual + e.expected) <= e.bound;
        const double factor = e.actual / e.expected;
        const double offset = e.actual - e.expected;
        p.factor_min = isnan(factor) ? -HUGE_VAL : fmin(p.factor_min, factor);
        p.factor_max = isnan(factor) ? HUGE_VAL : fmax(p.factor_max, factor);
        p.offset_min = isnan(offset) ? -HUGE_VAL : fmin(p.offset_min, offset);
        p.offset_max = isnan(offset) ? HUGE_VAL : fmax(p.offset_max, offset);
    }
    return p;
}

// Whether actual[row][col] lies within the bound of expected[from][col + shift] wherever both are.
static bool matches(const moec_compare *c, const struct spread *p, int64_t row, int64_t from,
                    int64_t shift)
{
    int64_t compared = 0;
    for (int64_t col = 0; col < p->cols; col++) {
        if (col + shift < 0 || col + shift >= p->cols) {
            continue;
        }
        const double a = value_at(&c->actual, row * p->cols + col);
        const double e = value_at(&c->expected, from * p->cols + col + shift);
        const double bound = element_at(c, row * p->cols + col).bound;
        if (!(fabs(a - e) <= fmax(bound, 1e-6 * fabs(e)))) {
            return false;
        }
        compared++;
    }
    return compared > 1 && compared >= p->cols / 2;
}

static void print_moved(const moec_compare *c, const moec_stats *s, const struct spread *p)
{
    const int64_t row = s->worst / p->cols;
    if (p->cols < 2 || p->cols > MAX_ROW_SEARCH) {
        return;
    }
    for (int64_t from = 0; from < p->rows && from < MAX_ROW_SEARCH; from++) {
        if (from != row && matches(c, p, row, from, 0)) {
            (void)fprintf(
                c->out, "  pattern      row %" PRId64 " of actual is row %" PRId64 " of expected\n",
                row, from);
            return;
        }
    }
    for (int64_t shift = 1; shift <= p->cols / 2; shift++) {
        for (int64_t sign = -1; sign <= 1; sign += 2) {
            if (matches(c, p, row, row, sign * shift)) {
                (void)fprintf(c->out,
                              "  pattern      row %" PRId64 " of actual is that of expected, "
                              "moved by %" PRId64 " columns\n",
                              row, -sign * shift);
                return;
            }
        }
    }
}

static void print_patterns(const moec_compare *c, const moec_stats *s)
{
    const struct spread p = spread_of(c, s);
    (void)fprintf(c->out,
                  "  where        rows %" PRId64 "..%" PRId64 " (%" PRId64 " of %" PRId64
                  " have one), columns %" PRId64 "..%" PRId64 " of %" PRId64 "\n",
                  p.first_row, p.last_row, p.bad_rows, p.rows, p.first_col, p.last_col, p.cols);
    const double factor = (p.factor_min + p.factor_max) / 2;
    const double offset = (p.offset_min + p.offset_max) / 2;
    if (p.all_zero) {
        (void)fprintf(c->out, "  pattern      actual is 0 at every one of them\n");
    } else if (p.all_negated) {
        (void)fprintf(c->out, "  pattern      actual has the other sign at every one of them\n");
    } else if (s->over > 1 && isfinite(factor) &&
               p.factor_max - p.factor_min <= 1e-3 * fabs(factor)) {
        (void)fprintf(c->out, "  pattern      actual is %.6g times expected at every one of them\n",
                      factor);
    } else if (s->over > 1 && isfinite(offset) &&
               p.offset_max - p.offset_min <= 1e-3 * fabs(offset)) {
        (void)fprintf(c->out, "  pattern      actual is expected %+.6g at every one of them\n",
                      offset);
    } else {
        print_moved(c, s, &p);
    }
}

// -- Printing -----------------------------------------------------------------------------------

static void print_index(FILE *out, const moe_tensor *t, int64_t at)
{
    int64_t index[MOE_MAX_DIMS];
    for (int32_t i = t->ndim; i-- > 0;) {
        index[i] = at % t->shape[i];
        at /= t->shape[i];
    }
    (void)fprintf(out, "[");
    for (int32_t i = 0; i < t->ndim; i++) {
        (void)fprintf(out, "%s%" PRId64, i > 0 ? ", " : "", index[i]);
    }
    (void)fprintf(out, "]");
}

static void print_shape(FILE *out, const moe_tensor *t)
{
    (void)fprintf(out, "%s [", elem_name(t->dtype));
    for (int32_t i = 0; i < t->ndim && i < MOE_MAX_DIMS; i++) {
        (void)fprintf(out, "%s%" PRId64, i > 0 ? ", " : "", t->shape[i]);
    }
    (void)fprintf(out, "]");
}

static void print_side(FILE *out, const char *name, const moec_side *side)
{
    (void)fprintf(out,
                  "  %-12s in [%.6g, %.6g], NaN %" PRId64 ", Inf %" PRId64 ", zero %" PRId64 "\n",
                  name, side->min, side->max, side->nan, side->inf, side->zero);
}

// How many elements lie in each decade of error / bound.
static void print_histogram(const moec_compare *c, const moec_stats *s)
{
    static const double edges[] = {0.1, 0.5, 1, 10, 100, 1e3, 1e4};
    enum { BINS = sizeof edges / sizeof edges[0] + 1 };
    int64_t bins[BINS] = {0};
    for (int64_t i = 0; i < s->count; i++) {
        const double ratio = element_at(c, i).ratio;
        int bin = 0;
        while (bin < BINS - 1 && ratio > edges[bin]) {
            bin++;
        }
        bins[bin]++;
    }
    (void)fprintf(c->out, "  error/bound ");
    for (int bin = 0; bin < BINS; bin++) {
        if (bins[bin] > 0 && bin < BINS - 1) {
            (void)fprintf(c->out, " <=%g: %" PRId64, edges[bin], bins[bin]);
        } else if (bins[bin] > 0) {
            (void)fprintf(c->out, " more: %" PRId64, bins[bin]);
        }
    }
    (void)fprintf(c->out, "\n");
}

static void print_report(const moec_compare *c, const moec_stats *s)
{
    FILE *out = c->out;
    (void)fprintf(out, "%s  %s  ", moec_verdict_name(s->verdict), c->label);
    print_shape(out, &c->actual);
    (void)fprintf(out, " against %s%s\n", elem_name(c->expected.dtype),
                  c->exact ? ", bit for bit" : "");
    (void)fprintf(out, "  |difference| max %.4g, mean %.4g\n", s->max_diff, s->mean_diff);
    (void)fprintf(out, "  over         %" PRId64 " of %" PRId64 " (%.3g %%)", s->over, s->count,
                  s->count > 0 ? 100.0 * (double)s->over / (double)s->count : 0.0);
    (void)fprintf(out, c->exact ? "\n" : ", largest error / bound %.4g\n", s->max_ratio);
    print_side(out, "actual", &s->actual);
    print_side(out, "expected", &s->expected);
    if (s->worst >= 0) {
        const struct element e = element_at(c, s->worst);
        (void)fprintf(out, "  worst        ");
        print_index(out, &c->actual, s->worst);
        (void)fprintf(out, ": actual %.9g, expected %.9g", e.actual, e.expected);
        if (c->exact) {
            (void)fprintf(out, ", bits 0x%llX and 0x%llX", bits_at(&c->actual, s->worst),
                          bits_at(&c->expected, s->worst));
        }
        if (isfinite(e.diff)) {
            (void)fprintf(out, ", difference %.4g (%.3g ulp)", e.diff,
                          ulps_apart(c->actual.dtype, e.actual, e.expected));
        }
        (void)fprintf(out, c->exact ? "\n" : ", bound %.4g\n", e.bound);
    }
    if (!c->exact) {
        print_histogram(c, s);
    }
    if (s->over > 0) {
        print_patterns(c, s);
    }
    if (!nan_may_be(c) && s->actual.nan > 0) {
        (void)fprintf(out, "  NaN          in actual: the code is wrong, not its precision\n");
    }
    if (!nan_may_be(c) && s->expected.nan > 0) {
        (void)fprintf(out, "  NaN          in expected: the reference is wrong\n");
    }
    if (c->repro != NULL) {
        (void)fprintf(out, "  repeat with  %s\n", c->repro);
    }
}

static bool comparable(const moec_compare *c)
{
    const moe_tensor *sides[2] = {&c->actual, &c->expected};
    for (int side = 0; side < 2; side++) {
        const moe_dtype dtype = sides[side]->dtype;
        if ((dtype != MOE_F64 && dtype != MOE_F32 && dtype != MOE_BF16 && dtype != MOE_F16) ||
            sides[side]->ndim < 0 || sides[side]->ndim > MOE_MAX_DIMS) {
            return false;
        }
    }
    if (c->actual.ndim != c->expected.ndim || (c->exact && c->actual.dtype != c->expected.dtype)) {
        return false;
    }
    for (int32_t i = 0; i < c->actual.ndim; i++) {
        if (c->actual.shape[i] != c->expected.shape[i] || c->actual.shape[i] < 0) {
            return false;
        }
    }
    return num_elems(&c->actual) == 0 || (c->actual.data != NULL && c->expected.data != NULL);
}

moec_verdict moec_report_compare(const moec_compare *c, moec_stats *stats)
{
    moec_stats s;
    memset(&s, 0, sizeof s);
    s.worst = -1;
    if (!comparable(c)) {
        s.verdict = MOEC_FAIL;
        if (c->out != NULL) {
            (void)fprintf(c->out, "FAIL  %s  cannot be compared: actual is ", c->label);
            print_shape(c->out, &c->actual);
            (void)fprintf(c->out, ", expected is ");
            print_shape(c->out, &c->expected);
            (void)fprintf(c->out, "\n");
            if (c->repro != NULL) {
                (void)fprintf(c->out, "  repeat with  %s\n", c->repro);
            }
        }
    } else {
        gather(c, &s);
        const bool nan = !nan_may_be(c) && (s.actual.nan > 0 || s.expected.nan > 0);
        s.verdict = s.over > 0 || nan ? MOEC_FAIL : s.max_ratio > 0.5 ? MOEC_MARGINAL : MOEC_PASS;
        if (c->out != NULL && (s.verdict == MOEC_FAIL || c->always)) {
            print_report(c, &s);
        }
    }
    if (stats != NULL) {
        *stats = s;
    }
    return s.verdict;
}
