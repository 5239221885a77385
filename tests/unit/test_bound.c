// SPDX-License-Identifier: Apache-2.0
// The error bound of a grouped product against sums as its models describe them: FMA chains in
// chunks, and accumulators that align a step's products and truncate, as tensor cores do. They keep
// to it, and a sum without one product, or in a much narrower accumulator, does not.
#include <math.h>
#include <stdlib.h>

#include "float64/ggemm.h"
#include "unit/test.h"

#define MAX_K 2048
#define DRAWS 400

static double unit(void)
{
    return (double)rand() / RAND_MAX * 2.0 - 1.0;
}

// Toward zero, to a multiple of 2^(exponent - bits + 1).
static double truncated(double value, int exponent, int bits)
{
    const double quantum = ldexp(1.0, exponent - bits + 1);
    return trunc(value / quantum) * quantum;
}

// acc + the products of one step, every term cut where the largest one's accumulator ends.
static double step(double acc, const double *products, int n, int bits)
{
    double most = fabs(acc);
    for (int i = 0; i < n; i++) {
        most = fmax(most, fabs(products[i]));
    }
    if (most == 0.0) {
        return 0.0;
    }
    const int exponent = ilogb(most);
    double sum = truncated(acc, exponent, bits);
    for (int i = 0; i < n; i++) {
        sum += truncated(products[i], exponent, bits);
    }
    return sum == 0.0 ? 0.0 : truncated(sum, ilogb(sum), bits);
}

static double chunk_sum(const float64_model *m, const double *products, int n)
{
    double acc = 0.0;
    for (int k = 0; k < n; k += m->products_per_step) {
        const int left = n - k < m->products_per_step ? n - k : m->products_per_step;
        acc = m->truncating ? step(acc, products + k, left, m->fraction_bits)
                            : (double)(float)(acc + products[k]);
    }
    return acc;
}

static double model_sum(const float64_model *m, const double *products, int k)
{
    const int chunk = m->chunk > 0 ? m->chunk : k;
    float sum = 0.0f;
    for (int at = 0; at < k; at += chunk) {
        sum += (float)chunk_sum(m, products + at, k - at < chunk ? k - at : chunk);
    }
    return (double)sum;
}

// Largest error / bound over random products; `dropped`: the last one is left out of the sum.
static double worst(const float64_model *claimed, const float64_model *real, int k, bool heavy,
                    bool dropped)
{
    static double products[MAX_K];
    double most = 0.0;
    for (int d = 0; d < DRAWS; d++) {
        double exact = 0.0;
        double magnitude = 0.0;
        for (int i = 0; i < k; i++) {
            // Two factors of 8 bits, as bf16 has them.
            const double a = truncated(unit() * (heavy && i % 17 == 3 ? 100.0 : 1.0), 6, 14);
            const double b = truncated(unit(), 0, 8);
            products[i] = a * b;
            exact += products[i];
            magnitude += fabs(products[i]);
        }
        const double have = model_sum(real, products, dropped ? k - 1 : k);
        const double bound = float64_ggemm_bound(*claimed, k, magnitude, 1.0, exact, MOE_F32);
        most = fmax(most, fabs(have - exact) / bound);
    }
    return most;
}

int main(void)
{
    static const struct {
        float64_model model;
        const char *name;
    } models[] = {{{256, 24, false, 1, false}, "fma_c256"},
                  {{32, 24, false, 1, false}, "fma_b32"},
                  {{0, 24, true, 16, false}, "24 bits, 16 products a step"},
                  {{512, 24, true, 16, false}, "24 bits, chunks of 512"},
                  {{128, 14, true, 32, false}, "14 bits, 32 products a step, chunks of 128"}};
    static const int sizes[] = {1, 16, 17, 128, 520, 2048};
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        const float64_model *model = &models[m].model;
        float64_model coarse = *model;
        coarse.fraction_bits -= 9;
        coarse.truncating = true;
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            // Beside one large product, the small ones of a step lose what the bound, a share of
            // the sum of all, allows for wide accumulators alone.
            for (int heavy = 0; heavy < (model->fraction_bits == 24 ? 2 : 1); heavy++) {
                const double ratio = worst(model, model, sizes[s], heavy != 0, false);
                CHECK(ratio <= 1.0, "%s: k = %d: error / bound %.3g", models[m].name, sizes[s],
                      ratio);
            }
            const double dropped = worst(model, model, sizes[s], false, true);
            CHECK(dropped > 1.0, "%s: k = %d: a product is left out, error / bound %.3g",
                  models[m].name, sizes[s], dropped);
        }
        const double rough = worst(model, &coarse, 2048, false, false);
        CHECK(rough > 1.0 || !model->truncating,
              "%s: an accumulator of 9 bits less, error / bound %.3g", models[m].name, rough);
    }
    // Products and sums that become 0 below 2^-126 are allowed for where the model says so.
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        const float64_model keeps = {0, 24, true, 1, false};
        const float64_model flushes = {0, 24, true, 1, true};
        const double each = ldexp(0.75, -127); // a sum of three is not lost
        double exact = 0.0;
        double have = 0.0;
        for (int k = 0; k < sizes[s]; k++) {
            exact += each;
            have = have + each < 0x1p-126 ? 0.0 : have + each;
        }
        const double scale = 4.0;
        const double error = fabs(have - exact) * scale;
        CHECK(error <= float64_ggemm_bound(flushes, sizes[s], exact * scale, scale, exact * scale,
                                           MOE_F32),
              "k = %d: sums that become 0 are beyond the bound", sizes[s]);
        CHECK(error > float64_ggemm_bound(keeps, sizes[s], exact * scale, scale, exact * scale,
                                          MOE_F32),
              "k = %d: the bound allows for sums that become 0 where none may", sizes[s]);
    }
    // Exact sums: one rounding of the result, and of scales, bias and weight.
    const float64_model integers = {0, 24, false, 0, false};
    CHECK(float64_ggemm_bound(integers, 4096, 1.0, 1.0, 1.0, MOE_F32) <
              float64_ggemm_bound(models[0].model, 16, 1.0, 1.0, 1.0, MOE_F32),
          "the bound of exact sums grows with k");
    return test_summary();
}
