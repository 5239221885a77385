// SPDX-License-Identifier: Apache-2.0
// A backend with memory of its own, far_device.h's, with all that a backend may have: what goes
// through the backend gives the bits that backend "cpu" gives on host memory.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "unit/far_device.h"
#include "unit/layer_forms.h"
#include "unit/packed_rows.h"
#include "unit/test.h"

// ---- the device --------------------------------------------------------------------------------

static far_device *far;
static moei_backend device_backend;
static int prepared, released, refuse, scratch_seen;
static char plan_state;

static moe_status seen_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                             const moek_ggemm_args *args)
{
    scratch_seen += exec->plan == &plan_state && far_device_holds(exec->scratch) &&
                    (uintptr_t)exec->scratch % 256 == 0;
    return far->backend.ggemm(exec, kernel, args);
}

static moe_status plan_check(const moei_exec *exec, const moei_plan_info *plan)
{
    (void)exec;
    MOE_REQUIRE(refuse != 1, MOE_E_UNSUPPORTED, "device: desc.hidden = %d, must be less",
                (int)plan->desc->hidden);
    return MOE_OK;
}

static moe_status plan_prepare(const moei_exec *exec, const moei_plan_info *plan, void **out)
{
    (void)exec;
    MOE_REQUIRE(refuse != 2, MOE_E_DEVICE, "device: a kernel cannot be loaded");
    for (int32_t i = 0; i < plan->num_products; i++) {
        CHECK(plan->products[i].kernel != NULL && plan->products[i].kernel->op == MOEI_OP_GGEMM,
              "product %d has no kernel", (int)i);
    }
    prepared++;
    *out = &plan_state;
    return MOE_OK;
}

static void plan_release(const moei_exec *exec, void *plan)
{
    (void)exec;
    CHECK(plan == &plan_state, "another plan's state is released");
    released++;
}

static size_t scratch_bytes(const moei_exec *exec, const moe_layer_desc *desc, int64_t num_tokens)
{
    (void)exec;
    return (size_t)(num_tokens * desc->top_k) + 100;
}

static bool make_device(const moei_backend *cpu)
{
    far = far_device_make(cpu, (size_t)64 << 20);
    if (far == NULL) {
        return false;
    }
    device_backend = far->backend;
    device_backend.plan_check = plan_check;
    device_backend.plan_prepare = plan_prepare;
    device_backend.plan_release = plan_release;
    device_backend.scratch_bytes = scratch_bytes;
    device_backend.ggemm = seen_ggemm;
    return true;
}

// ---- tensors on it -----------------------------------------------------------------------------

#define NUM_SOURCE_VIEWS                                                                           \
    ((sizeof(moe_weights_source) - offsetof(moe_weights_source, gemm)) / sizeof(moe_tensor))
#define NUM_RUN_VIEWS ((sizeof(moe_run_args) - offsetof(moe_run_args, x)) / sizeof(moe_tensor))

static moe_tensor *source_view(moe_weights_source *s, size_t i)
{
    return (moe_tensor *)(void *)((unsigned char *)s + offsetof(moe_weights_source, gemm)) + i;
}

static moe_tensor *run_view(moe_run_args *a, size_t i)
{
    return (moe_tensor *)(void *)((unsigned char *)a + offsetof(moe_run_args, x)) + i;
}

static size_t bytes_of(const layer_case *c, const void *data)
{
    for (int i = 0; i < c->num_blocks; i++) {
        if (c->blocks[i] == data) {
            return c->block_bytes[i];
        }
    }
    CHECK(data == NULL, "a view lies outside of the case's memory");
    return 0;
}

static void *upload(const moei_exec *exec, const void *from, size_t bytes)
{
    void *to = NULL;
    CHECK(exec->ctx->backend->memory_alloc(exec, bytes, &to) == MOE_OK &&
              (from == NULL || exec->ctx->backend->memory_copy(exec, to, from, bytes,
                                                               MOE_COPY_TO_DEVICE) == MOE_OK),
          "%s", moe_last_error());
    return to;
}

static void move_view(const moei_exec *exec, const layer_case *c, moe_tensor *t)
{
    if (t->data != NULL) {
        t->data = upload(exec, t->data, bytes_of(c, t->data));
        t->device = MOE_DEVICE_EXT;
    }
}

// ---- a layer -----------------------------------------------------------------------------------

// Every output block of the device equals the host's.
static void check_outputs(const moei_exec *exec, const layer_case *c, moe_run_args *device,
                          const char *what)
{
    moe_run_args host = c->args;
    for (size_t i = 0; i < NUM_RUN_VIEWS; i++) {
        const moe_tensor *h = run_view(&host, i);
        const size_t bytes = bytes_of(c, h->data);
        if (bytes > 0) {
            void *back = malloc(bytes);
            CHECK(back != NULL &&
                      exec->ctx->backend->memory_copy(exec, back, run_view(device, i)->data, bytes,
                                                      MOE_COPY_FROM_DEVICE) == MOE_OK &&
                      memcmp(back, h->data, bytes) == 0,
                  "%s: view %zu differs from the host's", what, i);
            free(back);
        }
    }
}

static void check_unpacked(const layer_case *c, const moe_weights *weights, const char *what)
{
    moe_weights_source out = c->source;
    moe_weights_source want = c->source;
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        moe_tensor *t = source_view(&out, i);
        t->data = t->data != NULL ? calloc(1, bytes_of(c, t->data)) : NULL;
    }
    CHECK(moe_weights_unpack(weights, 0, &out) == MOE_OK, "%s: %s", what, moe_last_error());
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        moe_tensor *t = source_view(&out, i);
        const moe_tensor *w = source_view(&want, i);
        CHECK(t->data == NULL || memcmp(t->data, w->data, bytes_of(c, w->data)) == 0,
              "%s: view %zu comes back changed", what, i);
        free(t->data);
    }
}

static moe_run_args upload_args(const moei_exec *exec, const layer_case *c)
{
    moe_run_args a = c->args;
    for (size_t i = 0; i < NUM_RUN_VIEWS; i++) {
        move_view(exec, c, run_view(&a, i));
    }
    return a;
}

static void run_on_device(const moe_context *ctx, const layer_case *c, const moe_plan *plan,
                          const moe_weights *weights, moe_run_args *a, const char *what)
{
    const moei_exec exec = moei_exec_make(ctx, NULL);
    size_t bytes = 0;
    size_t align = 0;
    CHECK(moe_plan_workspace(plan, a->num_tokens, &bytes, &align) == MOE_OK, "%s",
          moe_last_error());
    void *workspace = upload(&exec, NULL, bytes);
    scratch_seen = 0;
    CHECK(moe_run(plan, weights, a, workspace, bytes, NULL) == MOE_OK, "%s: %s", what,
          moe_last_error());
    CHECK(scratch_seen >= 2, "%s: %d products saw the plan's state and scratch", what,
          scratch_seen);
    check_outputs(&exec, c, a, what);
}

static void test_layer(moe_context *host, moe_context *device, const moe_layer_desc *d,
                       const char *name)
{
    const moei_exec exec = moei_exec_make(device, NULL);
    moe_plan *plan = NULL;
    moe_plan *device_plan = NULL;
    moe_weights *weights = NULL;
    layer_case c;
    size_t bytes = 0;
    size_t align = 0;
    far_device_reset(); // all of the earlier is gone
    if (!CHECK(moe_plan_create(host, d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, d, 5) == MOE_OK &&
                   moe_plan_create(device, d, &device_plan) == MOE_OK,
               "%s: %s", name, moe_last_error())) {
        return;
    }
    moe_run_args packed = upload_args(&exec, &c); // outputs poisoned, as the host's are
    moe_run_args wrapped = upload_args(&exec, &c);
    CHECK(layer_case_run(&c) == MOE_OK, "%s: %s", name, moe_last_error());
    CHECK(moe_weights_bytes(device_plan, &bytes, &align) == MOE_OK, "%s", moe_last_error());
    void *memory = upload(&exec, NULL, bytes);
    // Packed from the host's tensors; those of the device are refused.
    if (CHECK(moe_weights_create(device_plan, memory, bytes, &weights) == MOE_OK &&
                  moe_weights_pack(weights, 0, &c.source) == MOE_OK,
              "%s: %s", name, moe_last_error())) {
        run_on_device(device, &c, device_plan, weights, &packed, name);
        check_unpacked(&c, weights, name);
        moe_weights_source on_device_source = c.source;
        on_device_source.gemm[0].values.device = MOE_DEVICE_EXT;
        CHECK(moe_weights_pack(weights, 0, &on_device_source) == MOE_E_ARGUMENT,
              "%s: a source on the device is packed", name);
    }
    moe_weights_destroy(weights);
    // Wrapped where they lie on the device: rows that read another layout leave them to those of
    // their class that do not.
    weights = NULL;
    moe_weights_source moved = c.source;
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        move_view(&exec, &c, source_view(&moved, i));
    }
    if (CHECK(moe_weights_wrap(device_plan, &moved, &weights) == MOE_OK, "%s: %s", name,
              moe_last_error())) {
        run_on_device(device, &c, device_plan, weights, &wrapped, name);
        check_unpacked(&c, weights, name);
    }
    moe_weights_destroy(weights);
    moe_plan_destroy(device_plan);
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

// ---- refusals ----------------------------------------------------------------------------------

static int ignore(void *self, const moe_support *support)
{
    (void)self;
    (void)support;
    return 0;
}

static void test_refusals(moe_context *device)
{
    const moe_layer_desc d = layer_case_base();
    moe_plan *plan = NULL;
    refuse = 1;
    CHECK(moe_plan_create(device, &d, &plan) == MOE_E_UNSUPPORTED && plan == NULL &&
              strstr(moe_last_error(), "device: desc.hidden") != NULL,
          "plan_check is not asked: %s", moe_last_error());
    CHECK(moe_query_support(device, &d, ignore, NULL) == MOE_E_UNSUPPORTED,
          "the support query does not say what plan_create says");
    refuse = 2;
    CHECK(moe_plan_create(device, &d, &plan) == MOE_E_DEVICE && plan == NULL,
          "plan_prepare is not asked: %s", moe_last_error());
    refuse = 0;
}

// A NaN among scales on the device is found through the backend.
static void test_wrapped_nan(moe_context *host, moe_context *device)
{
    const moe_layer_desc d = layer_form(MOE_FORMAT_MXFP4, 3);
    const moei_exec exec = moei_exec_make(device, NULL);
    moe_plan *plan = NULL;
    moe_plan *device_plan = NULL;
    moe_weights *weights = NULL;
    layer_case c;
    far_device_reset(); // all of the earlier is gone
    if (!CHECK(moe_plan_create(host, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, 5) == MOE_OK &&
                   moe_plan_create(device, &d, &device_plan) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    ((unsigned char *)c.source.gemm[1].scales.data)[3] = 0xFF;
    moe_weights_source moved = c.source;
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        move_view(&exec, &c, source_view(&moved, i));
    }
    CHECK(moe_weights_wrap(device_plan, &moved, &weights) == MOE_E_VALUE && weights == NULL &&
              strstr(moe_last_error(), "down scales of expert 0: element [1, 1] is NaN") != NULL,
          "%s", moe_last_error());
    moe_plan_destroy(device_plan);
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

static void test_layers(moe_context *host, moe_context *device)
{
    const moei_format_info *info;
    int n = 0;
    prepared = released = 0;
    for (size_t i = 0; (info = moei_format_at(i)) != NULL; i++) {
        for (int variant = 0; variant < 4; variant++, n++) {
            const moe_layer_desc d = layer_form(info->format, variant);
            test_layer(host, device, &d, info->name);
        }
    }
    CHECK(prepared == n && released == n, "%d plans, %d prepared, %d released", n, prepared,
          released);
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *host = NULL;
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &host) == MOE_OK && make_device(host->backend), "%s",
               moe_last_error())) {
        return test_summary();
    }
    moe_context device = *host;
    device.backend = &device_backend;
    test_layers(host, &device);
    test_refusals(&device);
    test_wrapped_nan(host, &device);
    far_device_free();
    // The same device, over kernels that read a packed layout.
    moe_context packed = *host;
    if (CHECK(make_device(&packed_rows_make(host->backend)->backend), "%s", moe_last_error())) {
        packed_rows_move(&packed, &device_backend);
        test_layers(host, &packed);
        far_device_free();
    }
    moe_context_destroy(host);
    return test_summary();
}
