// SPDX-License-Identifier: Apache-2.0
// What `moe check` prints where a kernel is wrong: mistakes are planted below every row and layer,
// and the report of the first failure must say all there is to know, and repeat.
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "checkmoe/checkmoe.h"
#include "checkmoe/mutate.h"
#include "unit/test.h"

static moec_mutation planted;

static void plant(moe_context *ctx)
{
    static moec_mutant mutant;
    moec_mutant_make(&mutant, ctx, planted);
    ctx->backend = &mutant.backend;
    memcpy(ctx->op_kernel, mutant.ctx.op_kernel, sizeof ctx->op_kernel); // rows of its table
}

// Runs rows and layer cases; returns what was printed, to be freed.
static char *check(const char *kernel, const char *isa, uint64_t seed, moec_mutation mutation,
                   moec_counts *counts)
{
    const moec_options o = {
        .kernel = kernel, .isa = isa, .seed = seed, .threads = 2, .program = "moe", .spoil = plant};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    planted = mutation;
    memset(counts, 0, sizeof *counts);
    if (out == NULL) {
        abort();
    }
    CHECK(moec_kernels_run(&o, out, counts) == 0 && moec_layer_run(&o, out, counts) == 0, "%s: %s",
          kernel, moe_last_error());
    (void)fclose(out);
    return text;
}

// The block of the first failure whose first line has `label`; to be freed, NULL: none.
static char *find_block(const char *text, const char *label)
{
    while (*text != '\0') {
        const char *end = strchr(text, '\n');
        const char *next = end != NULL ? end + 1 : text + strlen(text);
        if (strncmp(text, "FAIL", 4) == 0) {
            char *line = strndup(text, (size_t)(next - text));
            const bool found = line != NULL && strstr(line, label) != NULL;
            free(line);
            while (strncmp(next, "  ", 2) == 0) {
                end = strchr(next, '\n');
                next = end != NULL ? end + 1 : next + strlen(next);
            }
            if (found) {
                return strndup(text, (size_t)(next - text));
            }
        }
        text = next;
    }
    return NULL;
}

// The value of an option of the repeating line, without quotes; "" if it has none.
static void option_of(const char *block, const char *option, char *value, size_t size)
{
    const char *at = strstr(block, option);
    size_t n = 0;
    value[0] = '\0';
    for (at = at != NULL ? at + strlen(option) : ""; strchr(" \n", *at) == NULL && n + 1 < size;
         at++) {
        if (*at != '\'') {
            value[n++] = *at;
            value[n] = '\0';
        }
    }
}

typedef struct report_case {
    moec_mutation mutation;
    const char *kernel, *label;
    bool exact;           // bits are compared: no bound
    bool by_order;        // the mistake depends on what ran before it
    bool slow;            // without the mistake: a CTest line of its own runs that
    const char *parts[3]; // what this report has besides
} report_case;

// Options of the repeating line alone must bring the same report again, and no failure without the
// mistake.
static void repeat(const char *block, const report_case *c)
{
    char kernel[128];
    char isa[32];
    char seed[32];
    moec_counts counts;
    const char *command = strstr(block, "repeat with  moe check");
    if (!CHECK(command != NULL, "no repeating line: %s", block)) {
        return;
    }
    option_of(command, "--kernel ", kernel, sizeof kernel);
    option_of(command, "--isa ", isa, sizeof isa);
    option_of(command, "--seed ", seed, sizeof seed);
    const char *ceiling = isa[0] != '\0' ? isa : NULL;
    char *text = check(kernel, ceiling, strtoull(seed, NULL, 10), c->mutation, &counts);
    char *again = find_block(text, c->label);
    const size_t length = c->by_order ? strcspn(block, "\n") : strlen(block) + 1;
    CHECK(again != NULL && strncmp(again, block, length) == 0, "%s repeats as %s", block,
          again != NULL ? again : "nothing");
    free(again);
    free(text);
    if (c->slow) {
        return;
    }
    text = check(kernel, ceiling, strtoull(seed, NULL, 10), MOEC_MUTATE_NOTHING, &counts);
    CHECK(counts.failed == 0 && counts.passed > 0, "%s without a mistake: %s", kernel, text);
    free(text);
}

static void test_report(const report_case *c)
{
    static const char *const always[] = {" [", // the shape
                                         "  |difference| max ",
                                         ", mean ",
                                         "\n  over         ",
                                         " %)",
                                         "\n  actual       in [",
                                         ", NaN ",
                                         ", Inf ",
                                         ", zero ",
                                         "\n  expected     in [",
                                         "\n  worst        [",
                                         "]: actual ",
                                         ", expected ",
                                         "\n  where        rows ",
                                         "\n  repeat with  moe check --kernel "};
    static const char *const bounded[] = {", largest error / bound ", ", bound ", "error/bound  "};
    moec_counts counts;
    char *text = check(c->kernel, NULL, 3, c->mutation, &counts);
    char *block = find_block(text, c->label);
    if (CHECK(counts.failed > 0 && block != NULL, "%s, %s: no report \"%s\" in: %s", c->kernel,
              moec_mutation_name(c->mutation), c->label, text)) {
        for (size_t i = 0; i < sizeof always / sizeof always[0]; i++) {
            CHECK(strstr(block, always[i]) != NULL, "no \"%s\" in: %s", always[i], block);
        }
        for (size_t i = 0; i < 3; i++) {
            CHECK((strstr(block, bounded[i]) != NULL) == !c->exact, "\"%s\" in: %s", bounded[i],
                  block);
            CHECK(c->parts[i] == NULL || strstr(block, c->parts[i]) != NULL, "no \"%s\" in: %s",
                  c->parts[i], block);
        }
        CHECK(strstr(block, "bit for bit") == NULL || c->exact, "exact: %s", block);
        CHECK(strstr(block, " --seed 3") != NULL && strstr(block, "--threads 2") != NULL,
              "no seed: %s", block);
        repeat(block, c);
    }
    free(block);
    free(text);
}

static void test_pairs(void)
{
    static const char *const pairs[][3] = {
        {"moek_glu__ref_fma", "moek_glu__ref", "moek_glu__ref*"},
        {"moek_x__ref_fma_b16", "moek_x__ref_b16", "moek_x__ref_*b16"},
        {"same", "same", "same*"},
        {"abc", "xyz", "*"},
        {"aa", "aaa", "aa*"}};
    char glob[64];
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        moec_pair_glob(pairs[i][0], pairs[i][1], glob, sizeof glob);
        CHECK(strcmp(glob, pairs[i][2]) == 0 && moec_glob(glob, pairs[i][0]) &&
                  moec_glob(glob, pairs[i][1]),
              "%s and %s: %s", pairs[i][0], pairs[i][1], glob);
    }
}

int main(void)
{
    static const report_case cases[] = {
        {MOEC_MUTATE_BIAS_DROPPED, "moek_ggemm_*__ref_i32", "FAIL  moek_ggemm_",
         .parts = {" against f64\n", "--isa ref "}},
        {MOEC_MUTATE_ELEMENT_ZEROED, "moek_ggemm_*__ref_i32", "two runs differ", .exact = true,
         .parts = {", bit for bit\n", "bits 0x"}},
        {MOEC_MUTATE_WRONG_ACTIVATION, "moek_glu_*__ref", "FAIL  moek_glu_",
         .parts = {"f32 [6, ", " against f64\n", "--isa ref "}},
        {MOEC_MUTATE_ACCUMULATE_IGNORED, "moek_combine_*__ref", "FAIL  moek_combine_",
         .exact = true, .parts = {"accumulate", ", bit for bit\n", "--isa ref "}},
        {MOEC_MUTATE_QUANT_OTHER_GRID, "moek_quantize_*__ref", "the values of codes", .exact = true,
         .slow = true, .parts = {"fp8_static", "f64 [", "--isa ref "}},
        {MOEC_MUTATE_QUANT_SCALE_ONE, "moek_quantize_*__ref", "the values of scales", .exact = true,
         .slow = true, .parts = {"f64 ["}},
        {MOEC_MUTATE_GATE_UP_SWAPPED, "layer-2?", "against float64",
         .parts = {"--kernel layer-2", " against f64\n"}},
        {MOEC_MUTATE_SCALE_TWICE, "layer-2?", "out_weights", .parts = {"moe_route gives"}},
        {MOEC_MUTATE_ELEMENT_ZEROED, "layer-2?", "composition of the ops", .exact = true,
         .by_order = true, .parts = {", bit for bit\n", "bits 0x"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        test_report(&cases[i]);
    }
    test_pairs();
    return test_summary();
}
