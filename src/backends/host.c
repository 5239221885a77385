// SPDX-License-Identifier: Apache-2.0
// What plugins get of the library (moei_host).
#include "backends/backends.h"
#include "backends/plugins.h"
#include "core/isa.h"
#include "ops/ggemm.h"
#include "quant/elements.h"
#include "quant/specs.h"

static void host_log(const moe_context *ctx, int level, const char *line)
{
    if (ctx->log != NULL) {
        ctx->log(ctx->log_self, level, line);
    }
}

static void host_parallel_for(const moe_context *ctx, size_t n, moe_task_fn task, void *arg)
{
    moei_parallel_for(&ctx->pool, n, task, arg);
}

static const moei_arith_info *host_arith(moei_arith arith)
{
    return (unsigned)arith < MOEI_NUM_ARITH ? moei_arith_get(arith) : NULL;
}

static moe_status host_cpu_run(const moei_exec *exec, moei_op op, const void *args)
{
    const moei_backend *cpu = moei_backend_for(MOE_DEVICE_CPU);
    moei_whynot why;
    const int row = op == MOEI_OP_GGEMM ? -1
                                        : moei_registry_select(cpu->kernels, cpu->num_kernels, op,
                                                               moei_isa_detect(), NULL, &why);
    MOE_REQUIRE(row >= 0, MOE_E_UNSUPPORTED, "cpu_run: op %s; ops other than ggemm work",
                moei_op_name(op));
    const moei_kernel *kernel = &cpu->kernels[row];
    (void)__atomic_fetch_add(&cpu->runs[row], 1, __ATOMIC_RELAXED);
    switch (op) {
    case MOEI_OP_ROUTE:
        return cpu->route(exec, kernel, args);
    case MOEI_OP_PLACE:
        return cpu->place(exec, kernel, args);
    case MOEI_OP_SORT:
        return cpu->sort(exec, kernel, args);
    case MOEI_OP_QUANTIZE:
        return cpu->quantize(exec, kernel, args);
    case MOEI_OP_GLU:
        return cpu->glu(exec, kernel, args);
    default:
        return cpu->combine(exec, kernel, args);
    }
}

const moei_host *moei_host_table(void)
{
    static const moei_host host = {
        .abi = MOE_BACKEND_ABI,
        .fail = moe_fail,
        .log = host_log,
        .alloc = moei_alloc,
        .free = moei_free,
        .parallel_for = host_parallel_for,
        .dtype_name = moe_dtype_name,
        .dtype_bits = moe_dtype_bits,
        .format = moei_format,
        .quant = moei_quant_get,
        .arith = host_arith,
        .ggemm_fold = moei_ggemm_fold,
        .ggemm_arith = moei_ggemm_arith,
        .load_f32 = moei_load_f32,
        .store_f32 = moei_store_f32,
        .cpu_run = host_cpu_run,
    };
    return &host;
}
