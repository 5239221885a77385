// SPDX-License-Identifier: Apache-2.0
// The report of comparisons: verdicts, counts, and the patterns that it names.
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/report.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "test.h"

#define ROWS 4
#define COLS 6

static char *text; // of the last report

static moec_verdict run(moec_compare c, moec_stats *stats)
{
    size_t size = 0;
    free(text);
    text = NULL;
    c.out = open_memstream(&text, &size);
    c.label = "thing";
    c.repro = "again --now";
    const moec_verdict verdict = moec_report_compare(&c, stats);
    (void)fclose(c.out);
    return verdict;
}

static int says(const char *part)
{
    return strstr(text, part) != NULL;
}

static void fill(float *a)
{
    for (int i = 0; i < ROWS * COLS; i++) {
        a[i] = (float)(i * i % 37) - 11.25f;
    }
}

static moec_compare pair(const float *a, const float *e)
{
    const moec_compare c = {.actual = moe_tensor_2d(a, MOE_F32, ROWS, COLS),
                            .expected = moe_tensor_2d(e, MOE_F32, ROWS, COLS),
                            .atol = 1e-3};
    return c;
}

static void test_verdicts(void)
{
    float a[ROWS * COLS];
    float e[ROWS * COLS];
    moec_stats s;
    fill(a);
    fill(e);
    CHECK(run(pair(a, e), &s) == MOEC_PASS && text[0] == '\0' && s.over == 0 &&
              s.count == ROWS * COLS,
          "equal tensors: %s", text);
    e[7] = a[7] + 4e-4f;
    CHECK(run(pair(a, e), &s) == MOEC_PASS && s.worst == 7, "0.4 of the bound, worst %d",
          (int)s.worst);
    e[7] = a[7] + 9e-4f;
    CHECK(run(pair(a, e), &s) == MOEC_MARGINAL && s.max_ratio > 0.85 && s.max_ratio < 0.95,
          "ratio %g", s.max_ratio);
    e[7] = a[7] + 2e-3f;
    CHECK(run(pair(a, e), &s) == MOEC_FAIL && s.over == 1, "%d over", (int)s.over);
    CHECK(says("FAIL  thing  f32 [4, 6] against f32") && says("1 of 24 (4.17 %)") &&
              says("worst        [1, 1]: actual") && says("repeat with  again --now"),
          "report: %s", text);
    moec_compare always = pair(a, a);
    always.always = 1;
    CHECK(run(always, NULL) == MOEC_PASS && says("PASS  thing"), "report: %s", text);
    const double bound[ROWS * COLS] = {[7] = 1};
    moec_compare each = pair(a, e);
    each.bound = bound;
    each.atol = 0;
    CHECK(run(each, &s) == MOEC_PASS && s.max_ratio > 0, "a bound for each element: %g",
          s.max_ratio);
}

static void test_special_values(void)
{
    float a[ROWS * COLS];
    float e[ROWS * COLS];
    moec_stats s;
    fill(a);
    fill(e);
    a[3] = NAN;
    CHECK(run(pair(a, e), &s) == MOEC_FAIL && s.actual.nan == 1 && says("the code is wrong"),
          "NaN in actual: %s", text);
    e[3] = NAN;
    CHECK(run(pair(a, e), &s) == MOEC_FAIL && says("the reference is wrong"), "NaN in both: %s",
          text);
    moec_compare c = pair(a, e);
    c.nan_matches = 1;
    CHECK(run(c, &s) == MOEC_PASS, "NaN matches: %s", text);
    a[3] = 0;
    c = pair(a, e);
    c.nan_matches = 1;
    CHECK(run(c, &s) == MOEC_FAIL, "NaN in expected only");
    a[3] = e[3] = INFINITY;
    CHECK(run(pair(a, e), &s) == MOEC_PASS && s.actual.inf == 1 && s.actual.max < 100.0,
          "equal infinities: %s", text);
    e[3] = -INFINITY;
    CHECK(run(pair(a, e), &s) == MOEC_FAIL && isinf(s.max_diff) && isfinite(s.mean_diff),
          "infinities of two signs");
    a[3] = 0.0f;
    e[3] = -0.0f;
    CHECK(run(pair(a, e), &s) == MOEC_PASS, "two zeros are equal");
    c = pair(a, e);
    c.exact = 1;
    CHECK(run(c, &s) == MOEC_FAIL && s.over == 1 && says("bit for bit") &&
              says("bits 0x0 and 0x80000000"),
          "but not in bits: %s", text);
    a[3] = e[3] = NAN;
    c = pair(a, e);
    c.exact = 1;
    CHECK(run(c, &s) == MOEC_PASS && s.actual.nan == 1, "NaN of equal bits: %s", text);
    c.nan_matches = 1;
    e[3] = -e[3];
    CHECK(run(c, &s) == MOEC_FAIL && s.over == 1, "NaN of other bits: %s", text);
}

static void test_patterns(void)
{
    float a[ROWS * COLS];
    float e[ROWS * COLS];
    fill(e);
    for (int i = 0; i < ROWS * COLS; i++) {
        a[i] = 2 * e[i];
    }
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && says("2 times expected at every one"), "%s", text);
    for (int i = 0; i < ROWS * COLS; i++) {
        a[i] = e[i] + (i % COLS >= 4 ? 0.5f : 0.0f);
    }
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && says("expected +0.5 at every one") &&
              says("(4 of 4 have one), columns 4..5 of 6"),
          "%s", text);
    for (int i = 0; i < ROWS * COLS; i++) {
        a[i] = i / COLS == 2 ? 0 : e[i];
    }
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && says("actual is 0 at every one") &&
              says("rows 2..2 (1 of 4 have one)"),
          "%s", text);
    for (int i = 0; i < ROWS * COLS; i++) {
        a[i] = -e[i];
    }
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && says("the other sign"), "%s", text);
    memset(e, 0, sizeof e);
    a[1] = 1;
    a[2] = 2;
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && !says("times expected"), "%s", text);
    fill(e);
    memcpy(a, e, sizeof a);
    memcpy(&a[COLS], &e[3 * COLS], COLS * sizeof *a);
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && says("row 1 of actual is row 3 of expected"), "%s",
          text);
    memcpy(a, e, sizeof a);
    for (int i = 0; i + 1 < COLS; i++) {
        a[i] = e[i + 1];
    }
    CHECK(run(pair(a, e), NULL) == MOEC_FAIL && says("moved by -1 columns"), "%s", text);
}

static void test_forms(void)
{
    uint16_t b[4] = {moei_f32_to_bf16(1.5f), moei_f32_to_bf16(-2), 0, moei_f32_to_bf16(8)};
    uint16_t h[4] = {moei_f32_to_f16(1.5f), moei_f32_to_f16(-2), 0, moei_f32_to_f16(8)};
    const double d[4] = {1.5, -2, 0, 8};
    moec_compare c = {.actual = moe_tensor_1d(b, MOE_BF16, 4),
                      .expected = moe_tensor_1d(d, MOE_F64, 4)};
    CHECK(run(c, NULL) == MOEC_PASS, "bf16 against f64: %s", text);
    c.actual = moe_tensor_1d(h, MOE_F16, 4);
    CHECK(run(c, NULL) == MOEC_PASS, "f16 against f64: %s", text);
    // A transposed view.
    const float m[6] = {1, 2, 3, 4, 5, 6};
    const float t[6] = {1, 4, 2, 5, 3, 6};
    c.actual = moe_tensor_2d(t, MOE_F32, 2, 3);
    c.actual.stride[0] = 1;
    c.actual.stride[1] = 2;
    c.expected = moe_tensor_2d(m, MOE_F32, 2, 3);
    CHECK(run(c, NULL) == MOEC_PASS, "strides: %s", text);
    c.actual = moe_tensor_2d(t, MOE_F32, 3, 2);
    CHECK(run(c, NULL) == MOEC_FAIL && says("cannot be compared") && says("f32 [3, 2]"), "%s",
          text);
    c.actual = c.expected = moe_tensor_2d(NULL, MOE_F32, 0, 3);
    moec_stats s;
    CHECK(run(c, &s) == MOEC_PASS && s.count == 0 && s.worst == -1, "no elements: %s", text);
    c.actual = c.expected = moe_tensor_1d(m, MOE_I32, 3);
    CHECK(run(c, NULL) == MOEC_FAIL, "integers are not compared here");
}

int main(void)
{
    test_verdicts();
    test_special_values();
    test_patterns();
    test_forms();
    free(text);
    return test_summary();
}
