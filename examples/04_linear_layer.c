// SPDX-License-Identifier: Apache-2.0
// A linear layer in bf16, packed once, then multiplied by: what an engine does with the matrices
// beside the experts. The same call over the tensor gives the same bits.
#include <moe/moe.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS    3
#define INPUTS  96
#define OUTPUTS 80

static void check(moe_status status)
{
    if (status != MOE_OK) {
        (void)fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        exit(1);
    }
}

int main(void)
{
    static uint16_t weight[OUTPUTS * INPUTS];
    static float x[ROWS * INPUTS], y[ROWS * OUTPUTS], unpacked[ROWS * OUTPUTS];
    moe_context *ctx;
    moe_matrix *matrix;
    size_t bytes;
    size_t align;
    for (int i = 0; i < OUTPUTS * INPUTS; i++) {
        weight[i] = (uint16_t)(0x3F80 + i % 64); // 1 .. 1.5
    }
    for (int i = 0; i < ROWS * INPUTS; i++) {
        x[i] = (float)(i % 7) - 3.0f;
    }
    check(moe_context_create(NULL, &ctx));

    // What the matrix is, and what products by it read. Memory is ours.
    moe_matrix_desc d = moe_matrix_desc_default();
    d.outputs = OUTPUTS;
    d.inputs = INPUTS;
    d.gemm.weight_format = MOE_FORMAT_BF16;
    d.x_dtype = MOE_F32;
    check(moe_matrix_bytes(ctx, &d, &bytes, &align));
    void *memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    check(moe_matrix_create(ctx, &d, memory, bytes, &matrix));

    moe_matrix_source source;
    memset(&source, 0, sizeof source);
    source.values = moe_tensor_2d(weight, MOE_BF16, OUTPUTS, INPUTS);
    check(moe_matrix_pack(matrix, 0, &source));

    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.matrix = matrix;
    a.x = moe_tensor_2d(x, MOE_F32, ROWS, INPUTS);
    a.y = moe_tensor_2d(y, MOE_F32, ROWS, OUTPUTS);
    check(moe_ggemm(ctx, &a, NULL));

    // The tensor where it lies.
    a.matrix = NULL;
    a.gemm = d.gemm;
    a.weights = source;
    a.y = moe_tensor_2d(unpacked, MOE_F32, ROWS, OUTPUTS);
    check(moe_ggemm(ctx, &a, NULL));
    const int same = memcmp(y, unpacked, sizeof y) == 0;
    (void)printf("%s: y[0] = %g, %s\n", moe_matrix_kernel(matrix), (double)y[0],
                 same ? "as without packing" : "other bits without packing");

    moe_matrix_destroy(matrix);
    free(memory);
    moe_context_destroy(ctx);
    return !same;
}
