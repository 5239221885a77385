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
    MOEI_MMA_QUANTIZE, // by loads of f32 and stores of codes: extra.quantize
    MOEI_MMA_DECODE    // by loads of e4m3 codes and stores of bf16
} moei_mma_x;

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
    int32_t combines;         // the last tile of a block of outputs combines
    moek_combine_args combine;
    int32_t *arrived;    // tiles of each block of outputs that are complete; 0 at first
    int32_t *clear;      // counters for a later launch, which this one sets to 0
    int32_t clears;      // how many
    int32_t stages;      // of each ring
    int32_t share;       // pipes of a team, which multiply a tile together, each some chunks of k
    int32_t teams;       // of a block
    int32_t share_bytes; // of a tile's chunks' sums; 0 where a team is one pipe
    uint32_t delay;      // moei_exec.delay
    moei_gpu_quantize_args quantize; // where x_engine says so
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
#define MOEI_MMA_COMBINES   16 // rows of the tiles of those kernels that can combine
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
    const moek_glu_args *glu;           // h = glu of the result, and ggemm->y is not written
    const moek_combine_args *combine;   // of ggemm->y, where moei_cuda_mma_combines
    const moek_quantize_args *quantize; // gives ggemm->x, which is not written
    bool early;       // all but x was there before the launch before this one began
    int32_t *arrived; // with combine: moei_cuda_mma_counters of them, 0
    int32_t *clear;   // counters of a later product that are set to 0; NULL: none
    int32_t clears;
} moei_mma_extra;

/// True where combine can follow from the product's last tiles: few rows.
bool moei_cuda_mma_combines(const moek_ggemm_args *ggemm, const moek_combine_args *combine);

/// Counters that such a product needs.
int32_t moei_cuda_mma_counters(const moek_ggemm_args *ggemm);

/// True where quantize can precede the product in its own launch: few rows of f32, in the order of
/// their slots, and a scale for every 128 k.
bool moei_cuda_mma_quantizes(const moek_ggemm_args *ggemm, const moek_quantize_args *q);

/// Enqueues a product.
moe_status moei_cuda_mma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm, const moei_mma_extra *extra);

/// Loads and configures every variant of the kernels. For a device that has them.
cudaError_t moei_cuda_mma_load(void);

#ifdef __cplusplus
}
#endif
#endif
