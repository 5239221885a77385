// SPDX-License-Identifier: Apache-2.0
// Grouped products on Hopper's matrix units: what the host code (mma.c) and the kernels
// (ggemm_wgmma.cuh) share, and what the plugin calls.
#ifndef MOEI_CUDA_MMA_H
#define MOEI_CUDA_MMA_H

#include "backends/cuda/device.h"
#include "backends/gpu/args.h"

#ifdef __cplusplus
extern "C" {
#endif

/// How rows of x come into shared memory.
typedef enum moei_mma_x {
    MOEI_MMA_STORES,   // from anywhere, by loads and stores
    MOEI_MMA_GATHER,   // by the copy engine, one at a time: some 40 cycles each
    MOEI_MMA_BOX,      // by the copy engine, all rows of a tile at once: they lie side by side
    MOEI_MMA_QUANTIZE, // by loads of f32 and stores of codes: moei_mma_args.quantize
    MOEI_MMA_DECODE    // by loads of e4m3 codes and stores of bf16
} moei_mma_x;

/// What follows from the tiles of a few rows: whoever completes a part of the output does it.
typedef enum moei_mma_after {
    MOEI_MMA_NOTHING,
    MOEI_MMA_COMBINE,   // a block of outputs of all rows
    MOEI_MMA_QUANTIZE_H // outputs of a block of rows that share scales
} moei_mma_after;

/// Arguments of every kernel.
typedef struct moei_mma_args {
    CUtensorMap weights; // where they lie as the checkpoint has them
    CUtensorMap x;       // boxes of a row, or of as many as a tile has
    moek_ggemm_args a;
    moek_glu_args glu;        // where `fused`
    int32_t fused;            // the output is glu's
    int32_t paired;           // tiles hold eights of two parts in turn (always where fused)
    int32_t up_first;         // of the two parts, ups have the lower rows
    int64_t second, step;     // output i of the parts: i * step, second + i * step
    int64_t outputs;          // of a part, or of all
    int32_t m_blocks;         // tiles along the outputs
    float limit;              // of the activation
    int32_t zero_point;       // of packed codes without their own
    int32_t x_engine;         // moei_mma_x
    int32_t vector;           // rows of the output begin at multiples of 16 bytes
    int32_t scale_copies;     // scales of x come by 4-byte copies: f32, or words of four e8m0
    int32_t scales_by_eights; // eight outputs that begin at a multiple of 8 share their scales
    int32_t weights_stay;     // several tiles read the same weights
    int32_t early;            // but for x, nothing depends on the launch before this one
    int32_t after;            // moei_mma_after
    int32_t *arrived;         // tiles of each part that are complete; 0 at first
    moek_combine_args combine;
    moei_gpu_quantize_args quantize; // of h, or of what is x
    int32_t units;                   // of h: parts of a row, 128 columns each
    int32_t stages;                  // of each ring
    int32_t share;       // pipes of a team, which multiply a tile together, each some chunks of k
    int32_t teams;       // of a block
    int32_t share_bytes; // of a tile's chunks' sums; 0 where a team is one pipe
    uint32_t delay;      // moei_exec.delay
} moei_mma_args;

/// One compiled kernel.
typedef struct moei_mma_variant {
    int bm, bn;      // outputs and rows of a tile
    int rows_first;  // rows of x are the M operand: scales of the weights come by eights of outputs
    int pipes;       // tiles at work at the same time in a block
    int cluster;     // blocks that share rows of x
    int threads;     // of a block
    int box;         // rows of x that the copy engine brings at a time
    int trims;       // tiles of fewer rows cost less: MOEI_MMA_STEP
    int stage_bytes; // of a ring
    int scale_bytes; // beside each stage
    int turn_bytes;  // of a block
    const void *kernel;
} moei_mma_variant;

/// The kernels of a kind, by rising bn; each in a file of its own.
const moei_mma_variant *moei_mma_bf16(int *count);
const moei_mma_variant *moei_mma_f16(int *count);
const moei_mma_variant *moei_mma_e4m3(int *count);
const moei_mma_variant *moei_mma_packed_mxfp4(int *count);
const moei_mma_variant *moei_mma_packed_nvfp4(int *count);
const moei_mma_variant *moei_mma_packed_u4(int *count);
const moei_mma_variant *moei_mma_packed_u8(int *count);
const moei_mma_variant *moei_mma_packed_e4m3(int *count);
/// The same for x of e4m3 codes.
const moei_mma_variant *moei_mma_packed_mxfp4_fp8(int *count);
const moei_mma_variant *moei_mma_packed_nvfp4_fp8(int *count);
const moei_mma_variant *moei_mma_packed_u4_fp8(int *count);
const moei_mma_variant *moei_mma_packed_u8_fp8(int *count);
const moei_mma_variant *moei_mma_packed_e4m3_fp8(int *count);

#define MOEI_MMA_STEP       16 // rows of tiles are multiples of it where kernels trim them
#define MOEI_MMA_FEW        16 // rows of the tiles of those kernels after whose tiles more follows
#define MOEI_MMA_CHUNK      9  // blocks of k of a chain of packed weights
#define MOEI_MMA_MAX_STAGES 16
#define MOEI_MMA_SHARED     (221 * 1024) // of 227 KiB; barriers and notes have the rest

/// True where glu's rows come straight out of the product's registers: gate and up rows of eight
/// outputs each lie in the same threads.
bool moei_cuda_mma_fuses(const moek_ggemm_args *ggemm, const moek_glu_args *glu);

/// True where rows of x come from a list and had better lie side by side (moei_gpu_gather).
bool moei_cuda_mma_wants_rows(const moei_exec *exec, const moek_ggemm_args *ggemm);

/// What a launch does besides its product.
typedef struct moei_mma_extra {
    const moek_glu_args *glu;         // h = glu of the result, and ggemm->y is not written
    const moek_quantize_args *to_x;   // gives ggemm->x, which is not written; NULL: it is there
    const moek_quantize_args *of_h;   // NULL: none
    const moek_combine_args *combine; // of ggemm->y; NULL: none
    bool early;                       // all but x was there before the launch before this one began
    int32_t *arrived;                 // counters of of_h or combine, 0
} moei_mma_extra;

/// Counters of a product that combines its rows in the same launch; 0 where it cannot: many rows.
int32_t moei_cuda_mma_combines(const moek_ggemm_args *ggemm, const moek_combine_args *combine);

/// The same of a product that quantises what glu makes of its rows.
int32_t moei_cuda_mma_quantizes_h(const moek_ggemm_args *ggemm, const moek_glu_args *glu,
                                  const moek_quantize_args *quantize);

/// True where quantize can precede the product in its own launch: fewer rows still, of f32, in the
/// order of their slots, and a scale for every 128 k.
bool moei_cuda_mma_quantizes_x(const moek_ggemm_args *ggemm, const moek_quantize_args *quantize);

/// Enqueues a product.
moe_status moei_cuda_mma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm, const moei_mma_extra *extra);

/// Loads and configures every variant of the kernels. For a device that has them.
cudaError_t moei_cuda_mma_load(void);

#ifdef __cplusplus
}
#endif
#endif
