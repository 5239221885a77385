// SPDX-License-Identifier: Apache-2.0
// f16_any_f16__sm90a.
// ggemm: f16 x f16, class wgmma_f16, weights as the checkpoint has them.
#include "backends/cuda/ggemm_wgmma.cuh"

const moei_mma_variant *moei_mma_f16(int *count)
{
    static const moei_mma_variant variants[] = {
        few_rows<KIND_F16, 8, 3, 1>(),  few_rows<KIND_F16, 8, 4, 1>(),
        few_rows<KIND_F16, 16, 3, 1>(), many_rows<KIND_F16, 32, 1>(),
        many_rows<KIND_F16, 64, 1>(),   many_rows<KIND_F16, 128, 1>(),
        many_rows<KIND_F16, 144, 1>(),  many_rows<KIND_F16, 192, 1>(),
        many_rows<KIND_F16, 256, 1>(),
    };
    *count = sizeof variants / sizeof variants[0];
    return variants;
}
