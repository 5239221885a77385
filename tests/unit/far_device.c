// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "unit/far_device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// Whole huge pages, where the system has them: the rights of small ones take long to change.
#define HUGE_PAGE ((size_t)2 << 20)

static far_device far;
static unsigned char *region;
static void *mapped;
static size_t mapped_bytes;
// The pages are open to one thread at a time.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t rounded(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

static void protect(int how)
{
    if (mprotect(region, rounded(far.used, HUGE_PAGE), how) != 0) {
        abort();
    }
}

static void begin(void)
{
    (void)pthread_mutex_lock(&lock);
    protect(PROT_READ | PROT_WRITE);
}

static void end(void)
{
    protect(PROT_NONE);
    (void)pthread_mutex_unlock(&lock);
}

bool far_device_holds(const void *p)
{
    const unsigned char *at = p;
    return at >= region && at < region + far.bytes;
}

// ---- memory ------------------------------------------------------------------------------------

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    (void)exec;
    const size_t size = rounded(bytes, 256);
    (void)pthread_mutex_lock(&lock);
    const size_t left = far.bytes - far.used;
    if (size <= left) {
        *out = region + far.used;
        far.used += size;
        far.live += size;
    }
    (void)pthread_mutex_unlock(&lock);
    return size <= left
               ? MOE_OK
               : far.fail(MOE_E_NO_MEMORY, "far: no memory for %zu bytes, %zu of %zu are left",
                          bytes, left, far.bytes);
}

static void memory_free(const moei_exec *exec, void *memory, size_t bytes)
{
    (void)exec;
    (void)memory;
    (void)pthread_mutex_lock(&lock);
    far.live -= rounded(bytes, 256);
    far.used = far.live == 0 ? 0 : far.used;
    (void)pthread_mutex_unlock(&lock);
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    (void)exec;
    const bool up = direction == MOE_COPY_TO_DEVICE;
    if (far_device_holds(to) != up || far_device_holds(from) == up) {
        (void)fprintf(stderr, "far: a copy in the wrong direction\n");
        abort();
    }
    begin();
    memcpy(to, from, bytes);
    end();
    return MOE_OK;
}

// ---- graphs ------------------------------------------------------------------------------------

/// The ops of a run in their order, with their arguments as they were.
typedef struct far_graph {
    struct {
        moei_exec exec;
        moei_step step;
    } op[64];
    int count;
} far_graph;

static _Thread_local far_graph *recorded; // takes the ops that are called; NULL: they run

static moe_status record(const moei_exec *exec, const moei_step *step)
{
    if (recorded->count == (int)(sizeof recorded->op / sizeof recorded->op[0])) {
        return far.fail(MOE_E_DEVICE, "far: a graph holds %d ops at most", recorded->count);
    }
    recorded->op[recorded->count].exec = *exec;
    recorded->op[recorded->count++].step = *step;
    return MOE_OK;
}

static moe_status graph_capture(const moei_exec *exec,
                                moe_status (*enqueue)(void *arg, void *stream), void *arg,
                                void **graph)
{
    far_graph *made = calloc(1, sizeof *made);
    (void)exec;
    if (made == NULL) {
        return far.fail(MOE_E_NO_MEMORY, "far: no memory for a graph");
    }
    recorded = made;
    const moe_status status = enqueue(arg, NULL);
    recorded = NULL;
    if (status != MOE_OK) {
        free(made);
        return status;
    }
    *graph = made;
    return MOE_OK;
}

static moe_status graph_run(const moei_exec *exec, void *graph)
{
    const far_graph *g = graph;
    (void)exec;
    for (int i = 0; i < g->count; i++) {
        MOE_TRY(moei_step_run(&far.backend, &g->op[i].exec, &g->op[i].step));
    }
    return MOE_OK;
}

static void graph_release(const moei_exec *exec, void *graph)
{
    (void)exec;
    free(graph);
}

// ---- ops ---------------------------------------------------------------------------------------

// A device waits for its stream where a test ends; this one is done when an op returns.
#define FAR_OP(op, id)                                                                             \
    static moe_status far_##op(const moei_exec *exec, const moei_kernel *kernel,                   \
                               const moek_##op##_args *args)                                       \
    {                                                                                              \
        if (recorded != NULL) {                                                                    \
            const moei_step step = {MOEI_OP_##id, kernel, {.op = *args}};                          \
            return record(exec, &step);                                                            \
        }                                                                                          \
        begin();                                                                                   \
        far.delay = exec->delay;                                                                   \
        moe_status status = far.cpu->op(exec, kernel, args);                                       \
        if (status == MOE_OK && far.after != NULL) {                                               \
            status = far.after(MOEI_OP_##id, args);                                                \
        }                                                                                          \
        far.calls++;                                                                               \
        end();                                                                                     \
        return status;                                                                             \
    }
FAR_OP(route, ROUTE)
FAR_OP(place, PLACE)
FAR_OP(sort, SORT)
FAR_OP(quantize, QUANTIZE)
FAR_OP(ggemm, GGEMM)
FAR_OP(glu, GLU)
FAR_OP(combine, COMBINE)

far_device *far_device_make(const moei_backend *cpu, size_t bytes)
{
    mapped_bytes = rounded(bytes, HUGE_PAGE) + HUGE_PAGE;
    mapped =
        mmap(NULL, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        return NULL;
    }
    region = (unsigned char *)rounded((uintptr_t)mapped, HUGE_PAGE);
    (void)madvise(region, mapped_bytes - HUGE_PAGE, MADV_HUGEPAGE);
    far = (far_device){.backend = *cpu, .cpu = cpu, .bytes = bytes, .fail = moe_fail};
    far.backend.name = "far";
    far.backend.device = MOE_DEVICE_EXT;
    far.backend.host_memory = false;
    far.backend.memory_alloc = memory_alloc;
    far.backend.memory_free = memory_free;
    far.backend.memory_copy = memory_copy;
    far.backend.route = far_route;
    far.backend.place = far_place;
    far.backend.sort = far_sort;
    far.backend.quantize = far_quantize;
    far.backend.ggemm = far_ggemm;
    far.backend.glu = far_glu;
    far.backend.combine = far_combine;
    far.backend.run_steps = NULL;
    far.backend.plan_prepare = NULL;
    far.backend.plan_release = NULL;
    far.backend.graph_capture = graph_capture;
    far.backend.graph_run = graph_run;
    far.backend.graph_release = graph_release;
    return &far;
}

void far_device_free(void)
{
    (void)munmap(mapped, mapped_bytes);
}

void far_device_reset(void)
{
    far.used = 0;
    far.live = 0;
}
