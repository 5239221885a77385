// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "checkmoe/check_rows.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkmoe/op_run.h"

// ---- Buffers ------------------------------------------------------------------------------------

static void *add(moec_buffers *b, int64_t count, size_t size, bool output)
{
    const int i = b->count;
    const bool at_end = (i % 2 == 0) != b->flip;
    if (i == (int)(sizeof b->item / sizeof b->item[0]) ||
        !moec_guard_alloc(&b->item[i].guard, (size_t)count * size, at_end)) {
        b->failed = true;
        return NULL;
    }
    b->item[i].output = output;
    b->count++;
    if (output) {
        memset(b->item[i].guard.data, MOEC_POISON, b->item[i].guard.bytes);
    }
    return b->item[i].guard.data;
}

void *moec_input(moec_buffers *buffers, int64_t count, size_t size)
{
    return add(buffers, count, size, false);
}

void *moec_output(moec_buffers *buffers, int64_t count, size_t size)
{
    return add(buffers, count, size, true);
}

const int32_t *moec_draw_valid(moec_rng *rng, moec_buffers *buffers, int64_t tokens)
{
    int32_t *valid = moec_below(rng, 2) == 0 ? moec_input(buffers, 1, sizeof *valid) : NULL;
    if (valid != NULL) {
        valid[0] = (int32_t)moec_below(rng, tokens + 4) - 2;
    }
    return valid;
}

void moec_buffers_free(moec_buffers *buffers)
{
    for (int i = 0; i < buffers->count; i++) {
        moec_guard_free(&buffers->item[i].guard);
    }
    buffers->count = 0;
}

void moec_buffers_poison(moec_buffers *buffers)
{
    for (int i = 0; i < buffers->count; i++) {
        if (buffers->item[i].output) {
            memset(buffers->item[i].guard.data, MOEC_POISON, buffers->item[i].guard.bytes);
        }
    }
}

uint64_t moec_buffers_hash(const moec_buffers *buffers, bool outputs)
{
    uint64_t hash = 0;
    for (int i = 0; i < buffers->count; i++) {
        if (buffers->item[i].output == outputs) {
            const uint64_t one =
                moec_hash(buffers->item[i].guard.data, buffers->item[i].guard.bytes);
            hash = (hash ^ one) * 0x9E3779B97F4A7C15u + (uint64_t)i;
        }
    }
    return hash;
}

// ---- Runs ---------------------------------------------------------------------------------------

bool moec_teams_make(const moec_run *run, moec_teams *teams)
{
    static const int32_t sizes[] = {1, 2, 7};
    memset(teams, 0, sizeof *teams);
    for (int i = 0; i < 3; i++) {
        teams->ctx[i] = run->ctx;
        if (!run->ctx->backend->host_memory) {
            continue;
        }
        moe_context_desc desc = moe_context_desc_default();
        desc.device = run->options->device;
        desc.num_threads = sizes[i];
        if (moe_context_create(&desc, &teams->made[i]) != MOE_OK) {
            moec_teams_free(teams);
            return false;
        }
        teams->copy[i] = *teams->made[i];
        teams->copy[i].backend = run->ctx->backend;
        teams->ctx[i] = &teams->copy[i];
    }
    return true;
}

void moec_teams_free(moec_teams *teams)
{
    for (int i = 0; i < 3; i++) {
        moe_context_destroy(teams->made[i]);
        teams->made[i] = NULL;
    }
}

// What a handler may still say once a kernel has touched a guard page.
static struct {
    char text[640];
    size_t length;
    int file;
} fault;

static void on_fault(int signal_number)
{
    (void)signal_number; // its default action follows: the access is repeated
    const ssize_t written = write(fault.file, fault.text, fault.length);
    (void)written;
}

static void watch(const moec_run *run, const moec_launch *launch)
{
    char repeat[320];
    moec_repro(run, launch->kernel->name, repeat, sizeof repeat);
    const int length = snprintf(fault.text, sizeof fault.text,
                                "FAILED: %s: %s: memory beyond a buffer was touched\n"
                                "  repeat with  %s\n",
                                launch->kernel->name, launch->text, repeat);
    fault.length = length < (int)sizeof fault.text ? (size_t)length : sizeof fault.text - 1;
    fault.file = fileno(run->out);
}

static moe_status run_each(const moe_context *ctx, moec_twins *twins, const moec_launch *launch,
                           uint32_t delay)
{
    moe_context delayed = *ctx;
    const unsigned char *args = launch->args;
    const size_t size = moec_op_args_size(launch->kernel->op);
    delayed.delay = delay;
    for (int64_t i = 0; i < (launch->count > 0 ? launch->count : 1); i++) {
        MOE_TRY(moec_op_run(&delayed, twins, launch->kernel, args + (size_t)i * size));
    }
    return MOE_OK;
}

// `red`: byte around the twins of a device. `delay`: moei_exec.delay.
static void launch_once(moec_run *run, const moe_context *ctx, const moec_launch *launch,
                        unsigned char red, uint32_t delay)
{
    char wrong[200] = "";
    moec_twins twins;
    struct sigaction now = {.sa_handler = on_fault, .sa_flags = (int)SA_RESETHAND};
    struct sigaction before[2];
    moec_twins_begin(&twins, ctx);
    for (int i = 0; i < launch->buffers->count; i++) {
        moec_twins_add(&twins, &launch->buffers->item[i].guard, launch->buffers->item[i].output);
    }
    for (int i = 0; launch->also != NULL && i < launch->also->count; i++) {
        moec_twins_add(&twins, &launch->also->item[i].guard, false);
    }
    watch(run, launch);
    (void)sigaction(SIGSEGV, &now, &before[0]);
    (void)sigaction(SIGBUS, &now, &before[1]);
    moe_status status = moec_twins_up(&twins, red);
    if (status == MOE_OK) {
        status = run_each(ctx, &twins, launch, delay);
    }
    (void)sigaction(SIGSEGV, &before[0], NULL);
    (void)sigaction(SIGBUS, &before[1], NULL);
    if (status != MOE_OK) {
        (void)snprintf(wrong, sizeof wrong, "%s", moe_last_error());
    } else if (moec_twins_down(&twins, wrong, sizeof wrong)) {
        moec_twins_end(&twins);
        return;
    }
    moec_check(run, false, launch->kernel->name, "%s: %s: %s", launch->kernel->name, launch->text,
               wrong);
    moec_twins_end(&twins);
}

void moec_launch_on(moec_run *run, const moe_context *ctx, const moec_launch *launch)
{
    launch_once(run, ctx, launch, MOEC_POISON, 0);
}

const void *moec_args_for(const moec_launch *launch, const moei_kernel *kernel)
{
    return launch->canonical != NULL && kernel->layout == MOEI_LAYOUT_ROW ? launch->canonical
                                                                          : launch->args;
}

// The CPU's row for the case of another backend: of the same op and class, for weights as they lie.
// NULL: there is none.
static const moei_kernel *cpu_row(const moec_run *run, const moec_launch *launch)
{
    moei_whynot why;
    for (size_t i = 0; run->cpu != NULL && i < run->cpu->backend->num_kernels; i++) {
        const moei_kernel *kernel = &run->cpu->backend->kernels[i];
        if (kernel->op == launch->kernel->op && kernel->arith == launch->kernel->arith &&
            kernel->layout == MOEI_LAYOUT_ROW &&
            moei_registry_supports(kernel, run->cpu->isa, launch->problem, &why)) {
            return kernel;
        }
    }
    return NULL;
}

/// The first result of a case.
typedef struct first_result {
    bool set;
    uint64_t hash;
    unsigned char *shown; // bytes of launch->result
} first_result;

static size_t shown_bytes(const moec_launch *launch)
{
    const moe_tensor *t = &launch->result;
    return t->data == NULL
               ? 0
               : (size_t)(t->shape[0] * t->shape[1]) * (size_t)moe_dtype_bits(t->dtype) / 8;
}

// Compares the outputs with the first ones; keeps them where they are the first.
static void compare(moec_run *run, const moec_launch *launch, first_result *first, const char *what)
{
    const uint64_t hash = moec_buffers_hash(launch->buffers, true);
    const size_t bytes = shown_bytes(launch);
    const char *name = launch->kernel->name;
    if (!first->set) {
        *first = (first_result){true, hash, malloc(bytes + 1)};
        if (first->shown != NULL && bytes > 0) {
            memcpy(first->shown, launch->result.data, bytes);
        }
        return;
    }
    if (hash != first->hash && first->shown != NULL && bytes > 0 &&
        memcmp(first->shown, launch->result.data, bytes) != 0) {
        moec_check_same(run, launch->result.dtype, launch->result.shape[0], launch->result.shape[1],
                        launch->result.data, first->shown, name, "%s: %s: %s", name, launch->text,
                        what);
    } else {
        moec_check(run, hash == first->hash, name, "%s: %s: %s", name, launch->text, what);
    }
}

static void begin_outputs(const moec_launch *launch)
{
    moec_buffers_poison(launch->buffers);
    if (launch->reset != NULL) {
        launch->reset(launch->args);
    }
}

uint64_t moec_run_all(moec_run *run, const moec_teams *teams, const moec_launch *launch)
{
    static const unsigned char reds[] = {0xFF, 0x00, 0x7B, MOEC_POISON};
    const bool device = !run->ctx->backend->host_memory;
    const uint64_t inputs = moec_buffers_hash(launch->buffers, false);
    const moei_kernel *other = cpu_row(run, launch);
    char what[160];
    first_result first = {false, 0, NULL};
    run->cases++;
    if (other != NULL) {
        moec_launch by_cpu = *launch;
        by_cpu.kernel = other;
        by_cpu.args = moec_args_for(launch, other);
        begin_outputs(launch);
        moec_launch_on(run, run->cpu, &by_cpu);
        compare(run, launch, &first, "");
    }
    for (int i = 0; i < 4; i++) {
        const moe_context *ctx = teams->ctx[i == 0 ? 0 : i - 1]; // twice on one thread
        begin_outputs(launch);
        launch_once(run, ctx, launch, reds[i], 0);
        if (i == 0 && other != NULL) {
            (void)snprintf(what, sizeof what, "bits differ from %s", other->name);
        } else if (device) {
            (void)snprintf(what, sizeof what, "two runs differ (run %d)", i + 1);
        } else {
            (void)snprintf(what, sizeof what, "two runs differ (run %d, with %d threads)", i + 1,
                           moe_context_num_threads(ctx));
        }
        compare(run, launch, &first, what);
    }
    for (int32_t i = 0; i < run->options->delay_runs; i++) {
        begin_outputs(launch);
        launch_once(run, run->ctx, launch, reds[i % 4], moec_delay(run->options, i));
        (void)snprintf(what, sizeof what, "delays in the kernel change the bits (run %d)", (int)i);
        compare(run, launch, &first, what);
    }
    moec_check(run, moec_buffers_hash(launch->buffers, false) == inputs, launch->kernel->name,
               "%s: %s: an input was written", launch->kernel->name, launch->text);
    free(first.shown);
    return first.hash;
}

void moec_rows_agree(moec_run *run, const moei_kernel *kernel, int number, uint64_t hash,
                     const char *text)
{
    moec_seen *seen = moec_seen_at(run, kernel, number);
    if (seen != NULL && seen->kernel != NULL && seen->hash != hash) {
        char both[128];
        const char *isa = run->isa;
        moec_pair_glob(seen->kernel->name, kernel->name, both, sizeof both);
        run->isa = NULL;
        moec_check(run, false, both, "%s: %s: bits differ from %s", kernel->name, text,
                   seen->kernel->name);
        run->isa = isa;
    } else if (seen != NULL) {
        moec_seen_keep(run, kernel, number, hash, text);
    }
}

bool moec_same_i32(const char *name, const int32_t *have, const int32_t *want, int64_t n,
                   char *where, size_t size)
{
    for (int64_t i = 0; i < n; i++) {
        if (have[i] != want[i]) {
            (void)snprintf(where, size, "%s[%lld] = %d, expected %d", name, (long long)i,
                           (int)have[i], (int)want[i]);
            return false;
        }
    }
    return true;
}
