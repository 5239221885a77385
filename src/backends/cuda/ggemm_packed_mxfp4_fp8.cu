// SPDX-License-Identifier: Apache-2.0
// e4m3_any_packed__sm90a_c576.
// ggemm: MXFP4 x FP8 (OCP e4m3), packed weights decoded to bf16 in registers, codes of x on their
// way to shared memory.
#include "backends/cuda/ggemm_wgmma.cuh"

const moei_mma_variant *moei_mma_packed_mxfp4_fp8(int *count)
{
    constexpr int KIND = KIND_CODES + KIND_PACKED + MOEI_OPERAND_MXFP4;
    static const moei_mma_variant variants[] = {
        few_rows<KIND, 8, 4, 3>(),   few_rows<KIND, 16, 4, 3>(),  few_rows<KIND, 24, 2, 3, 2>(),
        many_rows<KIND, 64, 3, 3>(), many_rows<KIND, 80, 1, 3>(), many_rows<KIND, 96, 1>(),
        many_rows<KIND, 128, 1>(),
    };
    *count = sizeof variants / sizeof variants[0];
    return variants;
}
