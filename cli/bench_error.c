// SPDX-License-Identifier: Apache-2.0
// The error of a layer's output against the same layer in float64.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "float64/glu.h"
#include "quant/elements.h"

#define TASK_ROWS 32 // of a matrix

/// One expert's matrix times the inputs of the tokens that chose it.
typedef struct product {
    const bench_layer *layer;
    int32_t expert;
    int gemm;
    int64_t n, k, rows;
    const double *in; // [rows, k]
    double *out;      // [rows, n]
    bool failed;      // memory was short
} product;

static void product_task(void *arg, size_t task)
{
    product *p = arg;
    const int64_t first = (int64_t)task * TASK_ROWS;
    double *w = malloc((size_t)p->k * sizeof *w);
    if (w == NULL) {
        __atomic_store_n(&p->failed, true, __ATOMIC_RELAXED);
        return;
    }
    for (int64_t n = first; n < first + TASK_ROWS && n < p->n; n++) {
        double bias = 0;
        (void)bench_expert_row(p->layer, p->expert, p->gemm, n, w, &bias);
        for (int64_t r = 0; r < p->rows; r++) {
            double sum = bias;
            for (int64_t k = 0; k < p->k; k++) {
                sum += w[k] * p->in[r * p->k + k];
            }
            p->out[r * p->n + n] = sum;
        }
    }
    free(w);
}

static bool multiply(product *p)
{
    const moe_thread_pool pool = moe_context_pool(p->layer->host);
    pool.parallel_for(pool.self, (size_t)((p->n + TASK_ROWS - 1) / TASK_ROWS), product_task, p);
    return !p->failed;
}

// h [rows, I] from gate and up [rows, n].
static void activate(const moe_layer_desc *d, int64_t rows, int64_t n, const double *gate_up,
                     double *h)
{
    const float64_act act = {d->activation, (double)d->alpha, (double)d->beta,
                             (double)d->linear_beta, (double)d->limit};
    const bool gated = n != d->inter;
    const bool interleaved = d->gate_up == MOE_GATE_UP_INTERLEAVED;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; j < d->inter; j++) {
            const double *row = gate_up + r * n;
            const double gate = row[gated && interleaved ? 2 * j : j];
            const double up = !gated ? 0 : row[interleaved ? 2 * j + 1 : d->inter + j];
            double unused;
            h[r * d->inter + j] = float64_glu(&act, gate, up, &unused);
        }
    }
}

/// The first set on the host, and the reference as it grows.
typedef struct reference {
    const bench_layer *layer;
    int64_t tokens;
    void *raw;                // x or out as the device has it
    float *values, *logits;   // [T, H], [T, E]
    int32_t *ids;             // [T, k]
    float *weights;           // [T, k]
    double *x, *sum;          // [T, H]
    double *in, *mid, *h, *y; // of the tokens of one expert: [T, H], [T, 2 I], [T, I], [T, H]
} reference;

static bool take_reference(reference *r)
{
    const moe_layer_desc *d = &r->layer->desc;
    const size_t t = (size_t)r->tokens;
    const size_t h = t * (size_t)d->hidden;
    const size_t i = t * (size_t)d->inter;
    const size_t k = t * (size_t)d->top_k;
    r->raw = malloc(h * sizeof(float));
    r->values = malloc(h * sizeof *r->values);
    r->logits = malloc(t * (size_t)d->num_experts * sizeof *r->logits);
    r->ids = malloc(k * sizeof *r->ids);
    r->weights = malloc(k * sizeof *r->weights);
    r->x = malloc(h * sizeof *r->x);
    r->sum = calloc(h, sizeof *r->sum);
    r->in = malloc(h * sizeof *r->in);
    r->mid = malloc(2 * i * sizeof *r->mid);
    r->h = malloc(i * sizeof *r->h);
    r->y = malloc(h * sizeof *r->y);
    return r->raw != NULL && r->values != NULL && r->logits != NULL && r->ids != NULL &&
           r->weights != NULL && r->x != NULL && r->sum != NULL && r->in != NULL &&
           r->mid != NULL && r->h != NULL && r->y != NULL;
}

static void free_reference(reference *r)
{
    void *const blocks[] = {r->raw, r->values, r->logits, r->ids, r->weights, r->x,
                            r->sum, r->in,     r->mid,    r->h,   r->y};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        free(blocks[i]);
    }
}

// A tensor [T, H] of the device as floats.
static moe_status fetch(reference *r, const moe_tensor *t)
{
    const int64_t n = r->tokens * r->layer->desc.hidden;
    MOE_TRY(moe_memory_copy(r->layer->ctx, r->raw, t->data,
                            (size_t)(n * moe_dtype_bits(t->dtype) / 8), MOE_COPY_FROM_DEVICE,
                            NULL));
    moei_load_f32(t->dtype, r->raw, 0, n, r->values);
    return MOE_OK;
}

static bool add_expert(reference *r, int32_t e)
{
    const moe_layer_desc *d = &r->layer->desc;
    const int64_t rows1 = d->inter * (moe_activation_gated(d->activation) != 0 ? 2 : 1);
    float weights[BENCH_ERROR_TOKENS];
    int64_t tokens[BENCH_ERROR_TOKENS];
    int64_t m = 0;
    for (int64_t slot = 0; slot < r->tokens * d->top_k; slot++) {
        if (r->ids[slot] == e) {
            tokens[m] = slot / d->top_k;
            weights[m] = r->weights[slot];
            memcpy(r->in + m * d->hidden, r->x + tokens[m] * d->hidden,
                   (size_t)d->hidden * sizeof *r->in);
            m++;
        }
    }
    product first = {r->layer, e, 0, rows1, d->hidden, m, r->in, r->mid, false};
    product second = {r->layer, e, 1, d->hidden, d->inter, m, r->h, r->y, false};
    if (m == 0) {
        return true;
    }
    if (!multiply(&first)) {
        return false;
    }
    activate(d, m, rows1, r->mid, r->h);
    if (!multiply(&second)) {
        return false;
    }
    for (int64_t i = 0; i < m * d->hidden; i++) {
        const int64_t row = i / d->hidden;
        r->sum[tokens[row] * d->hidden + i % d->hidden] += (double)weights[row] * r->y[i];
    }
    return true;
}

static moe_status compute(reference *r, const bench_set *set, double *error)
{
    const moe_layer_desc *d = &r->layer->desc;
    const int64_t n = r->tokens * d->hidden;
    double difference = 0;
    double size = 0;
    MOE_REQUIRE(take_reference(r), MOE_E_NO_MEMORY, "no memory for the reference of --error");
    MOE_TRY(fetch(r, &set->run.x));
    for (int64_t i = 0; i < n; i++) {
        r->x[i] = (double)r->values[i];
    }
    MOE_TRY(moe_memory_copy(r->layer->ctx, r->logits, set->run.logits.data,
                            (size_t)(r->tokens * d->num_experts) * sizeof *r->logits,
                            MOE_COPY_FROM_DEVICE, NULL));
    MOE_TRY(bench_route(r->layer, r->tokens, r->logits, r->ids, r->weights));
    for (int32_t e = 0; e < d->num_experts; e++) {
        MOE_REQUIRE(add_expert(r, e), MOE_E_NO_MEMORY, "no memory for the reference of --error");
    }
    MOE_TRY(fetch(r, &set->run.out));
    for (int64_t i = 0; i < n; i++) {
        const double off = (double)r->values[i] - r->sum[i];
        difference += off * off;
        size += r->sum[i] * r->sum[i];
    }
    *error = sqrt(difference / size);
    return MOE_OK;
}

bool bench_error(const bench_sets *sets, double *error, int *code)
{
    const bench_set *set = &sets->sets[0];
    reference r = {.layer = sets->layer, .tokens = set->run.num_tokens};
    const moe_status status = compute(&r, set, error);
    free_reference(&r);
    if (status != MOE_OK) {
        *code = cli_failed(status);
    }
    return status == MOE_OK;
}
