// SPDX-License-Identifier: Apache-2.0
// Products on the matrix units of CDNA, the host's side: which problems a row takes, which kernel
// runs it, over which grid. Device and host see the same arguments.
#ifndef MOEI_HIP_MFMA_H
#define MOEI_HIP_MFMA_H

#include "backends/gpu/drive.h"
#include "backends/gpu/launch_hip.h"
#include "backends/hip/packed.h"
#include "moe/backend.h"

/// The library's functions.
extern const moei_host *moei_hip_host;

// Instruction-set bits of rows (moei_kernel.isa): either architecture, gfx942, gfx950; families
// that a device has where it answers as expected (probe.h), and what rows have of them. A device
// whose arithmetic is not as expected lacks ANY.
enum {
    MOEI_HIP_ANY = 1,
    MOEI_HIP_CDNA3 = 2,
    MOEI_HIP_CDNA4 = 4,
    MOEI_HIP_MATRIX_BF16 = 8,
    MOEI_HIP_DECODES = 16,
    MOEI_HIP_MATRIX_FP8 = 32,
    MOEI_HIP_MATRIX_MX = 64,
    MOEI_HIP_CDNA3_BF16 = MOEI_HIP_CDNA3 | MOEI_HIP_MATRIX_BF16,
    MOEI_HIP_CDNA4_BF16 = MOEI_HIP_CDNA4 | MOEI_HIP_MATRIX_BF16,
    MOEI_HIP_CDNA3_DECODED = MOEI_HIP_CDNA3_BF16 | MOEI_HIP_DECODES,
    MOEI_HIP_CDNA4_DECODED = MOEI_HIP_CDNA4_BF16 | MOEI_HIP_DECODES,
    MOEI_HIP_CDNA3_FP8 = MOEI_HIP_CDNA3 | MOEI_HIP_MATRIX_FP8,
    MOEI_HIP_CDNA4_FP8 = MOEI_HIP_CDNA4 | MOEI_HIP_MATRIX_FP8,
    MOEI_HIP_CDNA4_MX = MOEI_HIP_CDNA4 | MOEI_HIP_MATRIX_MX
};

/// Writes the name of the architecture of `isa` into `text`, and returns it.
const char *moei_hip_isa_text(uint64_t isa, char *text, size_t capacity);

/// The kernels of cdna/kernels.def.
typedef enum moei_hip_mfma_kernel {
#define MOE_HIP_MFMA(id, ...) MOEI_HIP_MFMA_##id,
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA
    MOEI_HIP_NUM_MFMA
} moei_hip_mfma_kernel;

#define MOEI_HIP_MFMA_THREADS 256 // four waves of 16 outputs each
#define MOEI_HIP_MFMA_STEP    32  // elements of k of a matrix instruction, and of the finest scale

#define MOEI_HIP_DIES 8 // that workgroups go to in turn

#define MOEI_HIP_MFMA_CODES 256 // of x, at most
#define MOEI_HIP_MFMA_FEW   16  // rows of an expert that are few

/// Bytes of LDS: a slice of x, its scales, a table of codes, the tiles' prefix.
MOE_HD uint32_t moei_hip_mfma_shared(int32_t rows, int32_t slice, int32_t experts)
{
    return (uint32_t)rows *
               (2u * ((uint32_t)slice + 8u) + 4u * (uint32_t)slice / MOEI_HIP_MFMA_STEP) +
           2u * MOEI_HIP_MFMA_CODES + 4u * ((uint32_t)experts + 1u);
}

#define MOEI_HIP_CODES_STEP 128 // elements of k of an instruction that multiplies codes
#define MOEI_HIP_CODES_PAD  16  // bytes between rows in LDS

/// The same of kernels that multiply codes: a slice of x or sums on their way out, scales, prefix.
MOE_HD uint32_t moei_hip_codes_shared(int32_t outputs, int32_t rows, int32_t slice, int32_t experts)
{
    const uint32_t x = (uint32_t)(rows * (slice + MOEI_HIP_CODES_PAD));
    const uint32_t sums = (uint32_t)(rows * 64 / outputs * (outputs + 4)) * 4u;
    return (x > sums ? x : sums) + 4u * (uint32_t)(rows * (slice / MOEI_HIP_CODES_STEP)) +
           4u * ((uint32_t)experts + 1u);
}

/// The arguments of every such kernel.
typedef struct moei_hip_mfma_args {
    moei_hip_launch launch;
    moek_ggemm_args a;
    moei_hip_packed packed; // of the weights, where they are
    int32_t zero_point;     // of codes without one per group; -1: none
    int32_t group_shift;    // log2 of the k that share a scale of the weights; 31: all do
    int32_t fold;           // elements of k whose sum is scaled before it is added; 0: none is
    int32_t x_bits;         // of an element of x: 16 are bf16
} moei_hip_mfma_args;

/// Members of rows, kernels.def.
bool moei_hip_float_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                             moei_whynot *why);
bool moei_hip_packed_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                              moei_whynot *why);
bool moei_hip_fp8_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why);
bool moei_hip_mx_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                          moei_whynot *why);
double moei_hip_mfma_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem);

/// True for rows of the matrix units.
bool moei_hip_is_mfma(const moei_kernel *kernel);

/// Enqueues a product.
moe_status moei_hip_mfma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm);

/// Enqueues a kernel; whoever holds the device has it. `args` begins with a moei_hip_launch, which
/// this fills.
moe_status moei_hip_launch_mfma(const moei_exec *exec, moei_hip_mfma_kernel kernel,
                                moei_gpu_grid grid, moei_hip_mfma_args *args);

#endif
