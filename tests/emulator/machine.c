// SPDX-License-Identifier: Apache-2.0
// Runs a kernel: workgroups, their waves and barriers, and the memory that they may touch.
//
// The waves of a workgroup run one after the other, each until it waits at a barrier, sleeps or
// ends, in an order that MOE_EMULATOR_ORDER chooses. A workgroup runs to its end before the next
// begins, unless all of its waves sleep or a wave has run for long: then others go on, so that a
// kernel may wait for other workgroups. What would hang is an error, by deadlock or by the number
// of steps.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator/wave.h"

enum {
    SLICE = 1 << 20, // instructions of a wave before others go on
    RESIDENT = 64,   // workgroups that have begun and not ended
    POISON_LDS = 0xA5
};

static const uint32_t poison_vector = 0x7FC0DEADu; // a NaN
static const uint32_t poison_scalar = 0xDEADBEEFu;

// ---- errors
void emu_fail(emu_wave *w, int lane, const char *format, ...)
{
    emu_launch *l = w->group->launch;
    if (w->stop == EMU_FAILED) {
        return; // the first one counts
    }
    w->stop = EMU_FAILED;
    char what[256];
    char where[32] = "";
    va_list args;
    va_start(args, format);
    (void)vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (lane >= 0) {
        (void)snprintf(where, sizeof where, ", lane %d", lane);
    }
    const uint32_t *at = w->group->at;
    (void)snprintf(l->error, l->error_bytes,
                   "kernel %s, block (%u, %u, %u), wave %u%s, at 0x%x `%.120s`: %s",
                   l->kernel->name, at[0], at[1], at[2], w->id, where,
                   w->now != NULL ? w->now->address : 0, w->now != NULL ? w->now->text : "", what);
}

// ---- memory
void *emu_memory(emu_wave *w, int lane, uint64_t address, uint32_t bytes, bool write)
{
    const emu_launch *l = w->group->launch;
    size_t low = 0;
    size_t high = l->num_ranges; // the last range that begins at or before the address
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (l->ranges[middle].begin <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const emu_range *r = low > 0 ? &l->ranges[low - 1] : NULL;
    const char *verb = write ? "written" : "read";
    if (r != NULL && address < r->end) {
        if (address + bytes > r->end) {
            emu_fail(w, lane, "%u bytes %s at 0x%llx, %llu before the end of %s of %llu", bytes,
                     verb, (unsigned long long)address, (unsigned long long)(r->end - address),
                     r->what, (unsigned long long)(r->end - r->begin));
            return NULL;
        }
        if (write && r->read_only) {
            emu_fail(w, lane, "%u bytes written at 0x%llx, %s", bytes, (unsigned long long)address,
                     r->what);
            return NULL;
        }
        w->last_range = low - 1;
        return (void *)(uintptr_t)address;
    }
    char beside[96] = "";
    if (r != NULL) {
        (void)snprintf(beside, sizeof beside, ", %llu bytes behind the end of %s of %llu",
                       (unsigned long long)(address - r->end), r->what,
                       (unsigned long long)(r->end - r->begin));
    }
    emu_fail(w, lane, "%u bytes %s at 0x%llx, outside of all memory%s", bytes, verb,
             (unsigned long long)address, beside);
    return NULL;
}

/// What another wave did to four bytes since the last barrier, where it matters. NULL: nothing.
static const char *race(const emu_tag *t, uint32_t epoch, uint8_t me, uint8_t mask, bool write)
{
    if (t->write_epoch == epoch && t->writer != me && t->writer != EMU_BYTES && (t->fresh & mask)) {
        return "wrote";
    }
    if (write && t->read_epoch == epoch && t->reader != me && t->reader != EMU_BYTES &&
        (t->seen & mask)) {
        return "read";
    }
    return NULL;
}

/// Adds an access to who accessed which bytes in an epoch.
static void note(uint8_t *who, uint8_t *bytes, uint32_t *when, uint32_t epoch, uint8_t me,
                 uint8_t mask)
{
    const bool again = *when == epoch;
    // Whose each of several waves' bytes are is not kept: these do not race.
    const bool apart = *who == EMU_BYTES || (*who != EMU_MANY && (*bytes & mask) == 0);
    const uint8_t several = apart ? EMU_BYTES : EMU_MANY;
    *who = again && *who != me ? several : me;
    *bytes = (uint8_t)(again ? *bytes | mask : mask);
    *when = epoch;
}

void *emu_lds(emu_wave *w, int lane, uint32_t address, uint32_t bytes, emu_access access,
              const void *data)
{
    emu_group *g = w->group;
    const emu_launch *l = g->launch;
    if (address + (uint64_t)bytes > g->lds_bytes) {
        emu_fail(w, lane, "%u bytes at %u of LDS, which has %u", bytes, address, g->lds_bytes);
        return NULL;
    }
    const uint8_t me = (uint8_t)(w->id + 1);
    for (uint32_t at = address; at < address + bytes;) {
        const uint32_t next = (at | 3u) + 1 < address + bytes ? (at | 3u) + 1 : address + bytes;
        emu_tag *t = &g->tags[at / 4];
        const uint8_t mask = (uint8_t)(((1u << (next - at)) - 1) << (at % 4));
        if (access == EMU_READ && l->lds_unwritten && (t->written & mask) != mask) {
            emu_fail(w, lane, "reads %u bytes at %u of LDS, which nobody wrote", bytes, address);
            return NULL;
        }
        if (l->lds_races) {
            const char *other = race(t, g->epoch, me, mask, access != EMU_READ);
            // Two waves that write the same do no harm. Atomic accesses are among themselves; one
            // of them beside a plain access is what a barrier has to part.
            if (other != NULL &&
                ((data != NULL &&
                  memcmp(g->lds + at, (const uint8_t *)data + (at - address), next - at) == 0) ||
                 (access == EMU_ATOMIC && t->atomic == g->epoch))) {
                other = NULL;
            }
            if (other != NULL) {
                const unsigned who = other[0] == 'r' ? t->reader : t->writer;
                char wave[24] = "another wave";
                if (who < EMU_BYTES) {
                    (void)snprintf(wave, sizeof wave, "wave %u", who - 1);
                }
                emu_fail(w, lane, "%s %u bytes at %u of LDS, which %s %s since the last barrier",
                         access == EMU_READ ? "reads" : "writes", bytes, address, wave, other);
                return NULL;
            }
            if (access == EMU_READ) {
                note(&t->reader, &t->seen, &t->read_epoch, g->epoch, me, mask);
            } else {
                note(&t->writer, &t->fresh, &t->write_epoch, g->epoch, me, mask);
                if (access == EMU_ATOMIC) {
                    t->atomic = g->epoch;
                }
            }
        }
        t->written |= access == EMU_READ ? 0 : mask;
        at = next;
    }
    return g->lds + address;
}

// ---- workgroups
static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void choose_order(emu_group *g)
{
    const uint64_t order = g->launch->order;
    for (unsigned i = 0; i < g->num_waves; i++) {
        g->order[i] = order == 1 ? g->num_waves - 1 - i : i;
    }
    if (order > 1) {
        for (unsigned i = g->num_waves - 1; i > 0; i--) {
            const unsigned j = (unsigned)(next_random(&g->random) % (i + 1));
            const unsigned t = g->order[i];
            g->order[i] = g->order[j];
            g->order[j] = t;
        }
    }
}

enum { // kernel code properties, in their order in scalar registers
    HAS_PRIVATE_BUFFER = 1,
    HAS_DISPATCH_PTR = 2,
    HAS_QUEUE_PTR = 4,
    HAS_KERNARG = 8,
    HAS_DISPATCH_ID = 16,
    HAS_FLAT_SCRATCH = 32,
    HAS_PRIVATE_SIZE = 64
};

static void start_wave(emu_wave *w, const void *kernarg, const void *packet)
{
    const emu_launch *l = w->group->launch;
    const emu_kernel *k = l->kernel;
    for (int r = 0; r < EMU_VGPRS; r++) {
        EMU_EACH(lane)
        {
            w->v[r][lane] = poison_vector;
        }
    }
    for (int r = 0; r < EMU_SGPRS; r++) {
        w->s[r] = poison_scalar;
    }
    unsigned at = 0;
    at += k->properties & HAS_PRIVATE_BUFFER ? 4 : 0;
    if (k->properties & HAS_DISPATCH_PTR) {
        emu_set_s64(w, at, (uint64_t)(uintptr_t)packet);
        at += 2;
    }
    at += k->properties & HAS_QUEUE_PTR ? 2 : 0;
    if (k->properties & HAS_KERNARG) {
        emu_set_s64(w, at, (uint64_t)(uintptr_t)kernarg);
    }
    at = k->rsrc2 >> 1 & 31u; // workgroup ids follow the user's registers
    for (unsigned axis = 0; axis < 3; axis++) {
        if (k->rsrc2 >> (7 + axis) & 1u) {
            w->s[at++] = w->group->at[axis];
        }
    }
    const uint32_t threads = l->block[0] * l->block[1] * l->block[2];
    const uint32_t first = w->id * EMU_LANES;
    const uint32_t lanes = threads - first < EMU_LANES ? threads - first : EMU_LANES;
    emu_set_s64(w, EMU_EXEC, lanes == EMU_LANES ? ~(uint64_t)0 : ((uint64_t)1 << lanes) - 1);
    EMU_EACH(lane)
    {
        const uint32_t t = first + (uint32_t)lane;
        w->v[0][lane] = t % l->block[0] | (t / l->block[0] % l->block[1]) << 10 |
                        (t / l->block[0] / l->block[1]) << 20;
    }
    w->mask_exec = 0;
    memset(w->mask, 0, sizeof w->mask);
    w->scc = poison_scalar & 1u;
    w->index_mode = 0;
    // round 0 .. 3, subnormals 4 .. 7, DX10_CLAMP 8, IEEE 9, FP16_OVFL 23
    w->mode = (k->rsrc1 >> 12 & 0xFFu) | (k->rsrc1 >> 21 & 1u) << 8 | (k->rsrc1 >> 23 & 1u) << 9 |
              (k->rsrc1 >> 26 & 1u) << 23;
    if (emu_has_fault(w, EMU_FAULT_FLUSH)) {
        w->mode &= ~(uint32_t)(EMU_MODE_KEEP32_IN | EMU_MODE_KEEP32_OUT);
    }
    w->code = k->code->inst;
    w->pc = k->code->index[(k->entry - k->code->first) / 4];
    w->stop = EMU_RUNS;
    w->last_range = 0;
    w->now = NULL;
}

static void free_group(emu_group *g)
{
    if (g != NULL) {
        free(g->waves);
        free(g->scratch);
        free(g->lds);
        free(g->tags);
        free(g);
    }
}

static emu_group *new_group(emu_launch *l, unsigned dynamic_lds)
{
    const size_t threads = (size_t)l->block[0] * l->block[1] * l->block[2];
    emu_group *g = calloc(1, sizeof *g);
    if (g == NULL) {
        return NULL;
    }
    g->launch = l;
    g->num_waves = (unsigned)((threads + EMU_LANES - 1) / EMU_LANES);
    g->lds_bytes = l->kernel->lds_bytes + dynamic_lds;
    g->waves = aligned_alloc(64, (g->num_waves * sizeof *g->waves + 63) / 64 * 64);
    g->lds = malloc(g->lds_bytes + 16);
    g->tags = malloc((g->lds_bytes / 4 + 2) * sizeof *g->tags);
    g->scratch = malloc((size_t)g->num_waves * EMU_LANES * l->kernel->private_bytes + 16);
    if (g->waves == NULL || g->lds == NULL || g->tags == NULL || g->scratch == NULL) {
        free_group(g);
        return NULL;
    }
    return g;
}

static void start_group(emu_group *g, uint64_t index, const void *kernarg, const void *packet)
{
    const emu_launch *l = g->launch;
    g->at[0] = (uint32_t)(index % l->grid[0]);
    g->at[1] = (uint32_t)(index / l->grid[0] % l->grid[1]);
    g->at[2] = (uint32_t)(index / l->grid[0] / l->grid[1]);
    g->epoch = 1;
    g->random = l->order * 0x9E3779B97F4A7C15u + index;
    memset(g->lds, POISON_LDS, g->lds_bytes);
    memset(g->tags, 0, (g->lds_bytes / 4 + 2) * sizeof *g->tags);
    memset(g->scratch, POISON_LDS, (size_t)g->num_waves * EMU_LANES * l->kernel->private_bytes);
    for (unsigned i = 0; i < g->num_waves; i++) {
        emu_wave *w = &g->waves[i];
        w->group = g;
        w->id = i;
        w->scratch = g->scratch + (size_t)i * EMU_LANES * l->kernel->private_bytes;
        start_wave(w, kernarg, packet);
    }
    choose_order(g);
}

/// Until the wave stops, or for a slice.
static void run_wave(emu_wave *w)
{
    const emu_inst *code = w->code;
    uint64_t *runs = w->group->launch->runs;
    uint64_t n = 0;
    w->stop = EMU_RUNS;
    while (w->stop == EMU_RUNS && n < SLICE) {
        const emu_inst *in = &code[w->pc++];
        w->now = in;
        if (runs != NULL) {
            runs[w->pc - 1]++;
        }
        in->run(w, in);
        n++;
    }
    emu_launch *l = w->group->launch;
    l->steps += n;
    if (w->stop == EMU_RUNS) {
        w->stop = EMU_YIELDS;
    }
    if (l->steps > l->max_steps && w->stop != EMU_FAILED) {
        emu_fail(w, -1, "still running after %llu instructions of all waves",
                 (unsigned long long)l->steps);
    }
}

typedef enum group_state { GROUP_ENDED, GROUP_YIELDS, GROUP_FAILED } group_state;

/// Until the workgroup ends, fails, or does nothing but sleep.
static group_state run_group(emu_group *g)
{
    for (;;) {
        unsigned ended = 0;
        unsigned waiting = 0;
        for (unsigned i = 0; i < g->num_waves; i++) {
            emu_wave *w = &g->waves[g->order[i]];
            if (w->stop == EMU_RUNS || w->stop == EMU_YIELDS) {
                run_wave(w);
            }
            if (w->stop == EMU_FAILED) {
                return GROUP_FAILED;
            }
            ended += w->stop == EMU_ENDED;
            waiting += w->stop == EMU_AT_BARRIER;
        }
        if (ended == g->num_waves) {
            return GROUP_ENDED;
        }
        if (ended + waiting < g->num_waves) {
            return GROUP_YIELDS;
        }
        // The hardware lets the barrier go when all waves that have not ended are there.
        for (unsigned i = 0; i < g->num_waves; i++) {
            emu_wave *w = &g->waves[i];
            if (w->stop == EMU_AT_BARRIER) {
                if (ended > 0 && g->launch->strict_barriers) {
                    emu_fail(w, -1, "waits at a barrier that %u of %u waves ended without", ended,
                             g->num_waves);
                    return GROUP_FAILED;
                }
                w->stop = EMU_RUNS;
            }
        }
        g->epoch++;
        choose_order(g);
    }
}

static bool refuse(emu_launch *l, const char *format, unsigned a, unsigned b)
{
    char what[160];
    (void)snprintf(what, sizeof what, format, a, b);
    (void)snprintf(l->error, l->error_bytes, "kernel %s: %s", l->kernel->name, what);
    return false;
}

static bool acceptable(emu_launch *l, unsigned dynamic_lds)
{
    const emu_kernel *k = l->kernel;
    const unsigned limit = l->arch == EMU_GFX942 ? 65536 : 163840;
    const uint64_t threads = (uint64_t)l->block[0] * l->block[1] * l->block[2];
    if (k->unknown != NULL) {
        (void)snprintf(l->error, l->error_bytes,
                       "kernel %s: the emulator does not know `%.120s` at 0x%x", k->name,
                       k->unknown->text, k->unknown->address);
        return false;
    }
    if (threads == 0 || threads > EMU_MAX_WAVES * EMU_LANES || l->grid[0] == 0 || l->grid[1] == 0 ||
        l->grid[2] == 0) {
        return refuse(l, "%u threads in a block of a grid of %u", (unsigned)threads, l->grid[0]);
    }
    if ((uint64_t)k->lds_bytes + dynamic_lds > limit) {
        return refuse(l, "%u bytes of LDS; a workgroup has %u", k->lds_bytes + dynamic_lds, limit);
    }
    if (k->rsrc1 >> 12 & 15u) {
        return refuse(l, "rounding mode %u is not modelled%.0u", k->rsrc1 >> 12 & 15u, 0);
    }
    if (k->preload & 127u) {
        return refuse(l, "%u preloaded arguments are not modelled%.0u", k->preload & 127u, 0);
    }
    if (k->entry < k->code->first || k->entry - k->code->first >= k->code->bytes ||
        k->code->index[(k->entry - k->code->first) / 4] == UINT32_MAX) {
        return refuse(l, "no instruction at its entry 0x%x of %u bytes", k->entry, k->code->bytes);
    }
    return true;
}

bool emu_run(emu_launch *l, unsigned dynamic_lds, const void *kernarg, const void *packet)
{
    if (!acceptable(l, dynamic_lds)) {
        return false;
    }
    emu_group *resident[RESIDENT];
    unsigned num = 0;
    emu_group *spare = NULL;
    bool ok = true;
    const uint64_t all = (uint64_t)l->grid[0] * l->grid[1] * l->grid[2];
    uint64_t begun = 0;
    unsigned turn = 0;
    while (ok && (num > 0 || begun < all)) {
        // A further workgroup begins when there is none, or when all that there are sleep.
        if (turn >= num) {
            turn = 0;
            if (begun < all && num < RESIDENT) {
                emu_group *g = spare != NULL ? spare : new_group(l, dynamic_lds);
                spare = NULL;
                if (g == NULL) {
                    (void)snprintf(l->error, l->error_bytes, "out of memory");
                    ok = false;
                    break;
                }
                const bool backwards = l->order == 1;
                start_group(g, backwards ? all - 1 - begun : begun, kernarg, packet);
                begun++;
                turn = num;
                resident[num++] = g;
            }
        }
        const group_state state = run_group(resident[turn]);
        if (state == GROUP_ENDED) {
            if (spare == NULL) {
                spare = resident[turn];
            } else {
                free_group(resident[turn]);
            }
            resident[turn] = resident[--num];
        } else if (state == GROUP_YIELDS) {
            turn++;
        } else {
            ok = false;
        }
    }
    for (unsigned i = 0; i < num; i++) {
        free_group(resident[i]);
    }
    free_group(spare);
    return ok;
}
