// SPDX-License-Identifier: Apache-2.0
#include "unit/packed_rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/isa.h"

#define MAX_ROWS 256
#define HEADER   ((size_t)16) // the sum, twice

static packed_rows rows;
static const moei_backend *cpu;
static moei_kernel kernels[MAX_ROWS];
static const moei_kernel *origin[MAX_ROWS]; // whose cost a packed row halves
static char names[MAX_ROWS][64];
static uint64_t runs[MAX_ROWS];

#define REQUIRE(condition, code, ...)                                                              \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            return rows.fail(code, __VA_ARGS__);                                                   \
        }                                                                                          \
    } while (0)

/// Bytes of the parts of a canonical expert.
typedef struct sizes {
    size_t part[3]; // values, scales, zero points
    size_t all;
} sizes;

static sizes sizes_of(const moei_matrices *m)
{
    const int64_t values =
        m->value_k_stride != 0 ? m->k * m->value_k_stride : m->n * m->value_n_stride;
    sizes s = {{(size_t)values,
                (size_t)m->scale_e_stride * (size_t)moe_dtype_bits(m->scale_dtype) / 8,
                (size_t)m->zero_e_stride},
               0};
    s.all = s.part[0] + s.part[1] + s.part[2];
    return s;
}

static size_t packed_bytes(const moei_kernel *kernel, const moei_matrices *m)
{
    (void)kernel;
    return rows.too_large ? SIZE_MAX : (HEADER + sizes_of(m).all + 15) / 16 * 16;
}

static uint64_t sum_of(const uint8_t *bytes, size_t n)
{
    uint64_t sum = 1469598103934665603u;
    size_t i = 0;
    for (; i + sizeof sum <= n; i += sizeof sum) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof word);
        sum = (sum ^ word) * 1099511628211u;
    }
    for (; i < n; i++) {
        sum = (sum ^ bytes[i]) * 1099511628211u;
    }
    return sum;
}

// n bytes in reverse, eight at a time: sanitizers look at each access.
static void reverse(const uint8_t *from, size_t n, uint8_t *to)
{
    size_t i = 0;
    for (; i + sizeof(uint64_t) <= n; i += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, from + i, sizeof word);
        word = __builtin_bswap64(word);
        memcpy(to + n - i - sizeof word, &word, sizeof word);
    }
    for (; i < n; i++) {
        to[n - i - 1] = from[i];
    }
}

static moe_status pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to)
{
    const sizes s = sizes_of(from);
    const uint8_t *parts[3] = {from->values, from->scales, from->zeros};
    uint8_t *end = to + HEADER + s.all;
    (void)kernel;
    if (rows.refuse_after == 0) {
        memset(to, 0xEE, s.all);
        return rows.fail(MOE_E_VALUE, "packed: told to refuse");
    }
    rows.refuse_after -= rows.refuse_after > 0;
    for (size_t i = 0; from->scale_dtype == MOE_E8M0 && i < s.part[1]; i++) {
        REQUIRE(parts[1][i] >= 2 && parts[1][i] <= 252, MOE_E_VALUE,
                "packed: scale [%zu] has code %d, 2..252 are kept", i, (int)parts[1][i]);
    }
    for (int p = 0; p < 3; p++) {
        end -= s.part[p];
        reverse(parts[p], s.part[p], end);
    }
    const uint64_t sum = sum_of(to + HEADER, s.all);
    memcpy(to, &sum, sizeof sum);
    memcpy(to + 8, &sum, sizeof sum);
    (void)__atomic_fetch_add(&rows.packed, 1, __ATOMIC_RELAXED);
    return MOE_OK;
}

static void take_out(const uint8_t *from, const sizes *s, uint8_t *const parts[3])
{
    const uint8_t *end = from + HEADER + s->all;
    for (int p = 0; p < 3; p++) {
        end -= s->part[p];
        reverse(end, s->part[p], parts[p]);
    }
}

static void unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    const sizes s = sizes_of(to);
    uint8_t *const parts[3] = {(uint8_t *)(uintptr_t)to->values, (uint8_t *)(uintptr_t)to->scales,
                               (uint8_t *)(uintptr_t)to->zeros};
    (void)kernel;
    take_out(from, &s, parts);
    (void)__atomic_fetch_add(&rows.unpacked, 1, __ATOMIC_RELAXED);
}

// The canonical experts in `memory`.
static moe_status open_blocks(const moei_matrices *w, uint8_t *memory, moei_matrices *out)
{
    const sizes s = sizes_of(w);
    const size_t count = (size_t)w->count;
    uint8_t *all[3] = {memory, memory + count * s.part[0],
                       memory + count * (s.part[0] + s.part[1])};
    for (int32_t e = 0; e < w->count; e++) {
        const uint8_t *block = w->values + e * w->value_e_stride;
        const uint64_t sum = sum_of(block + HEADER, s.all);
        REQUIRE(memcmp(block, &sum, sizeof sum) == 0 && memcmp(block + 8, &sum, 8) == 0,
                MOE_E_DEVICE, "packed: expert %d is not a packed one", (int)e);
        uint8_t *const parts[3] = {all[0] + (size_t)e * s.part[0], all[1] + (size_t)e * s.part[1],
                                   all[2] + (size_t)e * s.part[2]};
        take_out(block, &s, parts);
    }
    *out = *w;
    out->layout = MOEI_LAYOUT_ROW;
    out->values = all[0];
    out->value_e_stride = (int64_t)s.part[0];
    out->scales = s.part[1] > 0 ? all[1] : NULL;
    out->zeros = s.part[2] > 0 ? all[2] : NULL;
    return MOE_OK;
}

static moe_status ggemm(const moei_exec *exec, const moei_kernel *kernel,
                        const moek_ggemm_args *args)
{
    moek_ggemm_args canonical = *args;
    REQUIRE(args->w.layout == kernel->layout, MOE_E_DEVICE, "packed: kernel %s is given layout %d",
            kernel->name, (int)args->w.layout);
    if (kernel->layout == MOEI_LAYOUT_ROW) {
        return cpu->ggemm(exec, kernel, args);
    }
    REQUIRE(args->w.scales == NULL && args->w.zeros == NULL, MOE_E_DEVICE,
            "packed: scales or zero points beside the blocks");
    uint8_t *memory = malloc((size_t)args->w.count * sizes_of(&args->w).all + 1);
    REQUIRE(memory != NULL, MOE_E_NO_MEMORY, "packed: no memory");
    moe_status status = open_blocks(&args->w, memory, &canonical.w);
    if (status == MOE_OK) {
        status = cpu->ggemm(exec, kernel, &canonical);
    }
    free(memory);
    return status;
}

static double half_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    return origin[kernel - kernels]->cost(kernel, problem) / 2.0;
}

packed_rows *packed_rows_make(const moei_backend *with)
{
    const uint64_t here = moei_isa_detect();
    size_t n = with->num_kernels;
    cpu = with;
    rows = (packed_rows){.backend = *cpu, .refuse_after = -1, .fail = moe_fail};
    if (2 * n > MAX_ROWS) { // a packed row for each canonical one, at most
        abort();
    }
    memcpy(kernels, cpu->kernels, n * sizeof kernels[0]);
    for (size_t i = 0; i < cpu->num_kernels; i++) {
        if (kernels[i].layout != MOEI_LAYOUT_ROW) {
            kernels[i].isa = UINT64_MAX; // the CPU's own packed rows never run here
        } else if (kernels[i].op == MOEI_OP_GGEMM && (kernels[i].isa & ~here) == 0) {
            (void)snprintf(names[n], sizeof names[n], "%s_packed", kernels[i].name);
            origin[n] = &cpu->kernels[i];
            kernels[n] = kernels[i];
            kernels[n].name = names[n];
            kernels[n].layout = MOEI_LAYOUT_PACKED;
            kernels[n++].cost = half_cost;
        }
    }
    rows.backend.kernels = kernels;
    rows.backend.num_kernels = n;
    rows.backend.runs = runs;
    rows.backend.packed_bytes = packed_bytes;
    rows.backend.pack = pack;
    rows.backend.unpack = unpack;
    rows.backend.ggemm = ggemm;
    rows.backend.run_steps = NULL; // it would not ask ggemm
    return &rows;
}

void packed_rows_move(moe_context *ctx, const moei_backend *backend)
{
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        if (ctx->op_kernel[op] != NULL) {
            ctx->op_kernel[op] = &backend->kernels[ctx->op_kernel[op] - ctx->backend->kernels];
        }
    }
    ctx->backend = backend;
}
