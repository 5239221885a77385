// SPDX-License-Identifier: Apache-2.0
// The context: probes the machine, reads the environment once, picks the backend.
#define _GNU_SOURCE // secure_getenv
#include "moe/context.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backends.h"
#include "backends/plugins.h"
#include "core/check.h"
#include "core/cpus.h"
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
    MOE_REQUIRE(desc->device_id >= 0, MOE_E_ARGUMENT, "%s: desc.device_id = %d, must be 0 or more",
                call, (int)desc->device_id);
    MOE_REQUIRE(desc->plugin_path == NULL || desc->plugin_path[0] == '/', MOE_E_ARGUMENT,
                "%s: desc.plugin_path = \"%s\", must be an absolute path", call, desc->plugin_path);
    return MOE_OK;
}

// The ceiling speaks of the CPU's instruction sets alone.
static moe_status choose_isa(const moe_context_desc *desc, const moei_backend *backend,
                             uint64_t detected, uint64_t *isa)
{
    const bool cpu = backend == moei_backend_for(MOE_DEVICE_CPU);
    const char *ceiling = desc->isa != NULL ? desc->isa : cpu ? getenv("MOE_ISA") : NULL;
    uint64_t mask = UINT64_MAX;
    if (ceiling != NULL && ceiling[0] != '\0') {
        MOE_REQUIRE(cpu, MOE_E_ARGUMENT,
                    "moe_context_create: desc.isa = \"%s\", backend \"%s\" has no such ceiling",
                    ceiling, backend->name);
        MOE_REQUIRE(moei_isa_ceiling(ceiling, &mask) != 0, MOE_E_ARGUMENT,
                    "moe_context_create: %s = \"%s\" is not one of ref, ref_fma, avx2, avx512, "
                    "amx, neon",
                    desc->isa != NULL ? "desc.isa" : "MOE_ISA", ceiling);
    }
    *isa = detected & mask;
    return MOE_OK;
}

static bool is_wanted(const moei_backend *backend, const char *name, moe_device_type device)
{
    return (name == NULL || strcmp(backend->name, name) == 0) &&
           (device == MOE_DEVICE_UNSET || backend->device == device);
}

// UNSUPPORTED, with the reason why the wanted backend is not among the plugins.
static moe_status no_backend(const char *name, moe_device_type device,
                             const moei_plugin *const *found, size_t count)
{
    const char *wanted = name != NULL ? name : moe_device_name(device);
    char folder[2 * PATH_MAX];
    for (size_t i = 0; i < count; i++) {
        if (found[i]->backend == NULL && strcmp(found[i]->name, wanted) == 0) {
            return moe_fail(MOE_E_UNSUPPORTED,
                            "moe_context_create: no backend for %s \"%s\": %.160s: %.160s; "
                            "\"cpu\" works",
                            name != NULL ? "name" : "device", wanted, found[i]->path,
                            found[i]->reason);
        }
    }
    return moe_fail(
        MOE_E_UNSUPPORTED,
        "moe_context_create: no backend for %s \"%s\"%s%s: no plugin in desc.plugin_path"
        ", $MOE_PLUGIN_PATH or %.200s has it; \"cpu\" works",
        name != NULL ? "name" : "device", wanted,
        name != NULL && device != MOE_DEVICE_UNSET ? " on device " : "",
        name != NULL && device != MOE_DEVICE_UNSET ? moe_device_name(device) : "",
        moei_plugins_own_text(folder, sizeof folder));
}

// Built in, else from a plugin.
static moe_status choose_backend(const moe_context_desc *desc, const char *variable,
                                 const moei_backend **out)
{
    const moei_plugin *found[MOEI_MAX_PLUGINS];
    const moe_device_type device =
        desc->device != MOE_DEVICE_UNSET || desc->backend != NULL ? desc->device : MOE_DEVICE_CPU;
    const moei_backend *backend;
    for (size_t i = 0; (backend = moei_backend_at(i)) != NULL; i++) {
        if (is_wanted(backend, desc->backend, device)) {
            *out = backend;
            return MOE_OK;
        }
    }
    const size_t count = moei_plugins_find(desc->plugin_path, variable, found);
    for (size_t i = 0; i < count; i++) {
        if (found[i]->backend != NULL && is_wanted(found[i]->backend, desc->backend, device)) {
            *out = found[i]->backend;
            return MOE_OK;
        }
    }
    return no_backend(desc->backend, device, found, count);
}

// Keeps where plugins are looked for, for later reports.
static moe_status keep_search(moe_context *ctx, const char *path, const char *variable)
{
    path = path != NULL ? path : "";
    variable = variable != NULL ? variable : "";
    const size_t first = strlen(path) + 1;
    const size_t second = strlen(variable) + 1;
    if (first + second == 2) {
        return MOE_OK;
    }
    ctx->plugins = moei_alloc(ctx, first + second, 16);
    MOE_REQUIRE(ctx->plugins != NULL, MOE_E_NO_MEMORY,
                "moe_context_create: no memory for %zu bytes", first + second);
    ctx->plugins_bytes = first + second;
    memcpy(ctx->plugins, path, first);
    memcpy(ctx->plugins + first, variable, second);
    return MOE_OK;
}

static moe_status start_threads(moe_context *ctx, const moe_context_desc *desc)
{
    if (desc->pool != NULL) {
        ctx->pool = *desc->pool;
        const size_t size = ctx->pool.size(ctx->pool.self);
        ctx->num_threads = size < 1 ? 1 : size > 65536 ? 65536 : (int)size;
        return MOE_OK;
    }
    ctx->num_threads = desc->num_threads > 0 ? desc->num_threads : moei_cpu_count();
    MOE_TRY(moei_pool_create(&ctx->allocator, ctx->num_threads, &ctx->own_pool));
    ctx->pool = moei_pool_view(ctx->own_pool);
    return MOE_OK;
}

// Everything that a context holds; what it has got when it fails is released by destroy.
static moe_status fill_context(moe_context *ctx, const moe_context_desc *desc, const char *variable,
                               uint64_t detected)
{
    const moei_backend *backend = ctx->backend;
    MOE_TRY(choose_isa(desc, backend, detected, &ctx->isa));
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        char text[320];
        if (op == MOEI_OP_GGEMM) {
            continue; // chosen by problem
        }
        const int row = moei_registry_select(backend->kernels, backend->num_kernels, (moei_op)op,
                                             ctx->isa, NULL, &why);
        MOE_REQUIRE(row >= 0, MOE_E_UNSUPPORTED,
                    "moe_context_create: backend \"%s\": no kernel of op %s: %s", backend->name,
                    moei_op_name((moei_op)op), moei_whynot_text(backend, &why, text, sizeof text));
        ctx->op_kernel[op] = &backend->kernels[row];
    }
    MOE_TRY(keep_search(ctx, desc->plugin_path, variable));
    MOE_TRY(start_threads(ctx, desc));
    if (backend->open != NULL) {
        MOE_TRY(backend->open(ctx, desc->device_id, &ctx->device));
        ctx->opened = true;
    }
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
    // Ignored where a program runs with more rights than its caller's.
    const char *variable = secure_getenv("MOE_PLUGIN_PATH");
    const moei_backend *backend = NULL;
    MOE_TRY(choose_backend(desc, variable, &backend));
    MOE_REQUIRE(!backend->host_memory || desc->device_id == 0, MOE_E_ARGUMENT,
                "moe_context_create: desc.device_id = %d, backend \"%s\" has 0 only",
                (int)desc->device_id, backend->name);
    uint64_t detected = 0;
    MOE_REQUIRE(backend->probe(&detected, text, sizeof text), MOE_E_UNSUPPORTED,
                "moe_context_create: backend \"%s\": %s; \"cpu\" works", backend->name, text);
    const moe_allocator *allocator = desc->allocator != NULL ? desc->allocator : &default_allocator;
    moe_context *ctx = allocator->alloc(allocator->self, sizeof *ctx, 64);
    MOE_REQUIRE(ctx != NULL, MOE_E_NO_MEMORY, "moe_context_create: no memory for %zu bytes",
                sizeof *ctx);
    memset(ctx, 0, sizeof *ctx);
    ctx->allocator = *allocator;
    ctx->backend = backend;
    ctx->device_id = desc->device_id;
    ctx->log = desc->log;
    ctx->log_self = desc->log_self;
    const moe_status status = fill_context(ctx, desc, variable, detected);
    if (status != MOE_OK) {
        moe_context_destroy(ctx);
        return status;
    }
    if (ctx->log != NULL) {
        ctx->log(ctx->log_self, 2, text);
    }
    *out = ctx;
    return MOE_OK;
}

void moe_context_destroy(moe_context *ctx)
{
    if (ctx != NULL) {
        const moe_allocator allocator = ctx->allocator;
        if (ctx->opened && ctx->backend->close != NULL) {
            ctx->backend->close(ctx, ctx->device);
        }
        moei_pool_destroy(ctx->own_pool);
        moei_free(ctx, ctx->plugins, ctx->plugins_bytes);
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

int moe_context_host_memory(const moe_context *ctx)
{
    return ctx->backend->host_memory ? 1 : 0;
}

// The plugins that a context's search finds.
static size_t find_plugins(const moe_context *ctx, const moei_plugin *found[MOEI_MAX_PLUGINS])
{
    return ctx->plugins == NULL
               ? moei_plugins_find(NULL, NULL, found)
               : moei_plugins_find(ctx->plugins, ctx->plugins + strlen(ctx->plugins) + 1, found);
}

static int visit_kernels_of(const moe_context *ctx, const moei_backend *backend,
                            int (*visit)(void *self, const moe_kernel_info *info), void *self)
{
    for (size_t i = 0; i < backend->num_kernels; i++) {
        const moei_kernel *kernel = &backend->kernels[i];
        char text[320];
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        const bool here = backend == ctx->backend;
        const bool available = here && moei_registry_supports(kernel, ctx->isa, NULL, &why);
        const moe_kernel_info info = {
            .name = kernel->name,
            .backend = backend->name,
            .op = moei_op_name(kernel->op),
            .isa = kernel->isa_name,
            .arith = kernel->arith == MOEI_ARITH_NONE ? "" : moei_arith_get(kernel->arith)->name,
            .available = available,
            .why = !here ? "the context uses another backend"
                         : moei_whynot_text(backend, &why, text, sizeof text),
            .runs = __atomic_load_n(&backend->runs[i], __ATOMIC_RELAXED),
        };
        const int result = visit(self, &info);
        if (result != 0) {
            return result;
        }
    }
    return 0;
}

int moe_context_visit_kernels(const moe_context *ctx,
                              int (*visit)(void *self, const moe_kernel_info *info), void *self)
{
    const moei_plugin *found[MOEI_MAX_PLUGINS];
    const moei_backend *backend;
    int result = 0;
    for (size_t b = 0; result == 0 && (backend = moei_backend_at(b)) != NULL; b++) {
        result = visit_kernels_of(ctx, backend, visit, self);
    }
    const size_t count = result == 0 ? find_plugins(ctx, found) : 0;
    for (size_t p = 0; result == 0 && p < count; p++) {
        if (found[p]->backend != NULL) {
            result = visit_kernels_of(ctx, found[p]->backend, visit, self);
        }
    }
    return result;
}

static int visit_backend(const moei_backend *backend,
                         int (*visit)(void *self, const moe_backend_info *info), void *self)
{
    char text[2048] = "";
    uint64_t isa = 0;
    const bool available = backend->probe(&isa, text, sizeof text);
    const moe_backend_info info = {backend->name, available, text};
    return visit(self, &info);
}

int moe_context_visit_backends(const moe_context *ctx,
                               int (*visit)(void *self, const moe_backend_info *info), void *self)
{
    const moei_plugin *found[MOEI_MAX_PLUGINS];
    const moei_backend *backend;
    const char *known;
    char text[2 * PATH_MAX + 600];
    int result = 0;
    for (size_t b = 0; result == 0 && (backend = moei_backend_at(b)) != NULL; b++) {
        result = visit_backend(backend, visit, self);
    }
    const size_t count = result == 0 ? find_plugins(ctx, found) : 0;
    for (size_t p = 0; result == 0 && p < count; p++) {
        if (found[p]->backend != NULL) {
            result = visit_backend(found[p]->backend, visit, self);
        } else {
            (void)snprintf(text, sizeof text, "%s: %s", found[p]->path, found[p]->reason);
            const moe_backend_info info = {found[p]->name, 0, text};
            result = visit(self, &info);
        }
    }
    for (size_t k = 0; result == 0 && (known = moei_plugins_known(k)) != NULL; k++) {
        bool seen = false;
        for (size_t p = 0; p < count; p++) {
            seen = seen || strcmp(found[p]->name, known) == 0;
        }
        if (!seen) {
            char folder[2 * PATH_MAX];
            (void)snprintf(text, sizeof text, "no libmoe_%s.so in $MOE_PLUGIN_PATH or %s", known,
                           moei_plugins_own_text(folder, sizeof folder));
            const moe_backend_info info = {known, 0, text};
            result = visit(self, &info);
        }
    }
    return result;
}

// ---- memory ------------------------------------------------------------------------------------

#define MEMORY_ALIGN 256

moe_status moe_memory_alloc(const moe_context *ctx, size_t bytes, void **out)
{
    const char *call = "moe_memory_alloc";
    MOE_REQUIRE(ctx != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                ctx == NULL ? "ctx" : "out");
    const size_t size = bytes > 0 ? bytes : 1;
    if (!ctx->backend->host_memory) {
        const moei_exec exec = moei_exec_make(ctx, NULL);
        return ctx->backend->memory_alloc(&exec, size, out);
    }
    void *memory = moei_alloc(ctx, size, MEMORY_ALIGN);
    MOE_REQUIRE(memory != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call, size);
    *out = memory;
    return MOE_OK;
}

void moe_memory_free(const moe_context *ctx, void *memory, size_t bytes)
{
    const size_t size = bytes > 0 ? bytes : 1;
    if (memory == NULL) {
        return;
    }
    if (ctx->backend->host_memory) {
        moei_free(ctx, memory, size);
        return;
    }
    const moei_exec exec = moei_exec_make(ctx, NULL);
    ctx->backend->memory_free(&exec, memory, size);
}

moe_status moe_memory_copy(const moe_context *ctx, void *to, const void *from, size_t bytes,
                           moe_copy direction, void *stream)
{
    const char *call = "moe_memory_copy";
    MOE_REQUIRE(ctx != NULL && ((to != NULL && from != NULL) || bytes == 0), MOE_E_ARGUMENT,
                "%s: %s is NULL", call,
                ctx == NULL  ? "ctx"
                : to == NULL ? "to"
                             : "from");
    MOE_REQUIRE(direction == MOE_COPY_TO_DEVICE || direction == MOE_COPY_FROM_DEVICE,
                MOE_E_ARGUMENT, "%s: direction = %d, must be %d or %d", call, (int)direction,
                MOE_COPY_TO_DEVICE, MOE_COPY_FROM_DEVICE);
    if (bytes == 0) {
        return MOE_OK;
    }
    if (ctx->backend->host_memory) {
        memcpy(to, from, bytes);
        return MOE_OK;
    }
    const moei_exec exec = moei_exec_make(ctx, stream);
    return ctx->backend->memory_copy(&exec, to, from, bytes, direction);
}
