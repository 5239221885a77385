// SPDX-License-Identifier: Apache-2.0
#include "float64/layer.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "float64/glu.h"

#define U 0x1p-24 // half an ulp of f32, relative

// A chain of products sums codes before their scale is applied, so a sum may overflow although the
// scaled one does not. Beyond this magnitude nothing is claimed.
#define SURE_MAX 1e31

/// A value and the largest error that f32 arithmetic may have made on it. e infinite: unknown.
typedef struct real {
    double v, e;
} real;

/// A vector of those.
typedef struct reals {
    double *v, *e;
} reals;

static real get(reals x, int64_t i)
{
    return (real){x.v[i], x.e[i]};
}

static void set(reals x, int64_t i, real r)
{
    x.v[i] = r.v;
    x.e[i] = r.e;
}

static const real unknown = {0.0, HUGE_VAL};

static bool is_unknown(real r)
{
    return r.e == HUGE_VAL && !isnan(r.v);
}

// NaN is certain, whatever the error was; an error that is NaN is unbounded.
static real tidy(double v, double e)
{
    if (isnan(v)) {
        return (real){v, 0.0};
    }
    return (real){v, e < HUGE_VAL ? e : HUGE_VAL};
}

static double largest(moe_dtype dtype)
{
    return dtype == MOE_F32 ? (double)FLT_MAX : dtype == MOE_BF16 ? 0x1.FEp127 : 65504.0;
}

static real round_to(real r, moe_dtype dtype)
{
    const double max = largest(dtype);
    if (!isfinite(r.v) || is_unknown(r)) {
        return r;
    }
    if (fabs(r.v) - r.e >= max + float64_half_ulp(max, dtype)) {
        return (real){copysign(HUGE_VAL, r.v), 0.0};
    }
    if (fabs(r.v) + r.e >= max) {
        return unknown;
    }
    r.e += float64_half_ulp(fabs(r.v) + r.e, dtype);
    return r;
}

static real add(real a, real b)
{
    if (is_unknown(a) || is_unknown(b)) {
        return isnan(a.v) || isnan(b.v) ? (real){(double)NAN, 0.0} : unknown;
    }
    const double v = a.v + b.v;
    return round_to(tidy(v, isfinite(v) ? a.e + b.e : 0.0), MOE_F32);
}

static real multiply(real a, real b)
{
    if (is_unknown(a) || is_unknown(b)) {
        return isnan(a.v) || isnan(b.v) ? (real){(double)NAN, 0.0} : unknown;
    }
    const double v = a.v * b.v;
    if (isinf(a.v) || isinf(b.v)) { // the sign, or NaN, must be certain
        const real finite = isinf(a.v) ? b : a;
        return isinf(finite.v) || finite.e == 0.0 || fabs(finite.v) > finite.e ? tidy(v, 0.0)
                                                                               : unknown;
    }
    return round_to(tidy(v, fabs(a.v) * b.e + fabs(b.v) * a.e + a.e * b.e), MOE_F32);
}

// The same where NaN or infinities take part: what is certain of the sum. What is unknown may be
// anything, and an infinite weight needs the sign of what it multiplies.
static real dot_of_specials(const double *w, reals x, int64_t k, double bias)
{
    bool certain = true;
    double sum = bias;
    double finite = 0.0; // beside an infinity, the rest must not overflow to the other one
    for (int64_t i = 0; i < k; i++) {
        const bool either_sign = isinf(w[i]) && x.e[i] > 0.0 && fabs(x.v[i]) <= x.e[i];
        if (!isnan(w[i]) && (is_unknown(get(x, i)) || either_sign)) {
            certain = false;
            continue;
        }
        const double product = w[i] * x.v[i];
        sum += product;
        finite += isfinite(product) ? fabs(w[i]) * (fabs(x.v[i]) + x.e[i]) : 0.0;
    }
    if (isnan(sum)) {
        return (real){sum, 0.0};
    }
    return certain && isinf(sum) && finite <= SURE_MAX ? (real){sum, 0.0} : unknown;
}

// (w . x + bias) * weight in f32, summed as the model says.
static real dot(const double *w, reals x, int64_t k, const double *bias, real weight,
                float64_model model)
{
    const double b = bias != NULL ? *bias : 0.0;
    double sum = b;
    double all = fabs(b);
    double carried = 0.0;
    for (int64_t i = 0; i < k; i++) {
        sum += w[i] * x.v[i];
        all += fabs(w[i]) * (fabs(x.v[i]) + x.e[i]);
        carried += fabs(w[i]) * x.e[i];
    }
    real r = unknown;
    if (!isfinite(sum) || !isfinite(all)) {
        r = dot_of_specials(w, x, k, b);
    } else if (all <= SURE_MAX) {
        r = (real){sum, carried + float64_ggemm_bound(model, k, all, 1.0, sum, MOE_F32)};
    }
    return weight.v == 1.0 && weight.e == 0.0 ? r : multiply(r, weight);
}

static double corner_spread(const float64_act *act, real g, real u, double v, bool *certain)
{
    double spread = 0.0;
    for (int i = 0; i < 4; i++) {
        double error;
        const double at = float64_glu(act, i % 2 == 0 ? g.v - g.e : g.v + g.e,
                                      i / 2 == 0 ? u.v - u.e : u.v + u.e, &error);
        if (isfinite(v) != isfinite(at) || isnan(v) != isnan(at) || (isinf(v) && at != v)) {
            *certain = false;
        }
        spread = fmax(spread, fabs(at - v) + error);
    }
    return spread;
}

// The activation over the box of its inputs' errors: the corners, and the curvature between them.
static real activate(const float64_act *act, bool gated, real g, real u)
{
    double error;
    bool certain = true;
    if (isnan(g.v) || (gated && isnan(u.v))) {
        return (real){(double)NAN, 0.0};
    }
    if (is_unknown(g) || (gated && is_unknown(u))) {
        return unknown;
    }
    const double v = float64_glu(act, g.v, u.v, &error);
    const double spread = corner_spread(act, g, u, v, &certain);
    if (isinf(u.v)) {
        // What is below f32's range at the gate may be 0 there, and 0 times infinity NaN.
        const double gate = float64_glu(act, g.v, 1.0, &error);
        certain = certain && (gate == 0.0 || fabs(gate) > 1e-35);
    }
    if (!certain) {
        return unknown;
    }
    if (!isfinite(v)) {
        return tidy(v, 0.0);
    }
    const double curvature = (2.0 + act->alpha * act->alpha) * g.e * g.e *
                             (1.0 + (isfinite(u.v) ? fabs(u.v) : 0.0) + u.e + act->beta);
    return round_to(tidy(v, spread + curvature), MOE_F32);
}

static int64_t gate_row(const float64_mlp *m, int64_t j)
{
    switch (m->gate_up) {
    case MOE_UP_FIRST:
        return m->inter + j;
    case MOE_GATE_UP_INTERLEAVED:
        return 2 * j;
    case MOE_UP_GATE_INTERLEAVED:
        return 2 * j + 1;
    default:
        return j;
    }
}

static int64_t up_row(const float64_mlp *m, int64_t j)
{
    switch (m->gate_up) {
    case MOE_GATE_FIRST:
        return m->inter + j;
    case MOE_GATE_UP_INTERLEAVED:
        return 2 * j + 1;
    case MOE_UP_GATE_INTERLEAVED:
        return 2 * j;
    default:
        return j;
    }
}

static real row_of_product(const float64_mlp *m, int g, int32_t e, int64_t row, reals x,
                           real weight)
{
    const bool gated = moe_activation_gated(m->activation) != 0;
    const int64_t n = g == 0 ? (gated ? 2 * m->inter : m->inter) : m->width;
    const int64_t k = g == 0 ? m->width : m->inter;
    return dot(m->w[g] + (e * n + row) * k, x, k,
               m->bias[g] != NULL ? &m->bias[g][e * n + row] : NULL, weight, m->model[g]);
}

// One row through expert e, to the partial dtype. h is scratch.
static void mlp_row(const float64_layer *l, const float64_mlp *m, int32_t e, reals x, real weight,
                    reals h, reals y)
{
    const float64_act act = {m->activation, m->alpha, m->beta, m->linear_beta, m->limit};
    const bool gated = moe_activation_gated(m->activation) != 0;
    const real one = {1.0, 0.0};
    for (int64_t j = 0; j < m->inter; j++) {
        const real g = row_of_product(m, 0, e, gate_row(m, j), x, one);
        const real u = gated ? row_of_product(m, 0, e, up_row(m, j), x, one) : one;
        set(h, j, round_to(activate(&act, gated, g, u), l->inter_dtype));
    }
    for (int64_t n = 0; n < m->width; n++) {
        set(y, n, round_to(row_of_product(m, 1, e, n, h, weight), l->partial_dtype));
    }
}

static real sigmoid(real z)
{
    if (isnan(z.v) || is_unknown(z)) {
        return z;
    }
    const double v = 1.0 / (1.0 + exp(-z.v));
    const double low = 1.0 / (1.0 + exp(-(z.v - z.e)));
    const double high = 1.0 / (1.0 + exp(-(z.v + z.e)));
    return (real){v, fmax(high - v, v - low) + 4.0 * U * v + 0x1p-149};
}

/// Scratch of a token.
typedef struct scratch {
    double *memory;
    reals x, latent, weighted, h, y, sum, out;
} scratch;

static bool scratch_make(const float64_layer *l, scratch *s)
{
    const int64_t width = l->latent > 0 ? l->latent : l->hidden;
    const int64_t inter = l->routed.inter > l->shared.inter ? l->routed.inter : l->shared.inter;
    const int64_t wide = width > l->hidden ? width : l->hidden;
    const int64_t sizes[7] = {l->hidden, width, width, inter, wide, width, l->hidden};
    reals *const vectors[7] = {&s->x, &s->latent, &s->weighted, &s->h, &s->y, &s->sum, &s->out};
    int64_t total = 0;
    for (int i = 0; i < 7; i++) {
        total += 2 * sizes[i];
    }
    s->memory = calloc((size_t)total, sizeof(double));
    if (s->memory == NULL) {
        return false;
    }
    double *at = s->memory;
    for (int i = 0; i < 7; i++) {
        vectors[i]->v = at;
        vectors[i]->e = at + sizes[i];
        at += 2 * sizes[i];
    }
    return true;
}

// One slot: s->y is its result in the partial dtype. False: the slot is absent.
static bool slot_row(const float64_layer *l, const float64_slot *slot, reals x, scratch *s)
{
    const int64_t width = l->routed.width;
    real weight = {slot->weight, slot->weight_error};
    if (l->weight_stage == MOE_WEIGHT_NONE) {
        weight = (real){1.0, 0.0};
    }
    if (slot->expert == FLOAT64_IDENTITY) {
        for (int64_t n = 0; n < width; n++) {
            set(s->y, n, round_to(multiply(weight, get(x, n)), l->partial_dtype));
        }
        return true;
    }
    if (slot->expert < 0) {
        return false;
    }
    if (l->weight_stage == MOE_WEIGHT_INPUT) {
        for (int64_t n = 0; n < width; n++) {
            set(s->weighted, n, round_to(multiply(weight, get(x, n)), l->x_dtype));
        }
        x = s->weighted;
        weight = (real){1.0, 0.0};
    }
    mlp_row(l, &l->routed, slot->expert, x, weight, s->h, s->y);
    return true;
}

static void add_shared(const float64_layer *l, const float64_token *t, scratch *s)
{
    real weight = {1.0, 0.0};
    if (l->shared_gate_kind == MOE_SHARED_SIGMOID) {
        weight = sigmoid(dot(l->shared_gate, s->x, l->hidden, NULL, weight, l->shared_gate_model));
    }
    for (int32_t e = 0; e < l->shared.count; e++) {
        if (l->shared_gate_kind == MOE_SHARED_ROUTER_WEIGHTED) {
            weight = (real){t->shared_weights[e], t->shared_weight_errors[e]};
        }
        mlp_row(l, &l->shared, e, s->x, weight, s->h, s->y);
        for (int64_t n = 0; n < l->hidden; n++) {
            set(s->out, n, add(get(s->out, n), get(s->y, n)));
        }
    }
}

// Sum of the slots, output transform, bias, shared experts, what was there before; one rounding.
static void combine(const float64_layer *l, const float64_token *t, reals x, scratch *s)
{
    const int64_t width = l->routed.width;
    const real zero = {0.0, 0.0};
    const real one = {1.0, 0.0};
    for (int64_t n = 0; n < width; n++) {
        set(s->sum, n, zero);
    }
    for (int32_t j = 0; j < t->num_slots; j++) {
        if (slot_row(l, &t->slots[j], x, s)) {
            for (int64_t n = 0; n < width; n++) {
                set(s->sum, n, add(get(s->sum, n), get(s->y, n)));
            }
        }
    }
    for (int64_t n = 0; n < l->latent; n++) {
        set(s->sum, n, round_to(get(s->sum, n), l->partial_dtype));
    }
    for (int64_t n = 0; n < l->hidden; n++) {
        set(s->out, n,
            l->latent > 0 ? dot(l->latent_out + n * l->latent, s->sum, l->latent, NULL, one,
                                l->latent_out_model)
                          : get(s->sum, n));
        if (l->output_bias != NULL) {
            set(s->out, n, add(get(s->out, n), (real){l->output_bias[n], 0.0}));
        }
    }
    if (l->shared.count > 0) {
        add_shared(l, t, s);
    }
    for (int64_t n = 0; n < l->hidden; n++) {
        real r = get(s->out, n);
        if (t->previous != NULL) {
            r = add(r, (real){t->previous[n], 0.0});
        }
        r = round_to(r, l->out_dtype);
        t->value[n] = r.v;
        t->bound[n] = r.e;
    }
}

// A result per slot. Where out holds the partial dtype's values, it adds no rounding.
static void per_slot(const float64_layer *l, const float64_token *t, reals x, scratch *s)
{
    for (int32_t j = 0; j < t->num_slots; j++) {
        const bool there = slot_row(l, &t->slots[j], x, s);
        for (int64_t n = 0; n < l->hidden; n++) {
            const int64_t at = j * l->hidden + n;
            real r = there ? get(s->y, n) : (real){0.0, 0.0};
            if (t->previous != NULL) {
                r = add(r, (real){t->previous[at], 0.0});
            }
            if (t->previous != NULL ||
                (there && l->out_dtype != l->partial_dtype && l->out_dtype != MOE_F32)) {
                r = round_to(r, l->out_dtype);
            }
            t->value[at] = r.v;
            t->bound[at] = r.e;
        }
    }
}

bool float64_layer_token(const float64_layer *l, const float64_token *t)
{
    scratch s;
    const real one = {1.0, 0.0};
    if (!scratch_make(l, &s)) {
        return false;
    }
    for (int64_t n = 0; n < l->hidden; n++) {
        set(s.x, n, (real){t->x[n], 0.0});
    }
    reals x = s.x;
    for (int64_t n = 0; n < l->latent; n++) {
        const real r =
            dot(l->latent_in + n * l->hidden, s.x, l->hidden, NULL, one, l->latent_in_model);
        set(s.latent, n, round_to(r, l->x_dtype));
        x = s.latent;
    }
    if (l->combined) {
        combine(l, t, x, &s);
    } else {
        per_slot(l, t, x, &s);
    }
    free(s.memory);
    return true;
}

double float64_ratio(double have, double value, double bound)
{
    if (bound == HUGE_VAL && !isnan(value)) {
        return 0.0;
    }
    if (isnan(value) || isnan(have)) {
        return isnan(value) && isnan(have) ? 0.0 : HUGE_VAL;
    }
    if (isinf(value) || isinf(have)) {
        return have == value ? 0.0 : HUGE_VAL;
    }
    const double error = fabs(have - value);
    return error == 0.0 ? 0.0 : bound > 0.0 ? error / bound : HUGE_VAL;
}
