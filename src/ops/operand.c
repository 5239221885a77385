// SPDX-License-Identifier: Apache-2.0
#include "ops/operand.h"

#include <inttypes.h>

#include "core/tensor.h"

// Elements of k per scale as a product sees them: 0 where a row or the tensor has one scale.
static void set_scale_form(const moe_quant_desc *act, moei_operand *out)
{
    out->group = act->group;
    out->packed = act->scale_type == MOE_SCALE_UE8M0_PACKED;
    out->scale_dtype = out->packed ? MOE_E8M0 : moei_scale_dtype(act->scale_type);
}

moe_status moei_operand_from_tensors(const moe_tensor *x, const moe_tensor *x_scales,
                                     const moe_tensor *act_scale, const moe_quant_desc *act,
                                     const char *call, moei_operand *out, int64_t *rows, int64_t *k)
{
    const int64_t any[3] = {-1, -1, -1};
    const int ndim = x->ndim == 3 ? 3 : 2;
    moe_quant_desc quant = *act;
    moei_operand o = {0};
    if (quant.spec == MOE_QUANT_NONE) {
        MOE_TRY(moei_tensor_check(x, call, "x", MOEI_DTYPES_FLOAT, ndim, any));
        MOE_REQUIRE(x_scales->data == NULL, MOE_E_ARGUMENT,
                    "%s: x_scales are given, the descriptor names no quantiser of x", call);
        *k = x->shape[ndim - 1];
        o.dtype = x->dtype;
    } else {
        moei_quant_resolve(&quant);
        const int bits = moe_dtype_bits(quant.elem);
        const uint32_t mask =
            MOEI_DTYPE_BIT(quant.elem) | (bits <= 8 ? MOEI_DTYPE_BIT(MOE_U8) : 0u);
        MOE_TRY(moei_tensor_check(x, call, "x", mask, ndim, any));
        const int64_t inner = x->shape[ndim - 1];
        if (x->dtype == quant.elem) {
            *k = inner;
        } else if (*k < 0 || (*k * bits + 7) / 8 != inner) {
            *k = inner * 8 / bits;
        }
        o.dtype = quant.elem;
        set_scale_form(&quant, &o);
    }
    *rows = x->shape[ndim - 2];
    const int64_t batches = ndim == 3 ? x->shape[0] : 1;
    o.data = moei_tensor_data(x);
    o.row_stride = moei_tensor_stride_bytes(x, ndim - 2);
    o.batch_stride = ndim == 3 ? moei_tensor_stride_bytes(x, 0) : 0;
    if (quant.spec != MOE_QUANT_NONE) {
        const moei_scale_shape s = moei_quant_scale_shape(&quant, batches, *rows, *k);
        const moei_quant_info *info = moei_quant_get(quant.spec);
        if (moei_quant_needs_given_scale(&quant) || moei_quant_has_global_scale(&quant)) {
            const int64_t one[1] = {1};
            MOE_TRY(moei_tensor_check(act_scale, call, "activation scale", MOEI_DTYPE_BIT(MOE_F32),
                                      act_scale->ndim == 0 ? 0 : 1, one));
        }
        if (info->scale == MOEI_SCALE_GIVEN) {
            MOE_REQUIRE(x_scales->data == NULL, MOE_E_ARGUMENT,
                        "%s: x_scales are given, quantiser %s has one given scale", call,
                        info->name);
            o.scales = moei_tensor_data(act_scale);
        } else if (s.row_stride == 0) { // one scale for all rows
            const int64_t one[1] = {1};
            MOE_TRY(moei_tensor_check(x_scales, call, "x_scales", MOEI_DTYPE_BIT(s.dtype), 1, one));
            o.scales = moei_tensor_data(x_scales);
        } else {
            const uint32_t mask = MOEI_DTYPE_BIT(s.dtype) |
                                  (moe_dtype_bits(s.dtype) == 8 ? MOEI_DTYPE_BIT(MOE_U8) : 0u);
            moe_tensor t = *x_scales;
            if (t.ndim == ndim - 1 && s.columns == 1) { // [rows] of a scale per row
                t.shape[t.ndim] = 1;
                t.stride[t.ndim] = 1;
                t.ndim++;
            }
            const int64_t shape3[3] = {batches, s.rows, s.columns};
            MOE_TRY(moei_tensor_check_any_order(&t, call, "x_scales", mask, ndim,
                                                ndim == 3 ? shape3 : shape3 + 1));
            o.scales = moei_tensor_data(&t);
            o.scale_row_stride = t.stride[ndim - 2];
            o.scale_k_stride = t.stride[ndim - 1];
            o.scale_batch_stride = ndim == 3 ? t.stride[0] : 0;
        }
        if (moei_quant_has_global_scale(&quant)) {
            o.scale2 = (const float *)(const void *)moei_tensor_data(act_scale);
        }
    }
    *out = o;
    return MOE_OK;
}

moei_operand moei_operand_from_quantize(const moek_quantize_args *quantize)
{
    moei_operand o = {0};
    set_scale_form(&quantize->quant, &o);
    o.data = quantize->q;
    o.dtype = quantize->quant.elem;
    o.row_stride = quantize->q_row_stride;
    o.batch_stride = quantize->q_batch_stride;
    o.scales = quantize->scales;
    o.scale_row_stride = quantize->scale_row_stride;
    o.scale_k_stride = quantize->scale_k_stride;
    o.scale_batch_stride = quantize->scale_batch_stride;
    o.scale2 = quantize->global_scale;
    return o;
}
