// SPDX-License-Identifier: Apache-2.0
// A device that fails: at each step of a layer in turn, once or from then on. The status and its
// words come through every call, nothing runs after it, nothing is lost, and where the device
// recovers the next run is right.
#include <string.h>

#include "api/layer_case.h"
#include "model/device.h"
#include "unit/far_device.h"
#include "unit/test.h"

#define TOKENS 5
#define WORDS  "far: an illegal memory access was encountered"

static far_device *far;
static moei_backend sound; // as the device was made

/// The op of that number fails; -1: none does.
static long fails_at = -1;
static bool stays;   // and then everything does
static bool is_dead; // until it is cleared

static moe_status dead(void)
{
    return moe_fail(MOE_E_DEVICE, WORDS);
}

static moe_status after(moei_op op, const void *args)
{
    (void)op;
    (void)args;
    if (is_dead || (long)far->calls == fails_at) {
        is_dead = stays;
        return dead();
    }
    return MOE_OK;
}

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    return is_dead ? dead() : sound.memory_alloc(exec, bytes, out);
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    return is_dead ? dead() : sound.memory_copy(exec, to, from, bytes, direction);
}

static moe_status plan_prepare(const moei_exec *exec, const moei_plan_info *plan, void **out)
{
    (void)exec;
    (void)plan;
    *out = NULL;
    return is_dead ? dead() : MOE_OK;
}

static void plan_release(const moei_exec *exec, void *plan)
{
    (void)exec;
    (void)plan;
}

static moe_status run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    moe_status status = MOE_OK;
    for (int32_t i = 0; i < count && status == MOE_OK; i++) {
        status = moei_step_run(&far->backend, exec, &steps[i]);
    }
    return status;
}

/// A layer on the device, and what it gives.
typedef struct layer {
    moe_plan *host_plan, *plan;
    moe_weights *weights;
    void *memory;
    size_t bytes;
    moem_room room;
    moe_layer_desc desc;
    layer_case c;
    uint64_t want;
    long steps;
} layer;

// Every step that a layer can have: route, place, sort, a quantiser, products, glu, combine.
static moe_layer_desc desc_of(int n)
{
    moe_layer_desc d = layer_case_base();
    switch (n) {
    case 0:
        break;
    case 1:
        d.gemm[0].act.spec = MOE_QUANT_INT8_TOKEN;
        d.gemm[0].weight_format = MOE_FORMAT_INT8_CHANNEL;
        break;
    case 2:
        layer_case_add_shared(&d);
        break;
    default:
        layer_case_place(&d, MOE_X_BATCHED);
        break;
    }
    return d;
}

static bool make(moe_context *host, moe_context *device, const moe_layer_desc *d, layer *l)
{
    size_t workspace = 0;
    size_t align = 0;
    memset(l, 0, sizeof *l);
    l->desc = *d;
    if (!CHECK(moe_plan_create(host, d, &l->host_plan) == MOE_OK &&
                   layer_case_make(&l->c, l->host_plan, d, TOKENS) == MOE_OK &&
                   moe_plan_create(device, d, &l->plan) == MOE_OK &&
                   moe_weights_bytes(l->plan, &l->bytes, &align) == MOE_OK &&
                   moe_memory_alloc(device, l->bytes, &l->memory) == MOE_OK &&
                   moe_weights_create(l->plan, l->memory, l->bytes, &l->weights) == MOE_OK &&
                   moe_weights_pack(l->weights, 0, &l->c.source) == MOE_OK &&
                   moe_plan_workspace(l->plan, TOKENS, &workspace, &align) == MOE_OK &&
                   moem_room_create(device, &l->c.args, workspace, &l->room) == MOE_OK,
               "%s", moe_last_error())) {
        return false;
    }
    const unsigned long before = far->calls;
    layer_case_poison(&l->c);
    CHECK(moem_room_run(&l->room, l->plan, l->weights, &l->c.args) == MOE_OK, "%s",
          moe_last_error());
    l->steps = (long)(far->calls - before);
    l->want = layer_case_outputs(&l->c);
    return CHECK(l->steps >= 3, "a layer of %ld steps", l->steps);
}

static void unmake(moe_context *device, layer *l)
{
    moem_room_free(&l->room);
    moe_weights_destroy(l->weights);
    moe_memory_free(device, l->memory, l->bytes);
    moe_plan_destroy(l->plan);
    layer_case_free(&l->c);
    moe_plan_destroy(l->host_plan);
    CHECK(far->live == 0, "%zu bytes of the device are lost", far->live);
}

static bool is_told(moe_status status)
{
    return status == MOE_E_DEVICE && strcmp(moe_last_error(), WORDS) == 0;
}

// One op fails: no other runs after it, and the next run is right.
static void test_once(layer *l, const char *name)
{
    stays = false;
    for (long n = 0; n < l->steps; n++) {
        const unsigned long before = far->calls;
        const size_t live = far->live;
        fails_at = (long)before + n;
        layer_case_poison(&l->c);
        CHECK(is_told(moem_room_run(&l->room, l->plan, l->weights, &l->c.args)), "%s, step %ld: %s",
              name, n, moe_last_error());
        CHECK((long)(far->calls - before) == n + 1, "%s, step %ld: %ld more have run", name, n,
              (long)(far->calls - before) - n - 1);
        CHECK(far->live == live, "%s, step %ld: memory of the device is lost", name, n);
        fails_at = -1;
        layer_case_poison(&l->c);
        CHECK(moem_room_run(&l->room, l->plan, l->weights, &l->c.args) == MOE_OK &&
                  layer_case_outputs(&l->c) == l->want,
              "%s: after a failure of step %ld: %s", name, n, moe_last_error());
    }
}

// The first expert's matrices alone.
static moe_weights_source first_expert(const layer *l)
{
    moe_weights_source source = moe_weights_source_default();
    for (int g = 0; g < 2; g++) {
        source.gemm[g] = l->c.source.gemm[g];
        source.gemm[g].values.shape[0] = 1;
        source.gemm[g].scales.shape[0] = 1;
    }
    return source;
}

// Every call that needs the device says what it says.
static void check_dead(moe_context *device, layer *l, const char *name)
{
    const moe_weights_source one = first_expert(l);
    moe_plan *plan = NULL;
    void *memory = NULL;
    char bytes[16] = {0};
    for (int again = 0; again < 2; again++) {
        CHECK(is_told(moem_room_run(&l->room, l->plan, l->weights, &l->c.args)), "%s: a run: %s",
              name, moe_last_error());
    }
    CHECK(is_told(
              moe_run(l->plan, l->weights, &l->c.args, l->c.workspace, l->c.workspace_bytes, NULL)),
          "%s: moe_run: %s", name, moe_last_error());
    CHECK(is_told(moe_memory_alloc(device, 100, &memory)), "%s: memory: %s", name,
          moe_last_error());
    CHECK(is_told(moe_memory_copy(device, l->memory, bytes, 16, MOE_COPY_TO_DEVICE, NULL)) &&
              is_told(moe_memory_copy(device, bytes, l->memory, 16, MOE_COPY_FROM_DEVICE, NULL)),
          "%s: a copy: %s", name, moe_last_error());
    CHECK(is_told(moe_weights_pack(l->weights, 0, &l->c.source)), "%s: packing: %s", name,
          moe_last_error());
    CHECK(is_told(moe_weights_update(l->weights, 0, &one)), "%s: an update: %s", name,
          moe_last_error());
    CHECK(is_told(moe_plan_create(device, &l->desc, &plan)) && plan == NULL, "%s: a plan: %s", name,
          moe_last_error());
}

static void test_layer(moe_context *host, moe_context *device, int n)
{
    const moe_layer_desc d = desc_of(n);
    char name[32];
    layer l;
    (void)snprintf(name, sizeof name, "layer %d", n);
    if (!make(host, device, &d, &l)) {
        return;
    }
    test_once(&l, name);
    far->backend.run_steps = run_steps; // the same, all steps at once
    test_once(&l, name);
    far->backend.run_steps = NULL;
    stays = true;
    fails_at = (long)far->calls + n % l.steps;
    CHECK(is_told(moem_room_run(&l.room, l.plan, l.weights, &l.c.args)) && is_dead, "%s: %s", name,
          moe_last_error());
    check_dead(device, &l, name);
    unmake(device, &l); // which a dead device does not hinder
    fails_at = -1;
    is_dead = false;
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *host = NULL;
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &host) == MOE_OK &&
                   (far = far_device_make(host->backend, (size_t)64 << 20)) != NULL,
               "%s", moe_last_error())) {
        return test_summary();
    }
    sound = far->backend;
    far->after = after;
    far->backend.memory_alloc = memory_alloc;
    far->backend.memory_copy = memory_copy;
    far->backend.plan_prepare = plan_prepare;
    far->backend.plan_release = plan_release;
    moe_context device = *host;
    device.backend = &far->backend;
    for (int n = 0; n < 4; n++) {
        test_layer(host, &device, n);
    }
    far_device_free();
    moe_context_destroy(host);
    return test_summary();
}
