// SPDX-License-Identifier: Apache-2.0
#include "float64/route.h"

#include <math.h>

#define U    5.9604644775390625e-8 // 2^-24: half a unit in the last place of 1
#define STEP 0x1p-149              // between subnormal numbers of f32

// Of each score: the relative error in units of U, and what underflow adds to it, absolute.
typedef struct scores {
    double value[FLOAT64_ROUTE_ROWS];
    double error[FLOAT64_ROUTE_ROWS];
    double step[FLOAT64_ROUTE_ROWS];
} scores;

static double finite(double x)
{
    return isfinite(x) ? x : 0.0;
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static double softplus(double x)
{
    return x > 0.0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

// What f32 cannot tell from the root of v: v itself comes in steps of 2^-149.
static double root_step(double v)
{
    return sqrt(v + STEP) - sqrt(fmax(v - STEP, 0.0));
}

// Softmax over the `n` values of x that `in` admits (NULL: all). Error: the difference l - m
// rounds, which e^ turns into |l - m| units; 2 for e^; the same of every term of the sum; `chain`
// additions; 2 for reciprocal and product, or the division. Infinite and NaN values of x spread as
// IEEE says; what they leave that is not finite becomes 0.
static void softmax(const double *x, const bool *in, int32_t n, double chain, double *value,
                    double *error)
{
    double m = -HUGE_VAL;
    double sum = 0.0;
    double sum_error = 0.0;
    for (int32_t i = 0; i < n; i++) {
        if ((in == NULL || in[i]) && x[i] > m) {
            m = x[i];
        }
    }
    for (int32_t i = 0; i < n; i++) {
        value[i] = in == NULL || in[i] ? exp(x[i] - m) : 0.0;
        error[i] = isfinite(x[i] - m) ? fabs(x[i] - m) + 2.0 : 2.0;
        sum += value[i];
        sum_error += value[i] * error[i];
    }
    for (int32_t i = 0; i < n; i++) {
        value[i] = finite(value[i] / sum);
        error[i] += finite(sum_error / sum) + chain + 2.0;
    }
}

static double lane_chain(int32_t n)
{
    return ceil((double)n / 32.0) + 5.0;
}

static void score_all(const float64_route *r, scores *s)
{
    const moe_route_desc *d = r->desc;
    const int32_t keyed = r->num_experts + d->zero_experts;
    static _Thread_local double logits[FLOAT64_ROUTE_ROWS];
    for (int32_t e = 0; e < keyed + d->shared_scores; e++) {
        logits[e] = (double)r->logits[e];
        s->step[e] = STEP;
        switch (d->scoring) {
        case MOE_SCORING_SQRTSOFTPLUS:
            s->value[e] = finite(sqrt(softplus(logits[e])));
            s->error[e] = 3.0;
            if (softplus(logits[e]) < 0x1p-126) {
                s->step[e] = root_step(softplus(logits[e]));
            }
            break;
        default:
            s->value[e] = finite(sigmoid(logits[e]));
            s->error[e] = 2.0;
            break;
        }
    }
    if (d->scoring == MOE_SCORING_SOFTMAX) {
        softmax(logits, NULL, keyed, lane_chain(keyed), s->value, s->error);
    }
}

static void note_margin(float64_route *r, double a, double b, double size)
{
    if (a != b && isfinite(a) && isfinite(b)) {
        const double gap = fabs(a - b) / fmax(size, 1e-300);
        r->margin = fmin(r->margin, gap);
    }
}

// Takes the largest of n keys, lower index first, k times. Comparisons that decided are noted.
static void choose(float64_route *r, const double *key, const double *size, int32_t n, int32_t k,
                   int32_t *chosen)
{
    static _Thread_local bool taken[FLOAT64_ROUTE_ROWS];
    for (int32_t e = 0; e < n; e++) {
        taken[e] = false;
    }
    for (int32_t j = 0; j < k; j++) {
        int32_t best = -1;
        for (int32_t e = 0; e < n; e++) {
            if (!taken[e] && (best < 0 || key[e] > key[best])) {
                best = e;
            }
        }
        taken[best] = true;
        chosen[j] = best;
        for (int32_t e = 0; e < n; e++) {
            if (!taken[e]) {
                note_margin(r, key[e], key[best], fmax(size[e], size[best]));
            }
        }
    }
}

// Keeps the best groups. False where too few have anything to choose.
static bool keep_groups(float64_route *r, scores *s, double *key, const double *size)
{
    const moe_route_desc *d = r->desc;
    const int32_t width = r->num_experts / d->num_groups;
    static _Thread_local double group[FLOAT64_ROUTE_ROWS];
    static _Thread_local double group_size[FLOAT64_ROUTE_ROWS];
    static _Thread_local bool kept[FLOAT64_ROUTE_ROWS];
    static _Thread_local int32_t chosen[FLOAT64_ROUTE_ROWS];
    for (int32_t e = 0; e < r->num_experts; e++) {
        if (!isfinite((double)r->logits[e])) {
            key[e] = -HUGE_VAL;
            s->value[e] = 0.0;
        }
    }
    for (int32_t g = 0; g < d->num_groups; g++) {
        int32_t two[2] = {g * width, -1};
        for (int32_t i = 1; i < width; i++) {
            const int32_t e = g * width + i;
            if (key[e] > key[two[0]]) {
                two[1] = two[0];
                two[0] = e;
            } else if (two[1] < 0 || key[e] > key[two[1]]) {
                two[1] = e;
            }
        }
        group[g] = key[two[0]];
        group_size[g] = size[two[0]];
        if (d->group_score == MOE_GROUP_SCORE_TOP2_SUM) {
            group[g] += key[two[1]];
            group_size[g] += size[two[1]];
        }
        group[g] = isnan(group[g]) ? -HUGE_VAL : group[g];
        kept[g] = false;
    }
    choose(r, group, group_size, d->num_groups, d->top_groups, chosen);
    if (group[chosen[d->top_groups - 1]] == -HUGE_VAL) {
        return false;
    }
    for (int32_t i = 0; i < d->top_groups; i++) {
        kept[chosen[i]] = true;
    }
    for (int32_t g = 0; g < d->num_groups; g++) {
        for (int32_t e = g * width; !kept[g] && e < (g + 1) * width; e++) {
            if (isfinite((double)r->logits[e])) {
                key[e] = d->group_mask_zero ? 0.0 : -HUGE_VAL;
            }
        }
    }
    return true;
}

// ids, by keys. False where the token gets equal weights.
static bool select_ids(float64_route *r, scores *s)
{
    const moe_route_desc *d = r->desc;
    const int32_t keyed = r->num_experts + d->zero_experts;
    const bool on_logits =
        d->select_on == MOE_SELECT_LOGITS || d->scoring >= MOE_SCORING_SOFTMAX_SELECTED;
    static _Thread_local double key[FLOAT64_ROUTE_ROWS];
    static _Thread_local double size[FLOAT64_ROUTE_ROWS]; // what rounding errors are relative to
    for (int32_t e = 0; e < keyed; e++) {
        const double base = on_logits ? (double)r->logits[e] : s->value[e];
        key[e] = isnan(base) ? -HUGE_VAL : base;
        // Below a step, different keys are equal in f32: they count as too close.
        size[e] = fabs(base) + (on_logits ? 0.0 : s->step[e] / FLOAT64_ROUTE_MARGIN);
        if (r->bias != NULL) {
            key[e] += (double)r->bias[e];
            key[e] = isnan(key[e]) ? -HUGE_VAL : key[e];
            size[e] += fabs((double)r->bias[e]);
        }
    }
    if (d->num_groups > 1 && !keep_groups(r, s, key, size)) {
        for (int32_t j = 0; j < r->top_k; j++) {
            r->ids[j] = j;
            r->weights[j] = 1.0 / r->top_k;
            r->bounds[j] = U * r->weights[j];
        }
        return false;
    }
    choose(r, key, size, keyed, r->top_k, r->ids);
    return true;
}

static void sparsemixer(float64_route *r)
{
    const int32_t n = r->num_experts;
    const double band = 2.0 * (double)r->desc->jitter_eps;
    static _Thread_local double logit[FLOAT64_ROUTE_ROWS];
    static _Thread_local double value[FLOAT64_ROUTE_ROWS];
    static _Thread_local double error[FLOAT64_ROUTE_ROWS];
    static _Thread_local bool in[FLOAT64_ROUTE_ROWS];
    for (int32_t e = 0; e < n; e++) {
        logit[e] = isnan(r->logits[e]) ? -HUGE_VAL : (double)r->logits[e];
        in[e] = true;
    }
    for (int32_t j = 0; j < 2; j++) {
        int32_t best = j == 1 && r->ids[0] == 0 ? 1 : 0;
        for (int32_t e = 0; e < n; e++) {
            if (logit[e] > logit[best] && (j == 0 || e != r->ids[0])) {
                best = e;
            }
        }
        const double m = logit[best];
        for (int32_t e = 0; e < n; e++) {
            const double ratio = (m - logit[e]) / fmax(fabs(logit[e]), m);
            in[e] = !(ratio > band);
            note_margin(r, ratio, band, band);
            note_margin(r, logit[e], m, fmax(fabs(logit[e]), fabs(m)));
        }
        softmax(logit, in, n, lane_chain(n), value, error);
        r->ids[j] = best;
        r->weights[j] = value[best];
        r->bounds[j] = error[best] * U * value[best];
        logit[best] = -HUGE_VAL;
    }
}

static void weigh(float64_route *r, const scores *s)
{
    const moe_route_desc *d = r->desc;
    static _Thread_local double logit[FLOAT64_ROUTE_ROWS];
    static _Thread_local double error[FLOAT64_ROUTE_ROWS];
    static _Thread_local double step[FLOAT64_ROUTE_ROWS];
    static _Thread_local bool in[FLOAT64_ROUTE_ROWS];
    for (int32_t j = 0; j < r->top_k; j++) {
        in[j] = r->ids[j] >= 0;
        logit[j] = in[j] && !isnan(r->logits[r->ids[j]]) ? (double)r->logits[r->ids[j]] : -HUGE_VAL;
        r->weights[j] = in[j] ? s->value[r->ids[j]] : 0.0;
        error[j] = in[j] ? s->error[r->ids[j]] : 0.0;
        step[j] = in[j] ? s->step[r->ids[j]] : 0.0;
        if (d->scoring == MOE_SCORING_SIGMOID_SELECTED) {
            r->weights[j] = in[j] ? sigmoid(logit[j]) : 0.0;
        }
    }
    if (d->scoring == MOE_SCORING_SOFTMAX_SELECTED) {
        softmax(logit, in, r->top_k, r->top_k, r->weights, error);
    }
    for (int32_t j = 0; j < r->top_k; j++) {
        r->bounds[j] = error[j] * U * r->weights[j] + step[j];
    }
}

static void divide(double *w, double *bound, int32_t n, double by, double by_error)
{
    for (int32_t j = 0; j < n; j++) {
        w[j] /= by;
        bound[j] = bound[j] / by + (by_error + U) * w[j];
    }
}

static void multiply(double *w, double *bound, int32_t n, double by)
{
    for (int32_t j = 0; j < n; j++) {
        w[j] *= by;
        bound[j] = bound[j] * by + U * w[j];
    }
}

void float64_route_token(float64_route *r)
{
    const moe_route_desc *d = r->desc;
    const int32_t keyed = r->num_experts + d->zero_experts;
    static _Thread_local scores s;
    bool usual = true;
    r->margin = HUGE_VAL;
    score_all(r, &s);
    for (int32_t i = 0; i < d->shared_scores; i++) {
        r->shared[i] = s.value[keyed + i];
        r->shared_bounds[i] = s.error[keyed + i] * U * r->shared[i] + s.step[keyed + i];
    }
    if (d->scoring == MOE_SCORING_SPARSEMIXER) {
        sparsemixer(r);
    } else {
        if (d->hash_table) {
            for (int32_t j = 0; j < r->top_k; j++) {
                const int64_t id = r->hash != NULL ? r->hash[j] : -1;
                r->ids[j] = id >= 0 && id < keyed ? (int32_t)id : -1;
            }
        } else {
            usual = select_ids(r, &s);
        }
        if (usual) {
            weigh(r, &s);
        }
    }
    if (usual && d->renormalise != MOE_RENORM_NONE) {
        const int32_t joined = d->renorm_shared ? d->shared_scores : 0;
        double sum = 0.0;
        double error = 0.0;
        for (int32_t j = 0; j < r->top_k; j++) {
            sum += r->weights[j];
            error += r->bounds[j];
        }
        for (int32_t i = 0; i < joined; i++) {
            sum += r->shared[i];
            error += r->shared_bounds[i];
        }
        error += (r->top_k + joined) * U * sum;
        const double eps = (double)d->renorm_eps;
        double by = d->renormalise == MOE_RENORM_SUM ? sum + eps : fmax(sum, eps);
        by = by > 0.0 ? by : 1.0;
        divide(r->weights, r->bounds, r->top_k, by, error / by + U);
        divide(r->shared, r->shared_bounds, joined, by, error / by + U);
    }
    const double scale = d->scale != 0.0f ? (double)d->scale : 1.0;
    if (usual) {
        multiply(r->weights, r->bounds, r->top_k, scale);
    }
    multiply(r->shared, r->shared_bounds, d->shared_scores, scale);
    if (d->scale_tensor) {
        if (usual) {
            multiply(r->weights, r->bounds, r->top_k, r->scale_tensor);
        }
        multiply(r->shared, r->shared_bounds, d->shared_scores, r->scale_tensor);
    }
    for (int32_t j = 0; j < r->top_k; j++) {
        r->bounds[j] += 1e-44; // subnormal results round in steps of 2^-149
    }
    for (int32_t i = 0; i < d->shared_scores; i++) {
        r->shared_bounds[i] += 1e-44;
    }
}

int32_t float64_replica(const int32_t *table, int64_t stride, int64_t slots, const int32_t *count,
                        int64_t token, int32_t id)
{
    if (count[id] < 1 || count[id] > slots) {
        return -1;
    }
    const uint64_t product = (uint64_t)token * 0x9E3779B9u;
    return table[id * stride + (int64_t)(product % 4294967296u % (uint64_t)count[id])];
}
