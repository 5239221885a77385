// SPDX-License-Identifier: Apache-2.0
// The context: probes the machine, reads the environment once, picks the backend.
#include "moe/context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backends.h"
#include "core/check.h"
#include "core/isa.h"
#include "core/safemath.h"

static void *default_alloc(void *self, size_t bytes, size_t align)
{
    (void)self;
    const size_t size = moei_size_align(bytes == 0 ? 1 : bytes, align);
    return size == SIZE_MAX ? NULL : aligned_alloc(align, size);
}

static void default_free(void *self, void *memory, size_t bytes)
{
    (void)self;
    (void)bytes;
    free(memory);
}

static const moe_allocator default_allocator = {NULL, default_alloc, default_free};

static moe_status check_desc(const moe_context_desc *desc)
{
    const char *call = "moe_context_create";
    MOE_REQUIRE(desc->num_threads >= 0, MOE_E_ARGUMENT,
                "%s: desc.num_threads = %d, must be 0 (all) or more", call, (int)desc->num_threads);
    MOE_REQUIRE(desc->allocator == NULL ||
                    (desc->allocator->alloc != NULL && desc->allocator->free != NULL),
                MOE_E_ARGUMENT, "%s: desc.allocator lacks alloc or free", call);
    MOE_REQUIRE(desc->pool == NULL ||
                    (desc->pool->size != NULL && desc->pool->parallel_for != NULL),
                MOE_E_ARGUMENT, "%s: desc.pool lacks size or parallel_for", call);
    MOE_REQUIRE(
        desc->pool == NULL || desc->num_threads == 0, MOE_E_ARGUMENT,
        "%s: desc.num_threads = %d, but desc.pool is given and has a size of its own; set it "
        "to 0",
        call, (int)desc->num_threads);
    const bool cpu = desc->device == MOE_DEVICE_UNSET || desc->device == MOE_DEVICE_CPU;
    MOE_REQUIRE(!cpu || desc->device_id == 0, MOE_E_ARGUMENT,
                "%s: desc.device_id = %d, device \"cpu\" has 0 only", call, (int)desc->device_id);
    return MOE_OK;
}

static moe_status choose_isa(const moe_context_desc *desc, uint64_t detected, uint64_t *isa)
{
    const char *ceiling = desc->isa != NULL ? desc->isa : getenv("MOE_ISA");
    uint64_t mask = UINT64_MAX;
    if (ceiling != NULL && ceiling[0] != '\0') {
        MOE_REQUIRE(moei_isa_ceiling(ceiling, &mask) != 0, MOE_E_ARGUMENT,
                    "moe_context_create: %s = \"%s\" is not one of ref, ref_fma, avx2, avx512, "
                    "amx, neon",
                    desc->isa != NULL ? "desc.isa" : "MOE_ISA", ceiling);
    }
    *isa = detected & mask;
    return MOE_OK;
}

moe_status moe_context_create(const moe_context_desc *desc, moe_context **out)
{
    moe_context_desc known = moe_context_desc_default();
    char text[256];
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "moe_context_create: out is NULL");
    if (desc != NULL) {
        MOE_TRY(moei_struct_read(desc, &known, sizeof known, "moe_context_create", "desc"));
    }
    desc = &known;
    MOE_TRY(check_desc(desc));
    const moe_device_type device = desc->device != MOE_DEVICE_UNSET ? desc->device : MOE_DEVICE_CPU;
    const moei_backend *backend = moei_backend_for(device);
    MOE_REQUIRE(backend != NULL, MOE_E_UNSUPPORTED,
                "moe_context_create: no backend for device \"%s\" in this build; \"cpu\" works",
                moe_device_name(device));
    uint64_t detected = 0;
    MOE_REQUIRE(backend->probe(&detected, text, sizeof text), MOE_E_UNSUPPORTED,
                "moe_context_create: device \"%s\": %s; \"cpu\" works", moe_device_name(device),
                text);
    const moe_allocator *allocator = desc->allocator != NULL ? desc->allocator : &default_allocator;
    moe_context *ctx = allocator->alloc(allocator->self, sizeof *ctx, 64);
    MOE_REQUIRE(ctx != NULL, MOE_E_NO_MEMORY, "moe_context_create: no memory for %zu bytes",
                sizeof *ctx);
    memset(ctx, 0, sizeof *ctx);
    ctx->allocator = *allocator;
    ctx->backend = backend;
    ctx->log = desc->log;
    ctx->log_self = desc->log_self;
    moe_status status = choose_isa(desc, detected, &ctx->isa);
    if (status != MOE_OK) {
        goto fail;
    }
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        moei_whynot why;
        const int row = op == MOEI_OP_GGEMM
                            ? -1
                            : moei_registry_select(backend->kernels, backend->num_kernels,
                                                   (moei_op)op, ctx->isa, NULL, &why);
        ctx->op_kernel[op] = row >= 0 ? &backend->kernels[row] : NULL;
    }
    if (desc->pool != NULL) {
        ctx->pool = *desc->pool;
        const size_t size = ctx->pool.size(ctx->pool.self);
        ctx->num_threads = size < 1 ? 1 : size > 65536 ? 65536 : (int)size;
    } else {
        ctx->num_threads = desc->num_threads > 0 ? desc->num_threads : moei_cpu_count();
        status = moei_pool_create(&ctx->allocator, ctx->num_threads, &ctx->own_pool);
        if (status != MOE_OK) {
            goto fail;
        }
        ctx->pool = moei_pool_view(ctx->own_pool);
    }
    if (ctx->log != NULL) {
        ctx->log(ctx->log_self, 2, text);
    }
    *out = ctx;
    return MOE_OK;
fail:
    allocator->free(allocator->self, ctx, sizeof *ctx);
    return status;
}

void moe_context_destroy(moe_context *ctx)
{
    if (ctx != NULL) {
        const moe_allocator allocator = ctx->allocator;
        moei_pool_destroy(ctx->own_pool);
        allocator.free(allocator.self, ctx, sizeof *ctx);
    }
}

int moe_context_num_threads(const moe_context *ctx)
{
    return ctx->num_threads;
}

moe_thread_pool moe_context_pool(const moe_context *ctx)
{
    return ctx->pool;
}

int moe_context_visit_kernels(const moe_context *ctx,
                              int (*visit)(void *self, const moe_kernel_info *info), void *self)
{
    const moei_backend *backend;
    for (size_t b = 0; (backend = moei_backend_at(b)) != NULL; b++) {
        for (size_t i = 0; i < backend->num_kernels; i++) {
            const moei_kernel *kernel = &backend->kernels[i];
            char text[128];
            moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
            const bool here = backend == ctx->backend;
            const bool available = here && moei_registry_supports(kernel, ctx->isa, NULL, &why);
            moe_kernel_info info = {
                .name = kernel->name,
                .backend = backend->name,
                .op = moei_op_name(kernel->op),
                .isa = kernel->isa_name,
                .arith =
                    kernel->arith == MOEI_ARITH_NONE ? "" : moei_arith_get(kernel->arith)->name,
                .available = available,
                .why = !here ? "the context uses another device"
                             : moei_whynot_text(&why, text, sizeof text),
                .runs = atomic_load_explicit(&backend->runs[i], memory_order_relaxed),
            };
            const int result = visit(self, &info);
            if (result != 0) {
                return result;
            }
        }
    }
    return 0;
}

int moe_context_visit_backends(const moe_context *ctx,
                               int (*visit)(void *self, const moe_backend_info *info), void *self)
{
    const moei_backend *backend;
    (void)ctx;
    for (size_t b = 0; (backend = moei_backend_at(b)) != NULL; b++) {
        char text[256];
        uint64_t isa = 0;
        const bool available = backend->probe(&isa, text, sizeof text);
        const moe_backend_info info = {backend->name, available, text};
        const int result = visit(self, &info);
        if (result != 0) {
            return result;
        }
    }
    return 0;
}
