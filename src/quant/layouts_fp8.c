// SPDX-License-Identifier: Apache-2.0
// e4m3fn and e4m3fnuz: the same code means half as much in the second (bias 8 instead of 7), so a
// matrix changes its dialect exactly when its scales double. What has no counterpart is refused:
//   code 0x80   -0 in e4m3fn, becomes 0; NaN in e4m3fnuz
//   code 0x7F   NaN in e4m3fn (0xFF too); 240 in e4m3fnuz, 480 in e4m3fn's terms
//   scales that are not finite, or whose double (half) the type does not hold
// Everything is checked before the first byte is written.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "numerics/fp8.h"
#include "quant/elements.h"
#include "quant/layouts.h"

typedef struct dialect {
    const char *call;
    moe_dtype from, to;
    bool to_fnuz;
} dialect;

static const dialect to_fnuz = {"moe_layout_to_fnuz", MOE_E4M3FN, MOE_E4M3FNUZ, true};
static const dialect from_fnuz = {"moe_layout_from_fnuz", MOE_E4M3FNUZ, MOE_E4M3FN, false};

// Both sides of one tensor, with leading dimensions of 1 up to four.
typedef struct pair {
    const char *field;
    moe_tensor src, dst;
} pair;

static moe_tensor four_dims(const moe_tensor *t)
{
    moe_tensor r = *t;
    const int lead = MOE_MAX_DIMS - t->ndim;
    for (int i = MOE_MAX_DIMS; i-- > 0;) {
        r.shape[i] = i >= lead ? t->shape[i - lead] : 1;
        r.stride[i] = i >= lead ? t->stride[i - lead] : 1;
    }
    r.ndim = MOE_MAX_DIMS;
    return r;
}

static bool is_same_view(const moe_tensor *a, const moe_tensor *b)
{
    bool same = moei_tensor_data(a) == moei_tensor_data(b);
    for (int i = 0; i < a->ndim; i++) {
        same = same && (a->shape[i] <= 1 || a->stride[i] == b->stride[i]);
    }
    return same;
}

// dst_dtypes 0: src's own.
static moe_status check_field(const dialect *d, const char *field, const moe_tensor *src,
                              uint32_t src_dtypes, const moe_tensor *dst, uint32_t dst_dtypes,
                              pair *out)
{
    char s_name[32];
    char d_name[32];
    (void)snprintf(s_name, sizeof s_name, "src.%s", field);
    (void)snprintf(d_name, sizeof d_name, "dst.%s", field);
    memset(out, 0, sizeof *out);
    out->field = field;
    MOE_REQUIRE((src->data == NULL) == (dst->data == NULL), MOE_E_ARGUMENT,
                "%s: %s is %s, %s is %s", d->call, s_name, src->data == NULL ? "absent" : "given",
                d_name, dst->data == NULL ? "absent" : "given");
    if (src->data == NULL) {
        return MOE_OK;
    }
    MOE_REQUIRE(src->ndim >= 0 && src->ndim <= MOE_MAX_DIMS, MOE_E_SHAPE,
                "%s: %s has %d dimensions, at most %d", d->call, s_name, (int)src->ndim,
                MOE_MAX_DIMS);
    const int64_t any[MOE_MAX_DIMS] = {-1, -1, -1, -1};
    MOE_TRY(moei_layout_check_in(src, d->call, s_name, src_dtypes, src->ndim, any));
    MOE_TRY(moei_layout_check_out(dst, d->call, d_name,
                                  dst_dtypes != 0 ? dst_dtypes : MOEI_DTYPE_BIT(src->dtype),
                                  src->ndim, src->shape));
    out->src = four_dims(src);
    out->dst = four_dims(dst);
    return MOE_OK;
}

// ---- elements -----------------------------------------------------------------------------------

// Why a code has no counterpart; NULL if it has one.
static const char *code_fault(const dialect *d, uint8_t code)
{
    if ((code & 0x7Fu) == 0x7Fu) {
        return d->to_fnuz ? "NaN in e4m3fn" : "240, twice that is beyond e4m3fn's 448";
    }
    return code == 0x80u && !d->to_fnuz ? "NaN in e4m3fnuz" : NULL;
}

// *out: the scale doubled, or halved, in the type's bytes. Why that cannot be; NULL if it can.
static const char *scale_code(const dialect *d, moe_dtype dtype, const uint8_t *in, uint8_t *out)
{
    const char *inexact = d->to_fnuz ? "its double is not finite" : "its half is not exact";
    if (dtype == MOE_U8 || dtype == MOE_E8M0) {
        const int code = d->to_fnuz ? in[0] + 1 : in[0] - 1;
        *out = (uint8_t)code;
        return in[0] == 255 ? "NaN"
               : code > 254 ? "2^127, its double is beyond E8M0"
               : code < 0   ? "2^-127, its half is beyond E8M0"
                            : NULL;
    }
    const float value = moei_load_one(dtype, in, 0);
    const float scaled = d->to_fnuz ? value * 2.0f : value * 0.5f;
    moei_store_f32(dtype, out, 1, &scaled);
    const float stored = moei_load_one(dtype, out, 0);
    if (!isfinite(value)) {
        return isnan(value) ? "NaN" : "infinite";
    }
    const float back = d->to_fnuz ? stored * 0.5f : stored * 2.0f;
    return isfinite(stored) && back == value ? NULL : inexact;
}

// Bytes of the element at an index.
static uint8_t *element(const moe_tensor *t, const int64_t *i)
{
    const int64_t at =
        i[0] * t->stride[0] + i[1] * t->stride[1] + i[2] * t->stride[2] + i[3] * t->stride[3];
    return moei_tensor_data(t) + at * moe_dtype_bits(t->dtype) / 8;
}

static bool next_index(const moe_tensor *t, int64_t *i, int dims)
{
    for (int k = dims; k-- > 0;) {
        if (++i[k] < t->shape[k]) {
            return true;
        }
        i[k] = 0;
    }
    return false;
}

static bool has_elements(const moe_tensor *t)
{
    return t->shape[0] > 0 && t->shape[1] > 0 && t->shape[2] > 0 && t->shape[3] > 0;
}

static moe_status fault(const dialect *d, const pair *p, int ndim, bool experts, const int64_t *i,
                        const uint8_t *bytes, const char *why)
{
    char index[96] = "[";
    const int64_t *at = i + MOE_MAX_DIMS - ndim;
    int n = 1;
    for (int k = experts ? 1 : 0; k < ndim; k++) {
        n += snprintf(index + n, sizeof index - (size_t)n, "%" PRId64 "%s", at[k],
                      k + 1 < ndim ? ", " : "");
    }
    const int size = moe_dtype_bits(p->src.dtype) / 8;
    uint32_t code = 0;
    memcpy(&code, bytes, (size_t)size);
    return moe_fail(MOE_E_VALUE,
                    "%s: src.%s of expert %" PRId64 ": element %s] is 0x%0*" PRIX32 ", %s", d->call,
                    p->field, experts ? at[0] : 0, index, 2 * size, code, why);
}

// ---- tensors ------------------------------------------------------------------------------------

// Whether a row has a code without a counterpart: 0x7F with either sign, or `refused`.
static bool row_has_fault(const uint8_t *row, int64_t step, int64_t n, unsigned refused)
{
    unsigned faults = 0;
    if (step == 1) { // apart, for compilers vectorise it
        for (int64_t c = 0; c < n; c++) {
            faults |= (unsigned)((row[c] & 0x7Fu) == 0x7Fu) | (unsigned)(row[c] == refused);
        }
        return faults != 0;
    }
    for (int64_t c = 0; c < n; c++) {
        faults |=
            (unsigned)((row[c * step] & 0x7Fu) == 0x7Fu) | (unsigned)(row[c * step] == refused);
    }
    return faults != 0;
}

static moe_status check_codes(const dialect *d, const pair *p, int ndim, bool experts)
{
    const moe_tensor *t = &p->src;
    int64_t i[MOE_MAX_DIMS] = {0};
    if (!has_elements(t)) {
        return MOE_OK;
    }
    do {
        i[3] = 0;
        if (!row_has_fault(element(t, i), t->stride[3], t->shape[3], d->to_fnuz ? 0x7Fu : 0x80u)) {
            continue;
        }
        for (; i[3] < t->shape[3]; i[3]++) {
            const uint8_t *code = element(t, i);
            const char *why = code_fault(d, *code);
            if (why != NULL) {
                return fault(d, p, ndim, experts, i, code, why);
            }
        }
    } while (next_index(t, i, 3));
    return MOE_OK;
}

// Both ways: checked codes of e4m3fnuz map to themselves. Source and result may be the same memory.
static void convert_codes(const pair *p)
{
    int64_t i[MOE_MAX_DIMS] = {0};
    if (!has_elements(&p->src)) {
        return;
    }
    do {
        int nan;
        i[3] = 0;
        const uint8_t *from = element(&p->src, i);
        uint8_t *to = element(&p->dst, i);
        const int64_t n = p->src.shape[3];
        if (p->src.stride[3] == 1) { // a result always has stride 1
            for (int64_t c = 0; c < n; c++) {
                to[c] = moei_e4m3fn_to_e4m3fnuz_code(from[c], &nan);
            }
            continue;
        }
        for (int64_t c = 0; c < n; c++) {
            to[c] = moei_e4m3fn_to_e4m3fnuz_code(from[c * p->src.stride[3]], &nan);
        }
    } while (next_index(&p->src, i, 3));
}

// write: the result goes to dst; the same loop without it checks.
static moe_status walk_scales(const dialect *d, const pair *p, int ndim, bool experts, bool write)
{
    int64_t i[MOE_MAX_DIMS] = {0};
    if (p->src.data == NULL || !has_elements(&p->src)) {
        return MOE_OK;
    }
    do {
        uint8_t scaled[4];
        const uint8_t *from = element(&p->src, i);
        const char *why = scale_code(d, p->src.dtype, from, scaled);
        if (why != NULL) {
            return fault(d, p, ndim, experts, i, from, why);
        }
        if (write) {
            memcpy(element(&p->dst, i), scaled, (size_t)moe_dtype_bits(p->src.dtype) / 8);
        }
    } while (next_index(&p->src, i, MOE_MAX_DIMS));
    return MOE_OK;
}

static void copy_elements(const pair *p)
{
    int64_t i[MOE_MAX_DIMS] = {0};
    if (p->src.data == NULL || !has_elements(&p->src)) {
        return;
    }
    do {
        memmove(element(&p->dst, i), element(&p->src, i), (size_t)moe_dtype_bits(p->src.dtype) / 8);
    } while (next_index(&p->src, i, MOE_MAX_DIMS));
}

// A view of dst may be its own source, and nothing else of either side.
static moe_status check_memory(const dialect *d, const pair *pairs, int n)
{
    for (int i = 0; i < n; i++) {
        char name[32];
        char other[32];
        (void)snprintf(name, sizeof name, "dst.%s", pairs[i].field);
        for (int j = 0; j < n; j++) {
            if (i != j || !is_same_view(&pairs[i].dst, &pairs[i].src)) {
                (void)snprintf(other, sizeof other, "src.%s", pairs[j].field);
                MOE_TRY(moei_layout_disjoint(&pairs[i].dst, name, &pairs[j].src, other, d->call));
            }
            if (j < i) {
                (void)snprintf(other, sizeof other, "dst.%s", pairs[j].field);
                MOE_TRY(moei_layout_disjoint(&pairs[i].dst, name, &pairs[j].dst, other, d->call));
            }
        }
    }
    return MOE_OK;
}

static moe_status convert(const dialect *d, const moe_matrix_source *src,
                          const moe_matrix_source *dst)
{
    MOE_REQUIRE(src != NULL && dst != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", d->call,
                src == NULL ? "src" : "dst");
    MOE_REQUIRE(src->values.data != NULL, MOE_E_ARGUMENT, "%s: src.values is absent (data NULL)",
                d->call);
    MOE_REQUIRE(src->scale2.data == NULL && src->zero_points.data == NULL &&
                    dst->scale2.data == NULL && dst->zero_points.data == NULL,
                MOE_E_ARGUMENT, "%s: %s is given, %s has none", d->call,
                src->scale2.data != NULL || dst->scale2.data != NULL ? "scale2" : "zero_points",
                moe_dtype_name(d->from));
    const uint32_t u8 = MOEI_DTYPE_BIT(MOE_U8);
    const uint32_t scale_dtypes = MOEI_DTYPES_FLOAT | MOEI_DTYPE_BIT(MOE_E8M0) | u8;
    pair p[4];
    MOE_TRY(check_field(d, "values", &src->values, MOEI_DTYPE_BIT(d->from) | u8, &dst->values,
                        MOEI_DTYPE_BIT(d->to) | u8, &p[0]));
    MOE_TRY(check_field(d, "scales", &src->scales, scale_dtypes, &dst->scales, 0, &p[1]));
    MOE_TRY(check_field(d, "act_scale", &src->act_scale, MOEI_DTYPE_BIT(MOE_F32), &dst->act_scale,
                        0, &p[2]));
    MOE_TRY(check_field(d, "bias", &src->bias, MOEI_DTYPES_FLOAT, &dst->bias, 0, &p[3]));
    MOE_TRY(check_memory(d, p, 4));

    const bool experts = src->values.ndim >= 3;
    MOE_TRY(check_codes(d, &p[0], src->values.ndim, experts));
    MOE_TRY(walk_scales(d, &p[1], src->scales.ndim, experts && src->scales.ndim > 0, false));
    MOE_TRY(walk_scales(d, &p[2], src->act_scale.ndim, false, false));

    convert_codes(&p[0]);
    MOE_TRY(walk_scales(d, &p[1], src->scales.ndim, experts && src->scales.ndim > 0, true));
    MOE_TRY(walk_scales(d, &p[2], src->act_scale.ndim, false, true));
    copy_elements(&p[3]);
    return MOE_OK;
}

moe_status moe_layout_to_fnuz(const moe_matrix_source *src, const moe_matrix_source *dst)
{
    return convert(&to_fnuz, src, dst);
}

moe_status moe_layout_from_fnuz(const moe_matrix_source *src, const moe_matrix_source *dst)
{
    return convert(&from_fnuz, src, dst);
}
