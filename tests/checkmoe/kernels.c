// SPDX-License-Identifier: Apache-2.0
// Walks every kernel row of the context's backend; a row that the machine cannot run is skipped by
// name, never passed.
#include <stdlib.h>

#include "checkmoe/check_ggemm.h"
#include "checkmoe/check_rows.h"
#include "checkmoe/checkmoe.h"
#include "checkmoe/twins.h"
#include "ops/backend.h"

typedef void (*check_fn)(moec_run *run, const moei_kernel *kernel);
static const check_fn checks[MOEI_NUM_OPS] = {
    [MOEI_OP_ROUTE] = moec_check_route,     [MOEI_OP_PLACE] = moec_check_place,
    [MOEI_OP_SORT] = moec_check_sort,       [MOEI_OP_QUANTIZE] = moec_check_quantize,
    [MOEI_OP_GGEMM] = moec_check_ggemm,     [MOEI_OP_GLU] = moec_check_glu,
    [MOEI_OP_COMBINE] = moec_check_combine,
};

static void check_row(moec_run *run, const moei_kernel *kernel)
{
    moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
    char text[320];
    const bool here = moei_registry_supports(kernel, run->ctx->isa, NULL, &why);
    run->counts->selected++;
    if (run->options->list) {
        if (here) {
            (void)fprintf(run->out, "%s\n", kernel->name);
        }
        return;
    }
    if (!here) {
        moec_skip(run, "%s: %s", kernel->name,
                  moei_whynot_text(run->ctx->backend, &why, text, sizeof text));
        return;
    }
    const unsigned long failed = run->counts->failed;
    const unsigned long passed = run->counts->passed;
    run->isa = kernel->isa_name;
    run->cases = 0;
    run->worst = 0.0;
    checks[kernel->op](run, kernel);
    (void)fprintf(run->out, "%-44s %lu passed, %lu failed, %lu cases\n", kernel->name,
                  run->counts->passed - passed, run->counts->failed - failed, run->cases);
    if (run->options->record != NULL && run->counts->failed == failed) {
        run->options->record(run, kernel, run->counts->passed - passed);
    }
}

moe_status moec_context(const moec_options *options, moe_context **out)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.device = options->device;
    desc.isa = options->isa;
    desc.num_threads = options->threads;
    const moe_status status = moe_context_create(&desc, out);
    if (status == MOE_OK && options->spoil != NULL) {
        options->spoil(*out);
    }
    return status;
}

moe_status moec_cpu_beside(const moe_context *ctx, moe_context **out)
{
    *out = NULL;
    return ctx->backend->device != MOE_DEVICE_CPU ? moe_context_create(NULL, out) : MOE_OK;
}

int moec_kernels_run(const moec_options *options, FILE *out, moec_counts *counts)
{
    moe_context *ctx = NULL;
    moe_context *cpu = NULL;
    if (moec_context(options, &ctx) != MOE_OK || moec_cpu_beside(ctx, &cpu) != MOE_OK) {
        (void)fprintf(out, "%s\n", moe_last_error());
        moe_context_destroy(ctx);
        return -1;
    }
    moec_options resolved = *options;
    resolved.seed = options->seed != 0 ? options->seed : 1;
    moec_run run = {.options = &resolved, .out = out, .counts = counts, .ctx = ctx, .cpu = cpu};
    moec_twins_apart(options->apart);
    const bool ok = moec_seen_begin(&run);
    if (!ok) {
        (void)fprintf(out, "memory is short\n");
    }
    for (size_t i = 0; ok && i < ctx->backend->num_kernels; i++) {
        const moei_kernel *kernel = &ctx->backend->kernels[i];
        const bool wanted = options->format == 0 || kernel->op == MOEI_OP_GGEMM;
        if (wanted && moec_glob(options->kernel, kernel->name)) {
            check_row(&run, kernel);
        }
    }
    free(run.seen);
    moec_twins_release(ctx);
    moe_context_destroy(cpu);
    moe_context_destroy(ctx);
    return ok ? 0 : -1;
}
