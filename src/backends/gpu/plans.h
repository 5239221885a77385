// SPDX-License-Identifier: Apache-2.0
// How route and sort divide their work: the host that launches a body and the body itself compute
// the same from the arguments.
#ifndef MOEI_GPU_PLANS_H
#define MOEI_GPU_PLANS_H

#include "moe/backend.h"
#include "numerics/hd.h"

/// Shared memory that a block may have; a machine with less defines less. 64 KiB hold every sort,
/// and every route of 4096 rows.
#ifndef MOEI_GPU_SHARED_MAX
#define MOEI_GPU_SHARED_MAX (200 << 10)
#endif
#define MOEI_GPU_SHARED_PLAIN (48 << 10) // every machine has it without being asked

// ---- route -------------------------------------------------------------------------------------

#define MOEI_GPU_ROUTE_WARPS 8   // tokens of a block at most
#define MOEI_GPU_ROUTE_ROWS  512 // rows of the path that holds a token in registers

/// True where a token fits into a warp's registers: a lane has up to 16 rows, one slot and one
/// shared score.
MOE_HD bool moei_gpu_route_in_registers(const moek_route_args *a)
{
    const moe_route_desc *d = &a->desc;
    return (int64_t)a->num_experts + d->zero_experts + d->shared_scores <= MOEI_GPU_ROUTE_ROWS &&
           a->top_k <= 32 && d->shared_scores <= 32 && d->num_groups <= 1 &&
           d->scoring != MOE_SCORING_SPARSEMIXER;
}

/// Words of shared memory that a token needs otherwise: values and keys of all rows, ids and
/// weights of the slots (before that, the scores of groups).
MOE_HD uint32_t moei_gpu_route_words(const moek_route_args *a)
{
    const int32_t rows = a->num_experts + a->desc.zero_experts + a->desc.shared_scores;
    const int32_t slots = a->top_k > a->desc.num_groups ? a->top_k : a->desc.num_groups;
    return 2u * (uint32_t)rows + 2u * (uint32_t)slots;
}

// ---- sort --------------------------------------------------------------------------------------

typedef struct moei_gpu_sort_plan {
    uint32_t threads;
    uint32_t counting; // warps that walk slots; each has a counter per expert
    uint32_t segment;  // slots of such a warp, a multiple of 32
    uint32_t shared;   // bytes: the counters, then two rows of sums of warps
} moei_gpu_sort_plan;

#define MOEI_GPU_SORT_WARPS 32
#define MOEI_GPU_SORT_SUMS  (2 * MOEI_GPU_SORT_WARPS) // words

/// A segment of up to 128 slots is one step of four per lane; large numbers of experts leave room
/// for few counting warps.
MOE_HD moei_gpu_sort_plan moei_gpu_plan_sort(int64_t slots, int32_t num_experts,
                                             uint32_t most_threads)
{
    const uint32_t most_warps = most_threads / 32;
    const uint32_t experts = (uint32_t)num_experts;
    const uint32_t n = (uint32_t)slots;
    const uint32_t plain = (MOEI_GPU_SHARED_PLAIN / 4 - MOEI_GPU_SORT_SUMS) / experts;
    const uint32_t most = (MOEI_GPU_SHARED_MAX / 4 - MOEI_GPU_SORT_SUMS) / experts;
    moei_gpu_sort_plan p;
    p.counting = n / 128 + (n % 128 != 0);
    p.counting = p.counting < 1 ? 1 : p.counting;
    p.counting = p.counting > most_warps ? most_warps : p.counting;
    const uint32_t room = plain >= 8 || plain >= p.counting ? plain : most;
    p.counting = p.counting > room ? room : p.counting;
    const uint32_t each = n / p.counting + (n % p.counting != 0);
    p.segment = (each + 31) / 32 * 32;
    uint32_t warps = (experts + 31) / 32; // of those that scan
    warps = warps > most_warps ? most_warps : warps;
    p.threads = 32 * (warps > p.counting ? warps : p.counting);
    p.shared = 4 * (p.counting * experts + MOEI_GPU_SORT_SUMS);
    return p;
}

// ---- ggemm -------------------------------------------------------------------------------------

#define MOEI_GGEMM_TILE  64                    // rows, and outputs, of a block
#define MOEI_GGEMM_SLICE 16                    // elements of k at a time
#define MOEI_GGEMM_PITCH (MOEI_GGEMM_TILE + 4) // keeps rows on other banks

/// Bytes of shared memory: slices of both operands as f32, and the tiles' prefix.
MOE_HD uint32_t moei_gpu_ggemm_shared(int32_t experts)
{
    return 4u * (2u * MOEI_GGEMM_SLICE * MOEI_GGEMM_PITCH + (uint32_t)experts + 1u);
}

// ---- prologue ----------------------------------------------------------------------------------

#define MOEI_GPU_PROLOGUE_WARPS  16
#define MOEI_GPU_PROLOGUE_TOKENS 32   // more route sooner on several multiprocessors
#define MOEI_GPU_PROLOGUE_SLOTS  1024 // two per thread

/// True where one block does the three at once.
MOE_HD bool moei_gpu_is_small(const moek_route_args *route, const moek_place_args *place,
                              const moek_sort_args *sort)
{
    return moei_gpu_route_in_registers(route) && route->tokens <= MOEI_GPU_PROLOGUE_TOKENS &&
           place->tokens * place->top_k <= MOEI_GPU_PROLOGUE_SLOTS &&
           sort->tokens * sort->top_k <= MOEI_GPU_PROLOGUE_SLOTS;
}

#endif
