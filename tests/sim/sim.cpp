// SPDX-License-Identifier: Apache-2.0
#include "sim/sim.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backends/gpu/dev_sim.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif
#ifdef SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---- fibers ------------------------------------------------------------------------------------

extern "C" {
/// Keeps the registers that a call preserves on the stack and its pointer in *from, and goes on
/// where `to` was kept.
__attribute__((visibility("hidden"))) void moei_sim_switch(void **from, void *to);
__attribute__((visibility("hidden"))) void moei_sim_enter(void);
}

#if defined(__x86_64__)
asm(".text\n"
    ".globl moei_sim_switch\n"
    ".hidden moei_sim_switch\n"
    ".type moei_sim_switch, @function\n"
    "moei_sim_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size moei_sim_switch, . - moei_sim_switch\n");

// The stack of a fiber that has not run: six registers, where to begin, no caller.
static void *first_frame(unsigned char *top)
{
    void **sp = (void **)(void *)top - 8;
    memset(sp, 0, 8 * sizeof *sp);
    sp[6] = (void *)moei_sim_enter;
    return sp;
}
#elif defined(__aarch64__)
asm(".text\n"
    ".globl moei_sim_switch\n"
    ".hidden moei_sim_switch\n"
    ".type moei_sim_switch, %function\n"
    "moei_sim_switch:\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp, #0]\n"
    "    stp x21, x22, [sp, #16]\n"
    "    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n"
    "    stp x27, x28, [sp, #64]\n"
    "    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n"
    "    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n"
    "    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n"
    "    str x9, [x0]\n"
    "    mov sp, x1\n"
    "    ldp x19, x20, [sp, #0]\n"
    "    ldp x21, x22, [sp, #16]\n"
    "    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n"
    "    ldp x27, x28, [sp, #64]\n"
    "    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n"
    "    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n"
    "    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n"
    "    ret\n"
    ".size moei_sim_switch, . - moei_sim_switch\n");

static void *first_frame(unsigned char *top)
{
    void **sp = (void **)(void *)top - 20;
    memset(sp, 0, 20 * sizeof *sp);
    sp[11] = (void *)moei_sim_enter; // x30
    return sp;
}
#else
#error "tests/sim: no switch between fibers for this machine"
#endif

namespace
{

enum : uint32_t { WARP = 32, MAX_THREADS = 1024, STACK = 64 << 10, GUARD = 4 << 10 };
enum : uint32_t { MAX_SHARED = 227 << 10 };             // of a block on sm_90
enum : uint32_t { MAX_CLUSTER = MOEI_SIM_MAX_CLUSTER }; // blocks that run side by side

struct fiber {
    void *sp;
    const char *at; // the call in which it waits; NULL: it has ended
    fiber *next;    // runs when this one waits; NULL: the scheduler
    void *fake;     // ASan's
    uint32_t exchanges;
    bool in_wave; // it waits for a wave
};

struct machine {
    unsigned char *stacks;
    uint32_t made;                           // stacks of so many blocks are there
    fiber fibers[MAX_CLUSTER * MAX_THREADS]; // MAX_THREADS for each block that runs
    void *shared[MAX_CLUSTER];               // of each
    uint32_t running;                        // blocks side by side
    bool met;                                // all of them have met: all have begun
    fiber *now;                              // NULL: the scheduler runs
    void *sp, *fake;                         // of the scheduler
    const void *bottom;
    size_t bottom_size;
    uint32_t slots[2][MAX_CLUSTER * MAX_THREADS];              // what lanes exchange, in turns
    uint32_t given[MAX_CLUSTER * MAX_THREADS][MOEI_SIM_GIVEN]; // to matrix instructions
    uint32_t taken[MAX_CLUSTER * MAX_THREADS][MOEI_SIM_TAKEN];
    uint32_t arrived[MAX_CLUSTER * MAX_THREADS / MOEI_SIM_WAVE]; // lanes of each wave
    uint32_t lanes[WARP], warps[MAX_THREADS / WARP];
    const moei_sim_body *body;
    const void *args;
    uint64_t random;
    bool failed;
    char text[200];
};

machine m = {};
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

unsigned char *stack_of(const fiber *f)
{
    return m.stacks + (size_t)(f - m.fibers) * (STACK + GUARD) + GUARD;
}

uint32_t thread_of(const fiber *f)
{
    return (uint32_t)(f - m.fibers) % MAX_THREADS;
}

// From the fiber in hand (or the scheduler) to another. `ended`: nothing comes back.
void go_to(fiber *to, bool ended)
{
    fiber *from = m.now;
    void **keep = from != NULL ? &from->sp : &m.sp;
    m.now = to;
#ifdef SIM_ASAN
    void **fake = ended ? NULL : from != NULL ? &from->fake : &m.fake;
    __sanitizer_start_switch_fiber(fake, to != NULL ? stack_of(to) : m.bottom,
                                   to != NULL ? (size_t)STACK : m.bottom_size);
#endif
    (void)ended;
    moei_sim_switch(keep, to != NULL ? to->sp : m.sp);
#ifdef SIM_ASAN
    __sanitizer_finish_switch_fiber(from != NULL ? from->fake : m.fake, NULL, NULL);
#endif
    if (from != NULL) {
        moei_sim_here.thread = thread_of(from);
    }
}

void wait_in(const char *call)
{
    m.now->at = call;
    go_to(m.now->next, false);
}

// ---- the scheduler -----------------------------------------------------------------------------

uint32_t below(uint32_t n)
{
    uint64_t z = (m.random += 0x9E3779B97F4A7C15u); // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) % n);
}

void arrange(uint32_t *order, uint32_t n, unsigned long seed)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = seed > 1 ? below(i + 1) : i;
        order[i] = order[at];
        order[at] = seed == 1 ? n - 1 - i : i;
    }
}

void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
void complain(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    (void)vsnprintf(m.text, sizeof m.text, format, list);
    va_end(list);
    m.failed = true;
}

const char *state_text(const fiber *f)
{
    return f->at != NULL ? f->at : "its end";
}

bool same_state(const fiber *a, const fiber *b)
{
    if (a->at == b->at || (a->at != NULL && b->at != NULL && strcmp(a->at, b->at) == 0)) {
        return true;
    }
    complain("thread %d is in %s, thread %d in %s", (int)thread_of(a), state_text(a),
             (int)thread_of(b), state_text(b));
    return false;
}

const char *const in_sync = "dev_sync";
const char *const in_cluster = "dev_sync_cluster";

// Lets a warp run until it waits for its wave, the block or the cluster, or to its end.
bool run_warp(fiber *lane)
{
    do {
        go_to(&lane[m.lanes[0]], false);
        for (uint32_t i = 1; i < WARP && !m.failed; i++) {
            (void)same_state(lane, lane + i);
        }
    } while (!m.failed && lane->at != NULL && lane->at != in_sync && lane->at != in_cluster &&
             !lane->in_wave);
    return !m.failed;
}

// Lets a warp that waits for its wave run on, with the other half, until neither does.
bool run_wave(fiber *thread, uint32_t warp)
{
    fiber *lane = &thread[warp * WARP];
    fiber *other = &thread[(warp ^ 1) * WARP];
    while (lane->in_wave) {
        if ((warp ^ 1) * WARP >= moei_sim_here.threads) {
            complain("thread %d is in %s, its wave has %d lanes", (int)thread_of(lane), lane->at,
                     (int)WARP);
            return false;
        }
        if (!same_state(lane, other) || !run_warp(lane) || !run_warp(other)) {
            return false;
        }
    }
    return true;
}

void begin_block(fiber *thread, uint32_t shared_bytes)
{
    memset(m.shared[(thread - m.fibers) / MAX_THREADS], 0xA5, shared_bytes);
    for (uint32_t i = 0; i < moei_sim_here.threads; i++) {
        const uint32_t place = i % WARP;
        fiber *f = &thread[i - place + m.lanes[place]];
        f->sp = first_frame(stack_of(f) + STACK);
        f->next = place + 1 < WARP ? &thread[i - place + m.lanes[place + 1]] : NULL;
        f->exchanges = 0;
        f->in_wave = false;
        f->at = in_cluster; // not ended
        m.arrived[(size_t)(f - m.fibers) / MOEI_SIM_WAVE] = 0;
    }
}

// Lets a block run until it waits for the cluster, or to its end.
bool run_block(fiber *thread)
{
    const uint32_t warps = moei_sim_here.threads / WARP;
    do {
        for (uint32_t w = 0; w < warps; w++) {
            if (!run_warp(&thread[m.warps[w] * WARP])) {
                return false;
            }
        }
        for (uint32_t w = 0; w < warps; w++) {
            if (!run_wave(thread, m.warps[w])) {
                return false;
            }
        }
        for (uint32_t w = 1; w < warps; w++) {
            if (!same_state(thread, &thread[w * WARP])) {
                return false;
            }
        }
    } while (thread->at == in_sync);
    return true;
}

// Runs blocks side by side, where one waits for the others.
bool run_cluster(const uint32_t *blocks, uint32_t shared_bytes)
{
    m.met = false;
    for (uint32_t b = 0; b < m.running; b++) {
        begin_block(&m.fibers[b * MAX_THREADS], shared_bytes);
    }
    do {
        for (uint32_t i = 0; i < m.running; i++) {
            const uint32_t b = m.running > 1 ? blocks[i] : 0;
            moei_sim_here.block = blocks[i];
            moei_sim_here.shared = m.shared[b];
            if (!run_block(&m.fibers[b * MAX_THREADS])) {
                return false;
            }
        }
        for (uint32_t b = 1; b < m.running; b++) {
            if (!same_state(&m.fibers[0], &m.fibers[b * MAX_THREADS])) {
                return false;
            }
        }
        m.met = true;
    } while (m.fibers[0].at != NULL);
    return true;
}

bool make_stacks(uint32_t blocks)
{
    const size_t bytes = (size_t)MAX_CLUSTER * MAX_THREADS * (STACK + GUARD);
    if (m.stacks == NULL) {
        void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            return false;
        }
        m.stacks = (unsigned char *)p;
    }
    for (; m.made < blocks; m.made++) {
        for (uint32_t i = 0; i < MAX_THREADS; i++) {
            if (mprotect(stack_of(&m.fibers[m.made * MAX_THREADS + i]), STACK,
                         PROT_READ | PROT_WRITE) != 0) {
                return false;
            }
        }
    }
    return true;
}

// Each of its exact size: ASan sees what lies beyond.
bool make_shared(uint32_t bytes)
{
    bool good = true;
    for (uint32_t b = 0; b < m.running; b++) {
        m.shared[b] = malloc(bytes);
        good = good && (m.shared[b] != NULL || bytes == 0);
    }
    return good;
}

void run_grid(const moei_sim_body *body, moei_gpu_grid grid, const void *args, uint32_t delay)
{
    const char *text = getenv("MOE_SIM_ORDER");
    const char *arch = getenv("MOE_SIM_ARCH");
    const unsigned long seed = delay > 0 ? 2 : text != NULL ? strtoul(text, NULL, 10) : 0;
    // Copies of their exact size: ASan sees what lies beyond.
    uint32_t *order = (uint32_t *)malloc(grid.blocks * sizeof *order);
    void *copy = malloc(body->args_bytes);
    m.running = grid.cluster ? grid.blocks : 1;
    if (!make_shared(grid.shared) || order == NULL || copy == NULL || !make_stacks(m.running)) {
        complain("memory is short");
    } else {
        memcpy(copy, args, body->args_bytes);
        m.random = delay > 0 ? delay : m.random + seed;
        arrange(m.lanes, WARP, seed);
        arrange(m.warps, grid.threads / WARP, seed);
        arrange(order, grid.blocks, seed);
        m.body = body;
        m.args = copy;
        moei_sim_here.threads = grid.threads;
        moei_sim_here.blocks = grid.blocks;
        moei_sim_here.cdna4 = arch != NULL && strcmp(arch, "gfx950") == 0;
        for (uint32_t b = 0; b < grid.blocks && !m.failed; b += m.running) {
            (void)run_cluster(order + b, grid.shared);
        }
    }
#ifdef SIM_ASAN
    if (m.failed && m.stacks != NULL) { // frames that never return
        for (uint32_t i = 0; i < m.made * MAX_THREADS; i++) {
            __asan_unpoison_memory_region(stack_of(&m.fibers[i]), STACK);
        }
    }
#endif
    for (void *&shared : m.shared) {
        free(shared);
        shared = NULL;
    }
    free(copy);
    free(order);
}

} // namespace

// ---- what device functions stand on ------------------------------------------------------------

extern "C" {

struct moei_sim_place moei_sim_here = {};

// A fiber's own beginning. Its frame never returns, so it must leave nothing poisoned.
__attribute__((no_sanitize_address)) void moei_sim_enter(void)
{
    fiber *self = m.now;
#ifdef SIM_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &size);
    if (self == &m.fibers[(size_t)(self - m.fibers) / WARP * WARP + m.lanes[0]]) {
        m.bottom = bottom;
        m.bottom_size = size;
    }
#endif
    moei_sim_here.thread = thread_of(self);
    m.body->run(m.args);
    self->at = NULL;
    go_to(self->next, true);
}

const uint32_t *moei_sim_exchange(const char *call, uint32_t v)
{
    const size_t self = (size_t)(m.now - m.fibers);
    // In turns: a lane that goes on may write again before the last has read.
    uint32_t *slots = m.slots[m.now->exchanges++ % 2];
    slots[self] = v;
    wait_in(call);
    return slots + self / WARP * WARP;
}

const uint32_t *moei_sim_wave(const char *call, moei_sim_wave_fn *compute, const uint32_t *given,
                              uint32_t words)
{
    const size_t self = (size_t)(m.now - m.fibers);
    const size_t wave = self / MOEI_SIM_WAVE;
    // What the last one computes stays until all have come here again. Where they are in different
    // calls, nobody goes on.
    memcpy(m.given[self], given, words * sizeof *given);
    if (++m.arrived[wave] == MOEI_SIM_WAVE) {
        m.arrived[wave] = 0;
        compute(&m.given[wave * MOEI_SIM_WAVE], &m.taken[wave * MOEI_SIM_WAVE]);
    }
    m.now->in_wave = true;
    wait_in(call);
    m.now->in_wave = false;
    return m.taken[self];
}

void moei_sim_sync(void)
{
    wait_in(in_sync);
}

void moei_sim_sync_cluster(void)
{
    if (moei_sim_here.blocks > 1 && m.running == 1) {
        moei_sim_fail("dev_sync_cluster without a cluster", "block", moei_sim_here.block);
    }
    wait_in(in_cluster);
}

void *moei_sim_shared_of(uint32_t block)
{
    if (block >= m.running) {
        moei_sim_fail("dev_get_i32", "block", block);
    }
    if (!m.met || m.fibers[block * MAX_THREADS].at == NULL) {
        moei_sim_fail("dev_get_i32 before its beginning or after its end", "block", block);
    }
    return m.shared[block];
}

void moei_sim_fail(const char *call, const char *what, int64_t value)
{
    complain("thread %d: %s: %s %lld is out of range", (int)moei_sim_here.thread, call, what,
             (long long)value);
    go_to(NULL, true);
    abort(); // the scheduler does not come back
}

bool moei_sim_launch(const moei_sim_body *body, moei_gpu_grid grid, const void *args,
                     uint32_t delay, char *text, size_t size)
{
    (void)pthread_mutex_lock(&lock);
    char block[32] = "";
    m.failed = false;
    if (body->run == NULL) {
        complain("there is no such body");
    } else if (grid.blocks > INT32_MAX || grid.threads == 0 || grid.threads % WARP != 0 ||
               grid.threads > body->max_threads || grid.shared > MAX_SHARED) {
        complain("grid of %lu blocks, %lu threads (at most %lu), %lu bytes of shared memory (at "
                 "most %lu)",
                 (unsigned long)grid.blocks, (unsigned long)grid.threads,
                 (unsigned long)body->max_threads, (unsigned long)grid.shared,
                 (unsigned long)MAX_SHARED);
    } else if (grid.cluster && grid.blocks > MAX_CLUSTER) {
        complain("cluster of %lu blocks (at most %lu)", (unsigned long)grid.blocks,
                 (unsigned long)MAX_CLUSTER);
    } else if (grid.blocks > 0) {
        run_grid(body, grid, args, delay);
        (void)snprintf(block, sizeof block, ", block %lu", (unsigned long)moei_sim_here.block);
    }
    const bool ok = !m.failed;
    if (!ok) {
        (void)snprintf(text, size, "body %s%s: %s", body->name, block, m.text);
    }
    (void)pthread_mutex_unlock(&lock);
    return ok;
}

} // extern "C"
