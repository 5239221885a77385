// SPDX-License-Identifier: Apache-2.0
// Layers whose tensors lie in host memory, run on a device with memory of its own (model/device.h):
// every byte of every output is what backend "cpu" leaves there.
#include <string.h>

#include "api/layer_case.h"
#include "model/device.h"
#include "unit/far_device.h"
#include "unit/test.h"

#define TOKENS 5

static far_device *far;
static const int32_t valid = TOKENS - 2;

// The descriptors whose runs have most views.
static moe_layer_desc layer_of(int n)
{
    moe_layer_desc d = layer_case_base();
    switch (n) {
    case 0:
        break;
    case 1:
        layer_case_add_shared(&d);
        break;
    case 2:
        d.routing = MOE_ROUTING_GIVEN;
        memset(&d.route, 0, sizeof d.route);
        d.logits_dtype = 0;
        d.ids_dtype = MOE_I64;
        d.weights_dtype = MOE_BF16;
        break;
    case 3:
        d.accumulate = 1;
        break;
    default:
        layer_case_place(&d, n == 4 ? MOE_X_BATCHED : MOE_X_SORTED);
        break;
    }
    return d;
}

static void test_refusals(const moem_room *room, layer_case *c, const moe_plan *plan,
                          const moe_weights *weights)
{
    moem_room small = *room;
    small.bytes = room->workspace_bytes + 256;
    layer_case_poison(c);
    CHECK(moem_room_run(&small, plan, weights, &c->args) == MOE_E_ARGUMENT &&
              strstr(moe_last_error(), "room for 256") != NULL && layer_case_untouched(c),
          "%s", moe_last_error());
    CHECK(moem_room_run(room, plan, NULL, &c->args) == MOE_E_ARGUMENT && layer_case_untouched(c),
          "no weights, no refusal");
    CHECK(moem_room_run(room, NULL, weights, &c->args) == MOE_E_ARGUMENT && layer_case_untouched(c),
          "no plan, no refusal");
}

// Rows of an output that no run writes keep what they hold: past num_valid, and between strides.
static void test_kept(const moem_room *room, layer_case *c, const moe_plan *plan,
                      const moe_weights *weights)
{
    const moe_run_args all = c->args;
    c->args.num_valid = moe_tensor_1d(&valid, MOE_I32, 1);
    for (int narrow = 0; narrow < 2; narrow++) {
        if (narrow != 0) { // every other row of the output
            c->args.num_tokens = c->args.x.shape[0] = c->args.logits.shape[0] = 2;
            c->args.out.shape[0] = c->args.out_ids.shape[0] = c->args.out_weights.shape[0] = 2;
            c->args.out.stride[0] *= 2;
            c->args.num_valid.data = NULL;
        }
        layer_case_poison(c);
        CHECK(layer_case_run(c) == MOE_OK, "%s", moe_last_error());
        const uint64_t want = layer_case_outputs(c);
        layer_case_poison(c);
        CHECK(moem_room_run(room, plan, weights, &c->args) == MOE_OK &&
                  layer_case_outputs(c) == want,
              "%s", narrow ? "a row between two others is written" : "rows past num_valid are");
    }
    c->args = all;
}

static void test_layer(moe_context *host, moe_context *device, int n)
{
    const moe_layer_desc d = layer_of(n);
    moe_plan *plan = NULL;
    moe_plan *device_plan = NULL;
    moe_weights *weights = NULL;
    void *memory = NULL;
    moem_room room = {.memory = NULL};
    layer_case c;
    size_t bytes = 0;
    size_t workspace = 0;
    size_t align = 0;
    if (!CHECK(moe_plan_create(host, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, TOKENS) == MOE_OK &&
                   layer_case_run(&c) == MOE_OK &&
                   moe_plan_create(device, &d, &device_plan) == MOE_OK &&
                   moe_weights_bytes(device_plan, &bytes, &align) == MOE_OK &&
                   moe_memory_alloc(device, bytes, &memory) == MOE_OK &&
                   moe_weights_create(device_plan, memory, bytes, &weights) == MOE_OK &&
                   moe_weights_pack(weights, 0, &c.source) == MOE_OK &&
                   moe_plan_workspace(device_plan, TOKENS, &workspace, &align) == MOE_OK,
               "layer %d: %s", n, moe_last_error())) {
        return;
    }
    moe_run_args most = c.args;
    most.num_valid = moe_tensor_1d(&valid, MOE_I32, 1);
    CHECK(moem_room_create(device, &most, workspace, &room) == MOE_OK, "layer %d: %s", n,
          moe_last_error());
    const uint64_t want = layer_case_outputs(&c);
    layer_case_poison(&c);
    CHECK(moem_room_run(&room, device_plan, weights, &c.args) == MOE_OK &&
              layer_case_outputs(&c) == want,
          "layer %d: other outputs on the device: %s", n, moe_last_error());
    // Again, on top of what `load` holds by now.
    CHECK(layer_case_run(&c) == MOE_OK, "layer %d: %s", n, moe_last_error());
    const uint64_t twice = layer_case_outputs(&c);
    layer_case_poison(&c);
    CHECK(moem_room_run(&room, device_plan, weights, &c.args) == MOE_OK &&
              moem_room_run(&room, device_plan, weights, &c.args) == MOE_OK &&
              layer_case_outputs(&c) == twice,
          "layer %d: other outputs of a second run: %s", n, moe_last_error());
    if (n == 0) {
        CHECK(c.args.load.data != NULL && twice != want, "the load is not counted");
        test_kept(&room, &c, device_plan, weights);
        test_refusals(&room, &c, device_plan, weights);
    }
    moem_room_free(&room);
    moe_weights_destroy(weights);
    moe_memory_free(device, memory, bytes);
    moe_plan_destroy(device_plan);
    layer_case_free(&c);
    moe_plan_destroy(plan);
    CHECK(far->live == 0, "layer %d: %zu bytes of the device are lost", n, far->live);
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *host = NULL;
    moe_context *none = NULL;
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &host) == MOE_OK &&
                   (far = far_device_make(host->backend, (size_t)64 << 20)) != NULL,
               "%s", moe_last_error())) {
        return test_summary();
    }
    moe_context device = *host;
    device.backend = &far->backend;
    for (int n = 0; n < 6; n++) {
        test_layer(host, &device, n);
    }
    CHECK(moem_device_open(host, MOE_DEVICE_CPU, &none) == MOE_OK && none == NULL &&
              moem_device_open(host, MOE_DEVICE_UNSET, &none) == MOE_OK && none == NULL,
          "a context of its own for the CPU: %s", moe_last_error());
    CHECK(moem_device_open(host, MOE_DEVICE_CUDA + 1, &none) == MOE_E_UNSUPPORTED && none == NULL,
          "an unknown device: %s", moe_last_error());
    far_device_free();
    moe_context_destroy(host);
    return test_summary();
}
