// SPDX-License-Identifier: Apache-2.0
// Clocks and ceilings: the device's own where the backend has them, else the host's clock.
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "bench.h"
#include "ops/ggemm.h"

// How long a row is measured, and how often at least and at most.
#define DEVICE_SECONDS 0.1
#define HOST_SECONDS   2.0
#define DEVICE_LEAST   5
#define HOST_LEAST     3
#define MOST           100

bool bench_can_time(const moe_context *ctx, int *code)
{
    const moei_backend *backend = ctx->backend;
    if (backend->time == NULL && !backend->host_memory) {
        (void)fprintf(stderr, "moe: backend %s cannot time: it has no clock of its device\n",
                      backend->name);
        *code = CLI_UNSUPPORTED;
        return false;
    }
    return true;
}

bool bench_measure_ceilings(const moe_context *ctx, bench_ceilings *out, int *code)
{
    const moei_backend *backend = ctx->backend;
    const moei_exec exec = moei_exec_make(ctx, NULL);
    if (backend->ceiling == NULL) {
        (void)fprintf(stderr, "moe: backend %s measures no ceilings: floors are left out\n",
                      backend->name);
        return true;
    }
    for (int which = 0; which < MOEI_NUM_CEILINGS; which++) {
        const moe_status status =
            backend->ceiling(&exec, (moei_ceiling)which, &out->per_second[which]);
        if (status == MOE_E_UNSUPPORTED) { // it has no such unit
            out->per_second[which] = 0;
        } else if (bench_failed(status, code)) {
            return false;
        }
    }
    return true;
}

bool bench_raise_ceilings(const moe_context *ctx, bench_ceilings *last, bench_ceilings *of_row,
                          int *code)
{
    *of_row = *last;
    if (!ctx->backend->host_memory) {
        return true;
    }
    *last = (bench_ceilings){{0}};
    if (!bench_measure_ceilings(ctx, last, code)) {
        return false;
    }
    for (int i = 0; i < MOEI_NUM_CEILINGS; i++) {
        of_row->per_second[i] = fmax(of_row->per_second[i], last->per_second[i]);
    }
    return true;
}

uint64_t *bench_runs(const moei_backend *backend)
{
    uint64_t *runs = bench_take(backend->num_kernels * sizeof *runs);
    for (size_t i = 0; runs != NULL && i < backend->num_kernels; i++) {
        runs[i] = __atomic_load_n(&backend->runs[i], __ATOMIC_RELAXED);
    }
    return runs;
}

json_t *bench_kernels_since(const moei_backend *backend, const uint64_t *runs)
{
    json_t *names = json_array();
    for (size_t i = 0; i < backend->num_kernels; i++) {
        if (__atomic_load_n(&backend->runs[i], __ATOMIC_RELAXED) != runs[i]) {
            (void)json_array_append_new(names, json_string(backend->kernels[i].name));
        }
    }
    return names;
}

// The fastest unit that takes what the product reads; a device without it uses the next.
moei_ceiling bench_peak_of(const bench_ceilings *ceilings, const moe_layer_desc *desc, int gemm,
                           bool host)
{
    const moe_dtype operand = moei_gemm_operand_dtype(
        &desc->gemm[gemm], gemm == 0 || desc->inter_dtype == 0 ? desc->x_dtype : desc->inter_dtype);
    const bool narrow_float = operand == MOE_E4M3FN || operand == MOE_E4M3FNUZ ||
                              operand == MOE_E5M2 || operand == MOE_E2M1 || operand == MOE_E2M3 ||
                              operand == MOE_E3M2;
    const bool half = operand == MOE_BF16 || operand == MOE_F16;
    const bool integer = operand == MOE_I8 || operand == MOE_I16;
    if ((host ? integer : narrow_float) && ceilings->per_second[MOEI_CEILING_FP8] > 0) {
        return MOEI_CEILING_FP8;
    }
    if ((narrow_float || half) && ceilings->per_second[MOEI_CEILING_BF16] > 0) {
        return MOEI_CEILING_BF16;
    }
    return ceilings->per_second[MOEI_CEILING_F32] > 0 ? MOEI_CEILING_F32 : MOEI_NUM_CEILINGS;
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// What a backend's `time` does, for one whose calls are complete when they return.
static moe_status host_time(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                            void *arg, int32_t repeats, double *seconds)
{
    (void)exec;
    MOE_TRY(enqueue(arg, NULL));
    for (int32_t i = 0; i < repeats; i++) {
        const double begin = now();
        MOE_TRY(enqueue(arg, NULL));
        seconds[i] = now() - begin;
    }
    return MOE_OK;
}

bool bench_time(bench_sets *sets, int64_t repeats, double **seconds, int *count, int *code)
{
    const moe_context *ctx = sets->layer->ctx;
    const moei_backend *backend = ctx->backend;
    const moei_exec exec = moei_exec_make(ctx, NULL);
    const bool host = backend->time == NULL;
    double first = 0;
    moe_status (*time)(const moei_exec *, moe_status (*)(void *, void *), void *, int32_t,
                       double *) = host ? host_time : backend->time;
    if (repeats == 0) {
        const double budget = host ? HOST_SECONDS : DEVICE_SECONDS;
        const int64_t least = host ? HOST_LEAST : DEVICE_LEAST;
        if (bench_failed(time(&exec, bench_enqueue, sets, 1, &first), code)) {
            return false;
        }
        repeats = first * MOST <= budget ? MOST : (int64_t)(budget / first);
        repeats = repeats < least ? least : repeats;
    }
    *seconds = malloc((size_t)repeats * sizeof **seconds);
    if (*seconds == NULL) {
        (void)fprintf(stderr, "moe: no memory for %lld repeats\n", (long long)repeats);
        return false;
    }
    *count = (int)repeats;
    return !bench_failed(time(&exec, bench_enqueue, sets, (int32_t)repeats, *seconds), code);
}
