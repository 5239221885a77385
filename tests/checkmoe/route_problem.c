// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/route_problem.h"

#include "float64/route.h"

// ---- The grid -----------------------------------------------------------------------------------

static const struct {
    int32_t experts, top_k;
} plain_shapes[] = {{1, 1},   {2, 1},    {2, 2},    {3, 2},    {8, 2},     {16, 4},   {31, 5},
                    {32, 4},  {33, 33},  {60, 4},   {64, 6},   {128, 8},   {160, 6},  {256, 8},
                    {384, 8}, {512, 10}, {512, 22}, {1000, 7}, {1024, 22}, {2048, 6}, {4096, 8}};

static const struct {
    int32_t experts, groups, top_groups, top_k;
} group_shapes[] = {{64, 8, 4, 6}, {32, 4, 2, 2}, {32, 4, 2, 6},     {256, 8, 4, 8}, {16, 2, 1, 4},
                    {60, 6, 6, 4}, {8, 8, 2, 2},  {1024, 16, 4, 22}, {96, 3, 1, 32}};

enum {
    PLAIN_SHAPES = sizeof plain_shapes / sizeof plain_shapes[0],
    GROUP_SHAPES = sizeof group_shapes / sizeof group_shapes[0],
    PLAIN_SCORINGS = 5, // all but the sparse mixer
    PLAIN_VARIANTS = 6,
    PLAIN = PLAIN_SHAPES * PLAIN_SCORINGS * PLAIN_VARIANTS,
    FURTHER = 24,
    GROUP_VARIANTS = 16,
    GROUPS = GROUP_SHAPES * GROUP_VARIANTS,
    MIXERS = 12
};

_Static_assert(PLAIN + FURTHER + GROUPS + MIXERS == PROBLEM_GRID, "the grid has another size");

static float draw_plain(problem *p, int number)
{
    static const int64_t tokens[] = {0, 1, 7, 33};
    const int variant = number % PLAIN_VARIANTS;
    const int shape = number / (PLAIN_VARIANTS * PLAIN_SCORINGS);
    moe_route_desc *d = &p->desc;
    d->scoring = MOE_SCORING_SOFTMAX + number / PLAIN_VARIANTS % PLAIN_SCORINGS;
    d->renormalise = variant % 3 + 1;
    p->experts = plain_shapes[shape].experts;
    p->top_k = plain_shapes[shape].top_k;
    p->tokens = tokens[(variant + shape) % 4];
    d->correction_bias = variant % 2;
    d->scale_tensor = variant == 4;
    d->scale = variant == 3 ? 2.5f : 0.0f;
    d->renorm_eps = d->renormalise == MOE_RENORM_NONE ? 0.0f : variant >= 3 ? 0.125f : 1e-20f;
    if (variant == 5 && d->scoring <= MOE_SCORING_SQRTSOFTPLUS) {
        d->select_on = MOE_SELECT_LOGITS;
    }
    return variant == 2 ? 8.0f : 1.5f;
}

// Rows that most models lack.
static float draw_further(problem *p, int variant)
{
    static const moe_scoring scorings[] = {MOE_SCORING_SOFTMAX, MOE_SCORING_SQRTSOFTPLUS,
                                           MOE_SCORING_SIGMOID, MOE_SCORING_SIGMOID_SELECTED};
    moe_route_desc *d = &p->desc;
    *d = route_desc(scorings[variant % 4], MOE_RENORM_SUM);
    p->experts = 20 + variant;
    p->top_k = 5;
    p->tokens = 9;
    d->shared_scores = variant % 4;
    d->renorm_shared = variant % 4 > 1;
    d->scale = 1.5f;
    d->hash_table = variant % 3 == 2;
    d->zero_experts = variant % 5;
    return 1.5f;
}

static float draw_groups(problem *p, int number)
{
    const int variant = number % GROUP_VARIANTS;
    const int shape = number / GROUP_VARIANTS;
    moe_route_desc *d = &p->desc;
    *d = route_desc(variant & 1 ? MOE_SCORING_SIGMOID : MOE_SCORING_SOFTMAX,
                    variant & 2 ? MOE_RENORM_SUM : MOE_RENORM_NONE);
    p->experts = group_shapes[shape].experts;
    p->top_k = group_shapes[shape].top_k;
    p->tokens = 21;
    d->num_groups = group_shapes[shape].groups;
    d->top_groups = group_shapes[shape].top_groups;
    d->group_score =
        variant & 4 && p->experts > d->num_groups ? MOE_GROUP_SCORE_TOP2_SUM : MOE_GROUP_SCORE_MAX;
    d->correction_bias = variant & 4 ? 1 : 0;
    d->group_mask_zero = variant & 8 ? 1 : 0;
    d->scale = 1.1f;
    return 1.0f;
}

static float draw_mixer(problem *p, int variant)
{
    p->desc = route_desc(MOE_SCORING_SPARSEMIXER, MOE_RENORM_NONE);
    p->experts = variant == 0 ? 2 : 5 + 11 * variant;
    p->top_k = 2;
    p->tokens = 40;
    p->desc.jitter_eps = variant % 3 == 0 ? 0.01f : variant % 3 == 1 ? 0.3f : 0.0f;
    p->desc.scale = variant == 5 ? 3.0f : 0.0f;
    return 2.0f;
}

float problem_draw(problem *p, int number, char *what, size_t size)
{
    memset(p, 0, sizeof *p);
    const char *family;
    float spread;
    int n = number;
    if (n < PLAIN) {
        family = "plain";
        spread = draw_plain(p, n);
    } else if ((n -= PLAIN) < FURTHER) {
        family = "further rows";
        spread = draw_further(p, n);
    } else if ((n -= FURTHER) < GROUPS) {
        family = "groups";
        spread = draw_groups(p, n);
    } else {
        n -= GROUPS;
        family = "sparsemixer";
        spread = draw_mixer(p, n);
    }
    (void)snprintf(what, size, "problem %d (%s %d): scoring %d E %d k %d T %d", number, family, n,
                   (int)p->desc.scoring, (int)p->experts, (int)p->top_k, (int)p->tokens);
    return spread;
}

void problem_fill_edge(problem *p, moec_rng *r, problem_edge edge)
{
    static const double specials[] = {(double)NAN, -(double)NAN, HUGE_VAL, -HUGE_VAL,
                                      0.0,         -0.0,         1e-40,    3e38,
                                      -3e38,       88.0,         -88.0,    -104.0};
    const int64_t keyed = p->experts + p->desc.zero_experts;
    for (int64_t t = 0; t < p->tokens; t++) {
        const int64_t rate = moec_below(r, 4); // how much of the token is left as it is
        for (int64_t e = 0; e < p->rows; e++) {
            float *l = &p->logits[t * p->rows + e];
            if (edge == PROBLEM_TIES) {
                const int64_t n = moec_below(r, 6) - 2;
                *l = n < 3 ? (float)n : -0.0f;
            } else if (edge == PROBLEM_SPECIALS && moec_below(r, 4) <= rate) {
                *l = (float)specials[moec_below(r, sizeof specials / sizeof specials[0])];
            } else if (edge == PROBLEM_MASKED && moec_below(r, 8) >= rate) {
                *l = -HUGE_VALF;
            }
        }
    }
    for (int64_t e = 0; e < keyed && edge != PROBLEM_MASKED; e++) {
        p->bias[e] = edge == PROBLEM_TIES    ? 0.25f * (float)moec_below(r, 2)
                     : moec_below(r, 8) != 0 ? p->bias[e]
                     : moec_below(r, 2) == 0 ? -HUGE_VALF
                                             : (float)NAN;
    }
}

// ---- The verdict --------------------------------------------------------------------------------

// What holds whatever was chosen.
static bool plausible(const problem *p, int64_t t, char *text, size_t size)
{
    const int32_t *ids = p->ids + t * p->slots;
    const float *weights = p->weights + t * p->slots;
    for (int32_t j = 0; j < p->top_k; j++) {
        bool good = ids[j] >= 0 && ids[j] < p->experts + p->desc.zero_experts &&
                    weights[j] >= 0.0f && isfinite((double)weights[j]);
        for (int32_t i = 0; i < j; i++) {
            good &= ids[i] != ids[j];
        }
        if (!good) {
            (void)snprintf(text, size, "token %d slot %d: id %d again or out of range, weight %g",
                           (int)t, (int)j, (int)ids[j], (double)weights[j]);
            return false;
        }
    }
    return true;
}

static bool within(float have, double want, double bound)
{
    return fabs((double)have - want) <= bound; // false for NaN
}

problem_verdict problem_judge(const problem *p, int64_t token, char *text, size_t size)
{
    static _Thread_local float64_route f64;
    static _Thread_local int64_t row[FLOAT64_ROUTE_ROWS];
    const int32_t *ids = p->ids + token * p->slots;
    const float *weights = p->weights + token * p->slots;
    f64.desc = &p->desc;
    f64.num_experts = p->experts;
    f64.top_k = p->top_k;
    f64.logits = p->logits + token * p->rows;
    f64.bias = p->desc.correction_bias ? p->bias : NULL;
    f64.scale_tensor = (double)p->scale_tensor;
    f64.hash = NULL;
    if (p->desc.hash_table && p->token_ids[token] >= 0 && p->token_ids[token] < p->vocabulary) {
        for (int32_t j = 0; j < p->top_k; j++) {
            row[j] = p->hash_table[p->token_ids[token] * p->top_k + j];
        }
        f64.hash = row;
    }
    float64_route_token(&f64);
    if (f64.margin < FLOAT64_ROUTE_MARGIN) {
        return plausible(p, token, text, size) ? PROBLEM_CLOSE : PROBLEM_DIFFERS;
    }
    for (int32_t j = 0; j < p->top_k; j++) {
        if (ids[j] != f64.ids[j] || !within(weights[j], f64.weights[j], f64.bounds[j])) {
            (void)snprintf(text, size,
                           "token %d slot %d: id %d weight %.9g, float64 says %d, %.9g +- %.2g",
                           (int)token, (int)j, (int)ids[j], (double)weights[j], (int)f64.ids[j],
                           f64.weights[j], f64.bounds[j]);
            return PROBLEM_DIFFERS;
        }
    }
    for (int32_t i = 0; i < p->desc.shared_scores; i++) {
        const float w = p->shared[token * p->desc.shared_scores + i];
        if (!within(w, f64.shared[i], f64.shared_bounds[i])) {
            (void)snprintf(text, size, "token %d shared %d: weight %.9g, float64 says %.9g +- %.2g",
                           (int)token, (int)i, (double)w, f64.shared[i], f64.shared_bounds[i]);
            return PROBLEM_DIFFERS;
        }
    }
    return PROBLEM_HOLDS;
}
