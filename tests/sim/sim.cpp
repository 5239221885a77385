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
enum : uint32_t { MAX_SHARED = 227 << 10 }; // of a block on sm_90

struct fiber {
    void *sp;
    const char *at; // the call in which it waits; NULL: it has ended
    fiber *next;    // runs when this one waits; NULL: the scheduler
    void *fake;     // ASan's
    uint32_t exchanges;
};

struct machine {
    unsigned char *stacks;
    fiber fibers[MAX_THREADS];
    fiber *now;      // NULL: the scheduler runs
    void *sp, *fake; // of the scheduler
    const void *bottom;
    size_t bottom_size;
    uint32_t slots[2][MAX_THREADS]; // what lanes exchange, in turns
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
        moei_sim_here.thread = (uint32_t)(from - m.fibers);
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
    complain("thread %d is in %s, thread %d in %s", (int)(a - m.fibers), state_text(a),
             (int)(b - m.fibers), state_text(b));
    return false;
}

const char *const in_sync = "dev_sync";

// Lets a warp run until it waits for the block, or to its end.
bool run_warp(uint32_t warp)
{
    fiber *lane = &m.fibers[warp * WARP];
    do {
        go_to(&lane[m.lanes[0]], false);
        for (uint32_t i = 1; i < WARP && !m.failed; i++) {
            (void)same_state(lane, lane + i);
        }
    } while (!m.failed && lane->at != NULL && lane->at != in_sync);
    return !m.failed;
}

void begin_block(uint32_t block)
{
    const uint32_t threads = moei_sim_here.threads;
    moei_sim_here.block = block;
    for (uint32_t i = 0; i < threads; i++) {
        const uint32_t place = i % WARP;
        fiber *f = &m.fibers[i - place + m.lanes[place]];
        f->sp = first_frame(stack_of(f) + STACK);
        f->next = place + 1 < WARP ? &m.fibers[i - place + m.lanes[place + 1]] : NULL;
        f->exchanges = 0;
    }
}

bool run_block(uint32_t block)
{
    const uint32_t warps = moei_sim_here.threads / WARP;
    begin_block(block);
    do {
        for (uint32_t w = 0; w < warps; w++) {
            if (!run_warp(m.warps[w])) {
                return false;
            }
        }
        for (uint32_t w = 1; w < warps; w++) {
            if (!same_state(&m.fibers[0], &m.fibers[w * WARP])) {
                return false;
            }
        }
    } while (m.fibers[0].at != NULL);
    return true;
}

bool make_stacks(void)
{
    if (m.stacks != NULL) {
        return true;
    }
    const size_t bytes = (size_t)MAX_THREADS * (STACK + GUARD);
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        return false;
    }
    m.stacks = (unsigned char *)p;
    for (const fiber &f : m.fibers) {
        if (mprotect(stack_of(&f), STACK, PROT_READ | PROT_WRITE) != 0) {
            (void)munmap(p, bytes);
            m.stacks = NULL;
            return false;
        }
    }
    return true;
}

void run_grid(const moei_sim_body *body, moei_gpu_grid grid, const void *args)
{
    const char *text = getenv("MOE_SIM_ORDER");
    const unsigned long seed = text != NULL ? strtoul(text, NULL, 10) : 0;
    // Copies of their exact size: ASan sees what lies beyond.
    uint32_t *order = (uint32_t *)malloc(grid.blocks * sizeof *order);
    void *copy = malloc(body->args_bytes);
    void *shared = malloc(grid.shared);
    if (order == NULL || copy == NULL || (shared == NULL && grid.shared > 0) || !make_stacks()) {
        complain("memory is short");
    } else {
        memcpy(copy, args, body->args_bytes);
        m.random += seed;
        arrange(m.lanes, WARP, seed);
        arrange(m.warps, grid.threads / WARP, seed);
        arrange(order, grid.blocks, seed);
        m.body = body;
        m.args = copy;
        moei_sim_here.threads = grid.threads;
        moei_sim_here.blocks = grid.blocks;
        moei_sim_here.shared = shared;
        for (uint32_t b = 0; b < grid.blocks && !m.failed; b++) {
            memset(shared, 0xA5, grid.shared);
            (void)run_block(order[b]);
        }
    }
#ifdef SIM_ASAN
    if (m.failed && m.stacks != NULL) { // frames that never return
        for (const fiber &f : m.fibers) {
            __asan_unpoison_memory_region(stack_of(&f), STACK);
        }
    }
#endif
    free(shared);
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
    moei_sim_here.thread = (uint32_t)(self - m.fibers);
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

void moei_sim_sync(void)
{
    wait_in(in_sync);
}

void moei_sim_fail(const char *call, const char *what, int64_t value)
{
    complain("thread %d: %s: %s %lld is out of range", (int)moei_sim_here.thread, call, what,
             (long long)value);
    go_to(NULL, true);
    abort(); // the scheduler does not come back
}

bool moei_sim_launch(const moei_sim_body *body, moei_gpu_grid grid, const void *args, char *text,
                     size_t size)
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
    } else if (grid.blocks > 0) {
        run_grid(body, grid, args);
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
