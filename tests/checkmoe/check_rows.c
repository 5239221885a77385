// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "checkmoe/check_rows.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "ops/backend.h"

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
        moe_context_desc desc = moe_context_desc_default();
        desc.device = run->options->device;
        desc.num_threads = sizes[i];
        if (moe_context_create(&desc, &teams->ctx[i]) != MOE_OK) {
            moec_teams_free(teams);
            return false;
        }
    }
    return true;
}

void moec_teams_free(moec_teams *teams)
{
    for (int i = 0; i < 3; i++) {
        moe_context_destroy(teams->ctx[i]);
        teams->ctx[i] = NULL;
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

void moec_launch_on(moec_run *run, const moe_context *ctx, const moec_launch *launch)
{
    char repeat[320];
    struct sigaction now = {.sa_handler = on_fault, .sa_flags = (int)SA_RESETHAND};
    struct sigaction before[2];
    const moei_exec exec = moei_exec_make(ctx, NULL);
    moec_repro(run, launch->kernel->name, repeat, sizeof repeat);
    const int length = snprintf(fault.text, sizeof fault.text,
                                "FAILED: %s: %s: memory beyond a buffer was touched\n"
                                "  repeat with  %s\n",
                                launch->kernel->name, launch->text, repeat);
    fault.length = length < (int)sizeof fault.text ? (size_t)length : sizeof fault.text - 1;
    fault.file = fileno(run->out);
    (void)sigaction(SIGSEGV, &now, &before[0]);
    (void)sigaction(SIGBUS, &now, &before[1]);
    launch->go(&exec, launch->kernel, launch->args);
    (void)sigaction(SIGSEGV, &before[0], NULL);
    (void)sigaction(SIGBUS, &before[1], NULL);
}

uint64_t moec_run_all(moec_run *run, const moec_teams *teams, const moec_launch *launch)
{
    const uint64_t inputs = moec_buffers_hash(launch->buffers, false);
    uint64_t first = 0;
    for (int i = 0; i < 4; i++) { // twice on one thread, then 2 and 7
        const moe_context *ctx = teams->ctx[i == 0 ? 0 : i - 1];
        moec_buffers_poison(launch->buffers);
        if (launch->reset != NULL) {
            launch->reset(launch->args);
        }
        moec_launch_on(run, ctx, launch);
        const uint64_t hash = moec_buffers_hash(launch->buffers, true);
        first = i == 0 ? hash : first;
        moec_check(run, hash == first, launch->kernel->name,
                   "%s: %s: run %d, with %d threads, gives other bytes than the first with 1",
                   launch->kernel->name, launch->text, i + 1, moe_context_num_threads(ctx));
    }
    moec_check(run, moec_buffers_hash(launch->buffers, false) == inputs, launch->kernel->name,
               "%s: %s: an input was written", launch->kernel->name, launch->text);
    return first;
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
        *seen = (moec_seen){kernel, hash};
        run->counts->passed++;
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
