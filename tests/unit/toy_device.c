// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "unit/toy_device.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

static toy_device toy;
static void *mapped;
static const moei_backend *cpu;
static char plan_state;
// The pages are open to one thread at a time.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// Whole huge pages, where the system has them: the rights of small ones take long to change.
#define HUGE_PAGE ((size_t)2 << 20)

static void protect(int how)
{
    if (mprotect(toy.region, (toy.used / HUGE_PAGE + 1) * HUGE_PAGE, how) != 0) {
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

// ---- memory
// --------------------------------------------------------------------------------------

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    (void)exec;
    const size_t size = (bytes + 255) / 256 * 256;
    (void)pthread_mutex_lock(&lock);
    const bool fits = size < toy.bytes - toy.used;
    if (fits) {
        *out = toy.region + toy.used;
        toy.used += size;
        toy.live++;
    }
    (void)pthread_mutex_unlock(&lock);
    MOE_REQUIRE(fits, MOE_E_NO_MEMORY, "device: no memory for %zu bytes", bytes);
    return MOE_OK;
}

// Pieces come back when all are free.
static void memory_free(const moei_exec *exec, void *memory, size_t bytes)
{
    (void)exec;
    (void)memory;
    (void)bytes;
    (void)pthread_mutex_lock(&lock);
    if (--toy.live == 0) {
        toy.used = 0;
    }
    (void)pthread_mutex_unlock(&lock);
}

static bool on_device(const void *p)
{
    const unsigned char *at = p;
    return at >= toy.region && at < toy.region + toy.bytes;
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    (void)exec;
    const bool up = direction == MOE_COPY_TO_DEVICE;
    begin();
    toy.misuses += on_device(to) != up || on_device(from) == up;
    memcpy(to, from, bytes);
    end();
    return MOE_OK;
}

// ---- mistakes
// ------------------------------------------------------------------------------------

static void touch(const void *at)
{
    *(unsigned char *)(uintptr_t)at ^= 1;
}

static bool wrong_now(void)
{
    return toy.mistake == TOY_WRONG_BIT || (toy.mistake == TOY_UNSTEADY && toy.calls % 2 == 1);
}

static void spoil_route(const moek_route_args *a)
{
    if (wrong_now() && a->tokens > 0) {
        touch(a->weights);
    }
}

static void spoil_place(const moek_place_args *a)
{
    (void)a;
}

static void spoil_sort(const moek_sort_args *a)
{
    if (toy.mistake == TOY_WRITES_BEFORE) {
        touch((const unsigned char *)a->slots - 1);
    }
}

static void spoil_quantize(const moek_quantize_args *a)
{
    (void)a;
}

static void spoil_ggemm(const moek_ggemm_args *a)
{
    if (toy.mistake == TOY_WRITES_BEFORE) {
        touch(a->y - 1);
    } else if (toy.mistake == TOY_WRITES_INPUT) {
        touch(a->x.data);
    }
}

static void spoil_glu(const moek_glu_args *a)
{
    if (toy.mistake == TOY_WRITES_AFTER) {
        touch(a->y + a->batches * a->rows * a->y_row_stride);
    } else if (wrong_now() && a->rows > 0) {
        touch(a->y);
    }
}

static void spoil_combine(const moek_combine_args *a)
{
    if (a->tokens == 0) {
        return;
    }
    if (toy.mistake == TOY_WRITES_AFTER) {
        touch(a->out + a->tokens * a->out_token_stride);
    } else if (toy.mistake == TOY_WRITES_INPUT && a->slots != NULL) {
        touch(a->slots);
    } else if (wrong_now()) {
        touch(a->out);
    }
}

// ---- ops
// -----------------------------------------------------------------------------------------

// A device waits for its stream where a test ends; this one is done when an op returns.
#define DEVICE_OP(op)                                                                              \
    static moe_status device_##op(const moei_exec *exec, const moei_kernel *kernel,                \
                                  const moek_##op##_args *args)                                    \
    {                                                                                              \
        MOE_REQUIRE(toy.mistake != TOY_FAILS, MOE_E_DEVICE, "device: a launch failed");            \
        begin();                                                                                   \
        toy.scratch_seen += exec->plan == &plan_state && on_device(exec->scratch) &&               \
                            (uintptr_t)exec->scratch % 256 == 0;                                   \
        const moe_status status = cpu->op(exec, kernel, args);                                     \
        spoil_##op(args);                                                                          \
        toy.calls++;                                                                               \
        end();                                                                                     \
        return status;                                                                             \
    }
DEVICE_OP(route)
DEVICE_OP(place)
DEVICE_OP(sort)
DEVICE_OP(quantize)
DEVICE_OP(ggemm)
DEVICE_OP(glu)
DEVICE_OP(combine)

// ---- plans
// ---------------------------------------------------------------------------------------

static moe_status plan_check(const moei_exec *exec, const moei_plan_info *plan)
{
    (void)exec;
    MOE_REQUIRE(toy.refuse != 1, MOE_E_UNSUPPORTED, "device: desc.hidden = %d, must be less",
                (int)plan->desc->hidden);
    return MOE_OK;
}

static moe_status plan_prepare(const moei_exec *exec, const moei_plan_info *plan, void **out)
{
    (void)exec;
    MOE_REQUIRE(toy.refuse != 2, MOE_E_DEVICE, "device: a kernel cannot be loaded");
    for (int32_t i = 0; i < plan->num_products; i++) {
        toy.misuses +=
            plan->products[i].kernel == NULL || plan->products[i].kernel->op != MOEI_OP_GGEMM;
    }
    toy.prepared++;
    *out = &plan_state;
    return MOE_OK;
}

static void plan_release(const moei_exec *exec, void *plan)
{
    (void)exec;
    toy.misuses += plan != &plan_state;
    toy.released++;
}

static size_t scratch_bytes(const moei_exec *exec, const moe_layer_desc *desc, int64_t num_tokens)
{
    (void)exec;
    return (size_t)(num_tokens * desc->top_k) + 100;
}

toy_device *toy_device_make(const moei_backend *with, size_t bytes)
{
    cpu = with;
    toy = (toy_device){.backend = *cpu, .bytes = bytes / HUGE_PAGE * HUGE_PAGE};
    mapped = mmap(NULL, toy.bytes + HUGE_PAGE, PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        return NULL;
    }
    toy.region = (unsigned char *)(((uintptr_t)mapped / HUGE_PAGE + 1) * HUGE_PAGE);
    (void)madvise(toy.region, toy.bytes, MADV_HUGEPAGE);
    toy.backend.name = "device";
    toy.backend.device = MOE_DEVICE_EXT;
    toy.backend.host_memory = false;
    toy.backend.memory_alloc = memory_alloc;
    toy.backend.memory_free = memory_free;
    toy.backend.memory_copy = memory_copy;
    toy.backend.plan_check = plan_check;
    toy.backend.plan_prepare = plan_prepare;
    toy.backend.plan_release = plan_release;
    toy.backend.scratch_bytes = scratch_bytes;
    toy.backend.route = device_route;
    toy.backend.place = device_place;
    toy.backend.sort = device_sort;
    toy.backend.quantize = device_quantize;
    toy.backend.ggemm = device_ggemm;
    toy.backend.glu = device_glu;
    toy.backend.combine = device_combine;
    return &toy;
}

void toy_device_free(void)
{
    (void)munmap(mapped, toy.bytes + HUGE_PAGE);
}

void toy_device_reset(void)
{
    toy.used = 0;
    toy.live = 0;
}
