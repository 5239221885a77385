// SPDX-License-Identifier: Apache-2.0
// e4m3_any_e4m3__sm90a.
// ggemm: FP8 (OCP e4m3) x FP8, weights as the checkpoint has them, scales per tensor, row, 128 k or
// 128 x 128; class wgmma_e4m3_b128.
#include "backends/cuda/ggemm_wgmma.cuh"

const moei_mma_variant *moei_mma_e4m3(int *count)
{
    static const moei_mma_variant variants[] = {
        few_rows<KIND_E4M3, 8, 3, 1>(),   few_rows<KIND_E4M3, 8, 4, 1>(),
        few_rows<KIND_E4M3, 16, 3, 1>(),  many_rows<KIND_E4M3, 32, 1>(),
        many_rows<KIND_E4M3, 64, 1, 3>(), many_rows<KIND_E4M3, 96, 1, 3>(),
        rows_first<KIND_E4M3, 128>(),     rows_first<KIND_E4M3, 160>(),
    };
    *count = sizeof variants / sizeof variants[0];
    return variants;
}
