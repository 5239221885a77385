// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <stdlib.h>
#include <string.h>

#include "model/check.h"
#include "model/decoder.h"

static moe_format format_of(moe_dtype dtype)
{
    return dtype == MOE_F32 ? MOE_FORMAT_F32 : dtype == MOE_BF16 ? MOE_FORMAT_BF16 : MOE_FORMAT_F16;
}

static bool has_bias(const moem_linear *l)
{
    return l->bias.ndim > 0;
}

static moe_matrix_desc describe(const moem_linear *l)
{
    moe_matrix_desc desc = moe_matrix_desc_default();
    desc.outputs = l->weight.shape[0];
    desc.inputs = l->weight.shape[1];
    desc.gemm.weight_format = format_of(l->weight.dtype);
    desc.gemm.bias = has_bias(l);
    desc.x_dtype = MOE_F32;
    return desc;
}

moe_status moem_linear_bytes(const moe_context *ctx, const moem_linear *l, size_t *bytes)
{
    char layout[512]; // of one matrix; a longer text would say "rows"
    size_t align = 0;
    const moe_matrix_desc desc = describe(l);
    MOEM_TRY(moe_matrix_bytes(ctx, &desc, bytes, &align));
    MOEM_TRY(moe_matrix_layout_name(ctx, &desc, layout, sizeof layout, NULL));
    if (strstr(layout, ".layout=packed-") == NULL) {
        *bytes = 0;
    }
    return MOE_OK;
}

static size_t tensor_bytes(const moe_tensor *t)
{
    int64_t elements = 1;
    for (int32_t d = 0; d < t->ndim; d++) {
        elements *= t->shape[d];
    }
    return (size_t)elements * (size_t)moe_dtype_bits(t->dtype) / 8;
}

// Adds a tensor's bytes to those of the joined one.
static unsigned char *append(unsigned char *to, const moe_tensor *t)
{
    const size_t bytes = tensor_bytes(t);
    memcpy(to, (const unsigned char *)t->data + t->byte_offset, bytes);
    return to + bytes;
}

moe_status moem_linear_join(moem_linear *layers, int32_t *count, size_t most)
{
    moem_linear *first = &layers[0];
    size_t bytes = 0;
    int64_t outputs = 0;
    for (int32_t i = 0; i < *count; i++) {
        const moem_linear *one = &layers[i];
        if (one->weight.dtype != first->weight.dtype || !has_bias(one) ||
            one->bias.dtype != first->bias.dtype) {
            return MOE_OK;
        }
        bytes += tensor_bytes(&one->weight) + tensor_bytes(&one->bias);
        outputs += one->weight.shape[0];
    }
    if (bytes > most) {
        return MOE_OK;
    }
    first->memory = moem_allocate(bytes, 0);
    MOEM_REQUIRE(first->memory != NULL, MOE_E_NO_MEMORY, "no memory for %zu bytes of q, k and v",
                 bytes);
    unsigned char *weight = first->memory;
    unsigned char *bias = weight;
    for (int32_t i = 0; i < *count; i++) {
        bias = append(bias, &layers[i].weight);
    }
    unsigned char *end = bias;
    for (int32_t i = 0; i < *count; i++) {
        end = append(end, &layers[i].bias);
    }
    first->weight = moe_tensor_2d(weight, first->weight.dtype, outputs, first->weight.shape[1]);
    first->bias = moe_tensor_1d(bias, first->bias.dtype, outputs);
    *count = 1;
    return MOE_OK;
}

// The tensors as moe_ggemm and moe_matrix_pack take them.
static moe_matrix_source source_of(const moem_linear *l)
{
    const moe_tensor *w = &l->weight;
    moe_matrix_source source;
    memset(&source, 0, sizeof source);
    source.values = moe_tensor_3d(w->data, w->dtype, 1, w->shape[0], w->shape[1]);
    source.values.byte_offset = w->byte_offset;
    if (has_bias(l)) {
        source.bias = moe_tensor_2d(l->bias.data, l->bias.dtype, 1, w->shape[0]);
        source.bias.byte_offset = l->bias.byte_offset;
    }
    return source;
}

moe_status moem_linear_pack(const moe_context *ctx, moem_linear *l)
{
    size_t bytes = 0;
    size_t align = 0;
    const moe_matrix_desc desc = describe(l);
    const moe_matrix_source source = source_of(l);
    MOEM_TRY(moem_linear_bytes(ctx, l, &bytes));
    if (bytes == 0) {
        return MOE_OK;
    }
    MOEM_TRY(moe_matrix_bytes(ctx, &desc, &bytes, &align));
    void *memory = moem_allocate(bytes, align);
    MOEM_REQUIRE(memory != NULL, MOE_E_NO_MEMORY, "no memory for %zu bytes of a packed matrix",
                 bytes);
    moe_status status = moe_matrix_create(ctx, &desc, memory, bytes, &l->matrix);
    status = status ? status : moe_matrix_pack(l->matrix, 0, &source);
    if (status != MOE_OK) {
        moe_matrix_destroy(l->matrix);
        l->matrix = NULL;
        free(memory);
        return status;
    }
    if (l->memory != NULL) { // joined tensors, which have served
        l->weight.data = l->bias.data = NULL;
        free(l->memory);
    }
    l->memory = memory;
    return MOE_OK;
}

moe_status moem_linear_run(const moe_context *ctx, const moem_linear *l, const float *x,
                           int64_t rows, float *y, int64_t stride)
{
    moe_ggemm_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.matrix = l->matrix;
    if (l->matrix == NULL) {
        args.gemm = describe(l).gemm;
        args.weights = source_of(l);
    }
    args.x = moe_tensor_2d(x, MOE_F32, rows, l->weight.shape[1]);
    args.y = moe_tensor_2d(y, MOE_F32, rows, l->weight.shape[0]);
    args.y.stride[0] = stride;
    return moe_ggemm(ctx, &args, NULL);
}

void moem_linear_free(moem_linear *l)
{
    moe_matrix_destroy(l->matrix);
    free(l->memory);
}
