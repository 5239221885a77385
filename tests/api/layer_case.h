// SPDX-License-Identifier: Apache-2.0
// A layer with everything that its descriptor calls for: tensors of every view, packed weights, a
// workspace. The content of a view depends on its name alone, so that two descriptors that differ
// in one field are given the same data.
#ifndef MOE_TESTS_API_LAYER_CASE_H
#define MOE_TESTS_API_LAYER_CASE_H

#include "moe/moe.h"

#define LAYER_CASE_BLOCKS 128

typedef struct layer_case {
    moe_layer_desc desc; // resolved as far as the case needs it
    const moe_plan *plan;
    moe_weights_source source;
    moe_weights *weights;
    moe_run_args args;
    void *workspace;
    size_t workspace_bytes, weights_bytes;
    void *blocks[LAYER_CASE_BLOCKS];
    size_t block_bytes[LAYER_CASE_BLOCKS];
    int num_blocks;
} layer_case;

/// A small layer: E = 8, k = 2, H = 144, I = 136, bf16 throughout, softmax routing.
moe_layer_desc layer_case_base(void);

/// Two shared experts in bf16, weighted by a sigmoid.
void layer_case_add_shared(moe_layer_desc *d);

/// Rows that the caller has placed: BATCHED or SORTED.
void layer_case_place(moe_layer_desc *d, moe_x_layout layout);

/// Fills a case for a plan made from `desc`: weights packed, arguments for `tokens` tokens, outputs
/// poisoned. MOE_OK, or what the library refused. layer_case_free releases in both cases.
moe_status layer_case_make(layer_case *c, const moe_plan *plan, const moe_layer_desc *desc,
                           int64_t tokens);

moe_status layer_case_run(layer_case *c);

/// Fills every output with a pattern that no result has.
void layer_case_poison(layer_case *c);

/// A number over the bytes of all outputs.
uint64_t layer_case_outputs(const layer_case *c);

/// A number over what a run takes and gives: presence, types, shapes and strides of its views, and
/// the bytes of packed weights.
uint64_t layer_case_forms(const layer_case *c);

/// True if every byte of every output still holds the pattern.
int layer_case_untouched(const layer_case *c);

void layer_case_free(layer_case *c);

#endif
