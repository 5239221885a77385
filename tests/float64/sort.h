// SPDX-License-Identifier: Apache-2.0
// The token sort as a plain statement of docs/routing.md: expert by expert, every slot in order,
// O(E T k). Shares nothing with the library.
#ifndef MOE_TESTS_FLOAT64_SORT_H
#define MOE_TESTS_FLOAT64_SORT_H

#include <stdint.h>

typedef struct plain_sort {
    // In
    const int64_t *experts; // [num_slots] local expert of each slot; outside [0, E): absent
    int64_t num_slots;
    int32_t num_experts;
    int32_t block;  // 0: contiguous
    int64_t padded; // elements of slots: num_slots, or P with blocks
    // Out
    int32_t *slots;         // [padded]
    int32_t *positions;     // [num_slots]
    int32_t *counts;        // [E]
    int32_t *offsets;       // [E + 1]; block-aligned: not written
    int32_t *block_experts; // [ceil(padded / block)]; contiguous: not written
    int32_t num_padded;     // contiguous: offsets[E]
} plain_sort;

void plain_sort_run(plain_sort *s);

#endif
