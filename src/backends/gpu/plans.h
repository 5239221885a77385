// SPDX-License-Identifier: Apache-2.0
// How the bodies divide their work. The host that launches a body computes it; so does the body
// where that costs less than an argument.
#ifndef MOEI_GPU_PLANS_H
#define MOEI_GPU_PLANS_H

#include "moe/backend.h"
#include "numerics/hd.h"

/// Shared memory that a block may have; a machine with less defines less. 99 KiB hold every sort
/// and every route.
#ifndef MOEI_GPU_SHARED_MAX
#define MOEI_GPU_SHARED_MAX (99 << 10)
#endif
#define MOEI_GPU_SHARED_PLAIN (48 << 10) // every machine has it without being asked
#define MOEI_GPU_CLUSTER      16         // blocks of a cluster at most, on any machine

// ---- route -------------------------------------------------------------------------------------

#define MOEI_GPU_ROUTE_WARPS 8   // tokens of a block at most
#define MOEI_GPU_ROUTE_FEW   512 // tokens that half as many warps spread over more multiprocessors
#define MOEI_GPU_ROUTE_ROWS  512 // rows of the path that holds a token in registers

/// Logits of a token; moei_gpu_route_in_registers says whether they are few.
MOE_HD int32_t moei_gpu_route_rows(const moek_route_args *a)
{
    return a->num_experts + a->desc.zero_experts + a->desc.shared_scores;
}

/// True where a token fits into a warp's registers: a lane has up to 16 rows, one slot and one
/// shared score.
MOE_HD bool moei_gpu_route_in_registers(const moek_route_args *a)
{
    const moe_route_desc *d = &a->desc;
    return (int64_t)a->num_experts + d->zero_experts + d->shared_scores <= MOEI_GPU_ROUTE_ROWS &&
           a->top_k <= 32 && d->shared_scores <= 32 && d->num_groups <= 32 &&
           d->scoring != MOE_SCORING_SPARSEMIXER;
}

/// True where a router has nothing but logits, a bias and groups.
MOE_HD bool moei_gpu_route_is_plain(const moek_route_args *a)
{
    const moe_route_desc *d = &a->desc;
    return a->num_valid == NULL && a->scale_tensor == NULL && a->hash_table == NULL &&
           a->replica_table == NULL && a->expert_map == NULL && a->load == NULL &&
           d->zero_experts == 0 && d->shared_scores == 0 && d->append_shared == 0;
}

/// Words of shared memory that a token needs otherwise: values and keys of all rows, ids and
/// weights of the slots (before that, the scores of groups).
MOE_HD uint32_t moei_gpu_route_words(const moek_route_args *a)
{
    const int32_t rows = moei_gpu_route_rows(a);
    const int32_t slots = a->top_k > a->desc.num_groups ? a->top_k : a->desc.num_groups;
    return 2u * (uint32_t)rows + 2u * (uint32_t)slots;
}

// ---- sort --------------------------------------------------------------------------------------

#define MOEI_GPU_SORT_WARPS   32
#define MOEI_GPU_SORT_SUMS    (2 * MOEI_GPU_SORT_WARPS) // words
#define MOEI_GPU_SORT_SEGMENT 128                       // slots of a warp in a tile, at most
#define MOEI_GPU_SORT_SHARE   512                       // slots of a block, where blocks suffice
#define MOEI_GPU_SORT_ONE     1024                      // slots that one block sorts sooner

/// The slots are divided among the blocks of a cluster; a block takes its share tile by tile, a
/// warp a segment of each tile.
typedef struct moei_gpu_sort_plan {
    uint32_t threads;
    uint32_t counting; // warps that walk slots; each has a counter per expert
    uint32_t segment;  // slots of such a warp in a tile, a multiple of 32
    uint32_t tiles;    // of a block
    uint32_t shared;   // bytes: counters, two words per expert, the order of a tile, sums of warps
} moei_gpu_sort_plan;

/// Words between the counters of two warps; odd, so that a column lies on many banks.
MOE_HD uint32_t moei_gpu_sort_pitch(int32_t num_experts)
{
    return (uint32_t)num_experts | 1u;
}

/// Blocks for n items, `each` in one block where `most` suffice; both powers of two.
MOE_HD uint32_t moei_gpu_blocks_of_cluster(int64_t n, int64_t each, uint32_t most)
{
    uint32_t blocks = 1;
    while (blocks < most && blocks * each < n) {
        blocks *= 2;
    }
    return blocks;
}

/// Large numbers of experts leave room for few counting warps.
MOE_HD moei_gpu_sort_plan moei_gpu_plan_sort(int64_t slots, int32_t num_experts,
                                             uint32_t most_threads, uint32_t blocks)
{
    const uint32_t most_warps = most_threads / 32;
    const uint32_t experts = (uint32_t)num_experts;
    const uint32_t pitch = moei_gpu_sort_pitch(num_experts);
    const uint32_t n = (uint32_t)slots;
    const uint32_t room = (MOEI_GPU_SHARED_MAX / 4 - MOEI_GPU_SORT_SUMS - 2 * experts) /
                          (pitch + MOEI_GPU_SORT_SEGMENT);
    moei_gpu_sort_plan p;
    const uint32_t share = n / blocks + (n % blocks != 0);
    p.counting = share / 64 + (share % 64 != 0);
    p.counting = p.counting < 1 ? 1 : p.counting;
    p.counting = p.counting > most_warps ? most_warps : p.counting;
    p.counting = p.counting > room ? room : p.counting;
    const uint32_t each = share / p.counting + (share % p.counting != 0);
    p.segment = each < 32                      ? 32
                : each > MOEI_GPU_SORT_SEGMENT ? MOEI_GPU_SORT_SEGMENT
                                               : (each + 31) / 32 * 32;
    const uint32_t tile = p.counting * p.segment;
    p.tiles = share / tile + (share % tile != 0);
    uint32_t warps = (experts + 7) / 8; // of those that lay out
    warps = warps > most_warps ? most_warps : warps;
    p.threads = 32 * (warps > p.counting ? warps : p.counting);
    p.shared = 4 * (p.counting * pitch + 2 * experts + tile + MOEI_GPU_SORT_SUMS);
    return p;
}

// A block that counts smaller keys puts few slots in order sooner. No padding lies between them.
#define MOEI_GPU_FEW_SLOTS  256
#define MOEI_GPU_FEW_WARPS  20
#define MOEI_GPU_FEW_TOKENS 32 // that a block routes, too

MOE_HD bool moei_gpu_sorts_few(const moek_sort_args *a)
{
    return a->block == 0 && a->tokens * a->top_k <= MOEI_GPU_FEW_SLOTS;
}

/// Keys in shared memory: those of the slots, read by fours.
MOE_HD uint32_t moei_gpu_few_keys(uint32_t slots)
{
    return (slots + 3) / 4 * 4;
}

/// A thread for each slot and each end of an expert, where there are so many. All slots are one
/// tile, 32 to a warp.
MOE_HD moei_gpu_sort_plan moei_gpu_plan_few(int64_t slots, int32_t num_experts)
{
    const uint32_t n = (uint32_t)slots;
    const uint32_t warps = (n + (uint32_t)num_experts + 32) / 32;
    moei_gpu_sort_plan p;
    p.threads = 32 * (warps < MOEI_GPU_FEW_WARPS ? warps : MOEI_GPU_FEW_WARPS);
    p.counting = (n + 31) / 32;
    p.segment = 32;
    p.tiles = 1;
    p.shared = 4 * moei_gpu_few_keys(n);
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

// ---- quantize ----------------------------------------------------------------------------------

/// True where codes are e4m3fn and 128 f32 of a row share a scale, by rules that a product has code
/// for.
MOE_HD bool moei_gpu_is_fp8_group(const moek_quantize_args *a)
{
    const moei_quant_info *info = a->info;
    return a->stage == MOEK_QUANTIZE_CODES && info->grain == MOEI_GRAIN_GROUP &&
           a->quant.group == 128 && a->quant.elem == MOE_E4M3FN && a->x_dtype == MOE_F32 &&
           !a->silu_mul && (info->scale == MOEI_SCALE_DIV || info->scale == MOEI_SCALE_RECIP) &&
           (info->code == MOEI_CODE_DIVIDE || info->code == MOEI_CODE_TIMES_INVERSE);
}

// ---- prologue ----------------------------------------------------------------------------------

#define MOEI_GPU_PROLOGUE_WARPS  16
#define MOEI_GPU_PROLOGUE_TOKENS 8  // of a block, where blocks suffice
#define MOEI_GPU_PROLOGUE_MOST   16 // of a block; more tokens route sooner on more multiprocessors
#define MOEI_GPU_PROLOGUE_ALONE  32 // of a block without others

/// True where place reads what route stores: the lane that has a slot hands it over.
MOE_HD bool moei_gpu_hands_over(const moek_route_args *route, const moek_place_args *place)
{
    return place->ids == route->ids && place->id_dtype == route->id_dtype &&
           place->id_token_stride == route->id_token_stride && place->weights == route->weights &&
           place->weight_dtype == MOE_F32 && route->weight_dtype == MOE_F32 &&
           place->weight_token_stride == route->weight_token_stride &&
           place->tokens == route->tokens &&
           place->top_k == route->top_k + route->desc.append_shared &&
           place->num_valid == route->num_valid;
}

/// True where sort reads what place stores: route may leave the keys of few slots in shared memory.
MOE_HD bool moei_gpu_hands_keys(const moek_place_args *place, const moek_sort_args *sort)
{
    return sort->ids == place->local_ids && sort->id_dtype == MOE_I32 &&
           sort->id_token_stride == place->top_k && sort->top_k == place->top_k &&
           sort->tokens == place->tokens && sort->expert_map == NULL &&
           sort->num_experts >= place->num_local &&
           (sort->num_valid == NULL || sort->num_valid == place->num_valid);
}

/// True where one block does that without counters; route and place as in moei_gpu_is_small.
MOE_HD bool moei_gpu_is_few(const moek_place_args *place, const moek_sort_args *sort)
{
    return place->tokens <= MOEI_GPU_FEW_TOKENS && moei_gpu_sorts_few(sort) &&
           moei_gpu_hands_keys(place, sort);
}

/// True where one cluster of at most `most` blocks does route, place and sort at once.
MOE_HD bool moei_gpu_is_small(const moek_route_args *route, const moek_place_args *place,
                              uint32_t most)
{
    const int64_t tokens =
        most == 1 ? MOEI_GPU_PROLOGUE_ALONE : (int64_t)most * MOEI_GPU_PROLOGUE_MOST;
    return moei_gpu_route_in_registers(route) && route->tokens <= tokens &&
           moei_gpu_hands_over(route, place);
}

#endif
