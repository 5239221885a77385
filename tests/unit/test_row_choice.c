// SPDX-License-Identifier: Apache-2.0
// Which row of a table runs a product: one of a class that is not consistent costs least, and level
// KERNEL passes it over. And how a refusal names what a device lacks.
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "ops/backend.h"
#include "unit/test.h"

#define MAX_ROWS 256
#define CHEAP    "moek_ggemm_any_any_any__cheap"

static moei_backend backend;
static moei_kernel kernels[MAX_ROWS];
static uint64_t runs[MAX_ROWS];

static double no_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    (void)kernel;
    (void)problem;
    return 0.0;
}

// The CPU's table and a cheap row for every product.
static void make_table(const moei_backend *cpu)
{
    size_t n = cpu->num_kernels;
    if (n >= MAX_ROWS) {
        abort();
    }
    memcpy(kernels, cpu->kernels, n * sizeof kernels[0]);
    for (size_t i = 0; i < cpu->num_kernels; i++) {
        if (kernels[i].op == MOEI_OP_GGEMM && kernels[i].arith == MOEI_ARITH_FMA_C256) {
            kernels[n] = kernels[i];
        }
    }
    kernels[n].name = CHEAP;
    kernels[n].arith = MOEI_ARITH_WGMMA_BF16;
    kernels[n].supports = NULL;
    kernels[n++].cost = no_cost;
    backend = *cpu;
    backend.kernels = kernels;
    backend.num_kernels = n;
    backend.runs = runs;
}

/// What the support query says of the cheap row.
typedef struct answer {
    int chosen, refused;
} answer;

static int look(void *self, const moe_support *s)
{
    answer *a = self;
    if (strcmp(s->kernel, CHEAP) == 0) {
        a->chosen += s->chosen;
        a->refused += s->code == MOEI_WHYNOT_LEVEL &&
                      strcmp(s->text, "the step holds level BATCH, the descriptor asks for "
                                      "KERNEL") == 0;
    }
    return 0;
}

// The level that a plan holds; NONE where it is refused.
static moe_determinism plan_level(moe_context *ctx, const moe_layer_desc *d)
{
    moe_plan *plan = NULL;
    const moe_determinism level =
        moe_plan_create(ctx, d, &plan) == MOE_OK ? moe_plan_level(plan) : MOE_DET_NONE;
    moe_plan_destroy(plan);
    return level;
}

static void test_levels(moe_context *ctx)
{
    moe_layer_desc d = layer_case_base();
    answer a = {0, 0};
    CHECK(plan_level(ctx, &d) == MOE_DET_BATCH, "the cheap row is not taken by default");
    CHECK(moe_query_support(ctx, &d, look, &a) == MOE_OK && a.chosen == 2 && a.refused == 0,
          "chosen %d times, refused %d times", a.chosen, a.refused);
    d.determinism = MOE_DET_KERNEL;
    a = (answer){0, 0};
    CHECK(plan_level(ctx, &d) == MOE_DET_KERNEL, "%s", moe_last_error());
    CHECK(moe_query_support(ctx, &d, look, &a) == MOE_OK && a.chosen == 0 && a.refused == 2,
          "chosen %d times, refused %d times", a.chosen, a.refused);
}

// Where no other row is left, the refusal is of the level, and names class and kernel.
static void test_no_other_row(moe_context *ctx)
{
    moe_layer_desc d = layer_case_base();
    answer a = {0, 0};
    for (size_t i = 0; i + 1 < backend.num_kernels; i++) {
        kernels[i].isa |= kernels[i].op == MOEI_OP_GGEMM ? (uint64_t)1 << 63 : 0;
    }
    CHECK(plan_level(ctx, &d) == MOE_DET_BATCH, "%s", moe_last_error());
    d.determinism = MOE_DET_KERNEL;
    CHECK(moe_query_support(ctx, &d, look, &a) == MOE_E_LEVEL && a.chosen == 0 && a.refused == 2,
          "chosen %d times, refused %d times", a.chosen, a.refused);
    CHECK(strstr(moe_last_error(),
                 "gate_up: class wgmma_bf16 of kernel " CHEAP
                 " is not CONSISTENT, desc.determinism = KERNEL; BATCH works") != NULL,
          "%s", moe_last_error());
    kernels[backend.num_kernels - 1].isa |= (uint64_t)1 << 63;
    CHECK(moe_query_support(ctx, &d, look, &a) == MOE_E_NO_KERNEL, "%s", moe_last_error());
}

// A device names its own bits.
static const char *isa_text(uint64_t isa, char *text, size_t capacity)
{
    (void)snprintf(text, capacity, "unit%s%s", (isa & 1) != 0 ? "-one" : "",
                   (isa & 2) != 0 ? "-two" : "");
    return text;
}

static void test_isa_text(void)
{
    const moei_whynot why = {MOEI_WHYNOT_ISA, 1, 3};
    char text[100];
    moei_backend named = backend;
    CHECK(strncmp(moei_whynot_text(&named, &why, text, sizeof text), "CPU or context has ", 19) ==
              0,
          "%s", text);
    named.device = MOE_DEVICE_EXT;
    named.isa_text = isa_text;
    CHECK(strcmp(moei_whynot_text(&named, &why, text, sizeof text),
                 "device has unit-one, the kernel needs unit-one-two") == 0,
          "%s", text);
    const moei_whynot other = {MOEI_WHYNOT_ALIGNMENT, 7, 16};
    CHECK(strcmp(moei_whynot_text(&named, &other, text, sizeof text),
                 "k = 7, the kernel needs a multiple of 16") == 0,
          "%s", text);
}

int main(void)
{
    moe_context *host = NULL;
    if (CHECK(moe_context_create(NULL, &host) == MOE_OK, "%s", moe_last_error())) {
        make_table(host->backend);
        moe_context ctx = *host;
        ctx.backend = &backend;
        test_levels(&ctx);
        test_no_other_row(&ctx);
        test_isa_text();
    }
    moe_context_destroy(host);
    return test_summary();
}
