// SPDX-License-Identifier: Apache-2.0
// The arithmetic of moe bench's figures, and the CPU's ceilings.
#include <math.h>
#include <string.h>

#include "bench.h"
#include "core/isa.h"
#include "unit/test.h"

static int near(double have, double want)
{
    return fabs(have - want) <= 1e-12 * fabs(want);
}

static void test_quartiles(void)
{
    double odd[] = {0.005, 0.001, 0.003, 0.002, 0.004};
    double even[] = {0.004, 0.001, 0.003, 0.002};
    double one[] = {0.008};
    bench_times t = bench_quartiles(odd, 5, 1);
    CHECK(near(t.median, 3) && near(t.q1, 2) && near(t.q3, 4), "of five: %g, %g, %g", t.q1,
          t.median, t.q3);
    CHECK(near(t.mean, 3), "mean of five: %g", t.mean);
    t = bench_quartiles(even, 4, 2); // 1 2 3 4 ms of two sets each
    CHECK(near(t.median, 1.25) && near(t.q1, 0.875) && near(t.q3, 1.625), "of four: %g, %g, %g",
          t.q1, t.median, t.q3);
    t = bench_quartiles(one, 1, 4);
    CHECK(near(t.median, 2) && near(t.q1, 2) && near(t.q3, 2), "of one: %g, %g, %g", t.q1, t.median,
          t.q3);
}

static void test_floor(void)
{
    const char *kind = NULL;
    // gpt-oss-20b in bf16 at 8192 tokens, on 3.095 TB/s and 790 TFLOP/s.
    bench_work work = {.bytes = 1.68e9,
                       .flops = {1.0872e12, 0.5436e12},
                       .read = 3.095e12,
                       .peak = {790e12, 790e12}};
    CHECK(near(bench_floor(&work, &kind), 1e3 * 1.6308e12 / 790e12) && strcmp(kind, "mma") == 0,
          "floor %g, %s", bench_floor(&work, &kind), kind);
    work.flops[0] /= 1024;
    work.flops[1] /= 1024;
    CHECK(near(bench_floor(&work, &kind), 1e3 * 1.68e9 / 3.095e12) && strcmp(kind, "mem") == 0,
          "floor %g, %s", bench_floor(&work, &kind), kind);
    work = (bench_work){.bytes = 1, .flops = {4e12, 6e12}, .read = 1e12, .peak = {2e12, 1e12}};
    CHECK(near(bench_floor(&work, &kind), 8000), "two peaks: %g", bench_floor(&work, &kind));
    work.peak[0] = work.peak[1] = 0;
    CHECK(near(bench_floor(&work, &kind), 1e-9) && strcmp(kind, "mem") == 0, "no peak: %g, %s",
          bench_floor(&work, &kind), kind);
    work.read = 0;
    CHECK(bench_floor(&work, &kind) == 0 && kind == NULL, "no ceiling: %g",
          bench_floor(&work, &kind));
    CHECK(near(bench_percent(0.5, 2), 25) && bench_percent(0, 2) == 0, "percents %g, %g",
          bench_percent(0.5, 2), bench_percent(0, 2));
}

static void test_ratio(void)
{
    const bench_ratio r = bench_compare_times((bench_times){.median = 2, .q1 = 1.8, .q3 = 2.2},
                                              (bench_times){.median = 1, .q1 = 0.9, .q3 = 1.1});
    CHECK(near(r.value, 0.5) && near(r.low, 0.9 / 2.2) && near(r.high, 1.1 / 1.8),
          "ratio %g in %g .. %g", r.value, r.low, r.high);
}

static void test_ceilings(void)
{
    const char *const isas[] = {"ref", NULL};
    for (int i = 0; i < 2; i++) {
        moe_context_desc desc = moe_context_desc_default();
        moe_context *ctx = NULL;
        desc.num_threads = 2;
        desc.isa = isas[i];
        CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error());
        const moei_exec exec = moei_exec_make(ctx, NULL);
        double value = 0;
        CHECK(ctx->backend->ceiling(&exec, MOEI_CEILING_READ, &value) == MOE_OK && value > 1e8 &&
                  value < 1e13,
              "read %g bytes/s", value);
        CHECK(ctx->backend->ceiling(&exec, MOEI_CEILING_F32, &value) == MOE_OK && value > 1e8 &&
                  value < 1e15,
              "%g operations/s", value);
        const moe_status matrices = ctx->backend->ceiling(&exec, MOEI_CEILING_BF16, &value);
        CHECK((ctx->isa & MOEI_ISA_AMX_BF16) != 0
                  ? matrices == MOE_OK && value > 1e10 && value < 1e16
                  : matrices == MOE_E_UNSUPPORTED &&
                        strstr(moe_last_error(), "is not measured without AMX") != NULL,
              "bf16: %s, %g", moe_last_error(), value);
        const moe_status integers = ctx->backend->ceiling(&exec, MOEI_CEILING_FP8, &value);
        CHECK((ctx->isa & MOEI_ISA_AVX2_FMA) != 0
                  ? integers == MOE_OK && value > 1e8 && value < 1e16
                  : integers == MOE_E_UNSUPPORTED,
              "%g operations/s of 8-bit integers", value);
        moe_context_destroy(ctx);
    }
}

int main(void)
{
    test_quartiles();
    test_floor();
    test_ratio();
    test_ceilings();
    return test_summary();
}
