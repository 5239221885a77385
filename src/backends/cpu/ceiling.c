// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured on all threads of the context: reads of memory that no
// cache holds, and multiply-adds of floats, of bf16 matrices and of 8-bit integers in registers.
// For benchmarks; a run never comes here.
#define _GNU_SOURCE
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/peak.h"
#include "core/huge.h"
#include "core/isa.h"

#define PASSES      5                 // the median counts, as of the rows that are measured beside
#define SECONDS     1                 // after which no pass begins
#define CHUNK_BYTES ((size_t)1 << 22) // of a task: many per thread, so that all end together
#define LINE_WORDS  8
#define AHEAD_WORDS 512 // that are asked for, as kernels do: a page
#define PEAK_TASKS  16  // per thread
#ifndef MOEI_CEILING_BRIEF
#define READ_BYTES  ((size_t)1 << 26) // at least
#define READ_CACHES 4                 // at least; a cache then serves next to nothing of it
#define PEAK_STEPS  200000            // of a task; about a millisecond
#else // a sanitizer looks at every access, and learns nothing from many
#define READ_BYTES  (4 * CHUNK_BYTES)
#define READ_CACHES 0
#define PEAK_STEPS  10000
#endif

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Passes per second: the median, the higher one of two in the middle.
static void measure(const moe_context *ctx, size_t tasks, moe_task_fn task, void *arg,
                    double *per_second)
{
    const double first = now();
    double rates[PASSES]; // ascending
    int passes = 0;
    while (passes < PASSES && (passes == 0 || now() - first < SECONDS)) {
        const double begin = now();
        moei_parallel_for(&ctx->pool, tasks, task, arg);
        const double rate = 1.0 / (now() - begin);
        int at = passes++;
        for (; at > 0 && rates[at - 1] > rate; at--) {
            rates[at] = rates[at - 1];
        }
        rates[at] = rate;
    }
    *per_second = rates[passes / 2];
}

// ---- reads -------------------------------------------------------------------------------------

typedef struct reading {
    const uint64_t *data;
    uint64_t *sums; // one line per chunk
} reading;

static void fill_chunk(void *arg, size_t chunk)
{
    const reading *r = arg;
    memset((uint8_t *)(uintptr_t)r->data + chunk * CHUNK_BYTES, (int)chunk, CHUNK_BYTES);
}

static void read_chunk(void *arg, size_t chunk)
{
    const reading *r = arg;
    const uint64_t *data = r->data + chunk * (CHUNK_BYTES / sizeof *r->data);
    uint64_t sum[LINE_WORDS] = {0};
    for (size_t i = 0; i < CHUNK_BYTES / sizeof *data; i += LINE_WORDS) {
        __builtin_prefetch(data + i + AHEAD_WORDS);
        for (size_t w = 0; w < LINE_WORDS; w++) {
            sum[w] += data[i + w];
        }
    }
    for (size_t w = 1; w < LINE_WORDS; w++) {
        sum[0] += sum[w];
    }
    r->sums[chunk * LINE_WORDS] = sum[0];
}

static size_t read_bytes(void)
{
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t bytes = cache > 0 ? READ_CACHES * (size_t)cache : 0;
    return (bytes > READ_BYTES ? bytes : READ_BYTES) / CHUNK_BYTES * CHUNK_BYTES;
}

static moe_status measure_read(const moe_context *ctx, double *per_second)
{
    const size_t bytes = read_bytes();
    const size_t chunks = bytes / CHUNK_BYTES;
    const size_t sum_bytes = chunks * LINE_WORDS * sizeof(uint64_t);
    uint64_t *memory = moei_alloc(ctx, bytes + sum_bytes, 64);
    MOE_REQUIRE(memory != NULL, MOE_E_NO_MEMORY, "cpu: no memory for %zu bytes to be read",
                bytes + sum_bytes);
    reading r = {memory, memory + bytes / sizeof *memory};
    moei_ask_huge_pages(memory, bytes); // as weights have them
    moei_parallel_for(&ctx->pool, chunks, fill_chunk, &r);
    measure(ctx, chunks, read_chunk, &r, per_second);
    *per_second *= (double)bytes;
    moei_free(ctx, memory, bytes + sum_bytes);
    return MOE_OK;
}

// ---- multiply-adds -----------------------------------------------------------------------------

typedef struct peak {
    moei_cpu_peak_fn *loop;
    double operations; // of a task
} peak;

static void peak_task(void *arg, size_t task)
{
    peak *p = arg;
    float sum;
    // By 1 and 0 the chains stay what they are: neither infinite nor subnormal.
    const double operations = p->loop(PEAK_STEPS, 1.0f, 0.0f, &sum);
    if (task == 0) {
        p->operations = operations;
    }
}

static void measure_peak(const moe_context *ctx, peak *p, double *per_second)
{
    const size_t tasks = (size_t)ctx->num_threads * PEAK_TASKS;
    measure(ctx, tasks, peak_task, p, per_second);
    *per_second *= p->operations * (double)tasks;
}

static moe_status measure_f32(const moe_context *ctx, double *per_second)
{
    peak p = {.loop = moei_cpu_peak__ref};
#ifdef MOE_HAVE_REF_FMA
    p.loop = (ctx->isa & MOEI_ISA_AVX2_FMA) != 0 ? moei_cpu_peak__ref_fma : p.loop;
#endif
#ifdef MOE_HAVE_AVX512
    p.loop = (ctx->isa & MOEI_ISA_AVX512) != 0 ? moei_cpu_peak__avx512 : p.loop;
#endif
    measure_peak(ctx, &p, per_second);
    return MOE_OK;
}

static moe_status measure_bf16(const moe_context *ctx, double *per_second)
{
    peak p = {.loop = NULL};
#ifdef MOE_HAVE_AMX
    p.loop = (ctx->isa & MOEI_ISA_AMX_BF16) != 0 ? moei_cpu_peak_bf16__amx : NULL;
#endif
    MOE_REQUIRE(p.loop != NULL, MOE_E_UNSUPPORTED,
                "cpu: ceiling %d, of bf16 matrices, is not measured without AMX; kernels multiply "
                "in f32 (ceiling %d)",
                (int)MOEI_CEILING_BF16, MOEI_CEILING_F32);
    measure_peak(ctx, &p, per_second);
    return MOE_OK;
}

static moe_status measure_i8(const moe_context *ctx, double *per_second)
{
    peak p = {.loop = NULL};
#ifdef MOE_HAVE_AVX2
    p.loop = (ctx->isa & MOEI_ISA_AVX2_FMA) != 0 ? moei_cpu_peak_i8__avx2 : p.loop;
#endif
#ifdef MOE_HAVE_AVX512
    p.loop = (ctx->isa & MOEI_ISA_AVX512_VNNI) != 0 ? moei_cpu_peak_i8__avx512_vnni : p.loop;
#endif
    MOE_REQUIRE(p.loop != NULL, MOE_E_UNSUPPORTED,
                "cpu: no ceiling of 8-bit integers is measured without AVX2");
    measure_peak(ctx, &p, per_second);
    return MOE_OK;
}

moe_status moei_cpu_ceiling(const moei_exec *exec, moei_ceiling which, double *per_second)
{
    switch (which) {
    case MOEI_CEILING_READ:
        return measure_read(exec->ctx, per_second);
    case MOEI_CEILING_F32:
        return measure_f32(exec->ctx, per_second);
    case MOEI_CEILING_BF16:
        return measure_bf16(exec->ctx, per_second);
    case MOEI_CEILING_FP8: // of 8 bits: here integers
        return measure_i8(exec->ctx, per_second);
    default:
        return moe_fail(MOE_E_UNSUPPORTED,
                        "cpu: ceiling %d is not measured; the kernels of this backend multiply in "
                        "f32 (ceiling %d)",
                        (int)which, MOEI_CEILING_F32);
    }
}
