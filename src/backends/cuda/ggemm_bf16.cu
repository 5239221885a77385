// SPDX-License-Identifier: Apache-2.0
// bf16_any_bf16__sm90a.
// ggemm: bf16 x bf16, class wgmma_bf16, weights as the checkpoint has them.
#include "backends/cuda/ggemm_wgmma.cuh"

const moei_mma_variant *moei_mma_bf16(int *count)
{
    static const moei_mma_variant variants[] = {
        few_rows<KIND_BF16, 8, 3, 1>(),  few_rows<KIND_BF16, 8, 4, 1>(),
        few_rows<KIND_BF16, 16, 3, 1>(), many_rows<KIND_BF16, 32, 1>(),
        many_rows<KIND_BF16, 64, 1>(),   many_rows<KIND_BF16, 96, 1>(),
        many_rows<KIND_BF16, 128, 1>(),  many_rows<KIND_BF16, 144, 1>(),
        many_rows<KIND_BF16, 192, 1>(),  many_rows<KIND_BF16, 256, 1>(),
    };
    *count = sizeof variants / sizeof variants[0];
    return variants;
}
