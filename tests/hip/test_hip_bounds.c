// SPDX-License-Identifier: Apache-2.0
// Products whose every buffer is an allocation of its own, no byte larger than what it holds, at
// the ends of tiles: the emulator names an access outside of one. Small whole numbers, so that
// every kernel must give the CPU's bits.
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "moe/moe.h"
#include "unit/test.h"

enum { X, W, BIAS, WEIGHT, OFFSETS, Y, NUM };

typedef struct shape {
    int64_t n, k, rows;
    moe_dtype x, y;
} shape;

static size_t size_of(moe_dtype dtype)
{
    return dtype == MOE_BF16 ? 2 : 4;
}

// Whole numbers from -4 to 4.
static void fill(void *to, moe_dtype dtype, int64_t count, uint32_t seed)
{
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        const float v = (float)(int32_t)(seed >> 24) - 128.0f;
        const float small = (float)(int32_t)(v / 30.0f);
        uint32_t bits;
        memcpy(&bits, &small, sizeof bits);
        const uint16_t half = (uint16_t)(bits >> 16);
        memcpy((char *)to + (size_t)i * size_of(dtype),
               dtype == MOE_BF16 ? (const void *)&half : &small, size_of(dtype));
    }
}

static moe_tensor on(moe_device_type device, moe_tensor t)
{
    t.device = device;
    return t;
}

static moe_status product(const moe_context *ctx, moe_device_type d, const shape *s, void *const *m)
{
    moe_ggemm_args a = {.struct_size = sizeof a};
    a.gemm.weight_format = MOE_FORMAT_BF16;
    a.gemm.bias = 1;
    a.weights.values = on(d, moe_tensor_3d(m[W], MOE_BF16, 2, s->n, s->k));
    a.weights.bias = on(d, moe_tensor_2d(m[BIAS], MOE_F32, 2, s->n));
    a.x = on(d, moe_tensor_2d(m[X], s->x, s->rows, s->k));
    a.offsets = on(d, moe_tensor_1d(m[OFFSETS], MOE_I32, 3));
    a.row_weight = on(d, moe_tensor_1d(m[WEIGHT], MOE_F32, s->rows));
    a.y = on(d, moe_tensor_2d(m[Y], s->y, s->rows, s->n));
    return moe_ggemm(ctx, &a, NULL);
}

static void check(const moe_context *cpu, const moe_context *hip, const shape *s)
{
    const size_t bytes[NUM] = {(size_t)(s->rows * s->k) * size_of(s->x),
                               (size_t)(2 * s->n * s->k) * 2,
                               (size_t)(2 * s->n) * 4,
                               (size_t)s->rows * 4,
                               12,
                               (size_t)(s->rows * s->n) * size_of(s->y)};
    void *host[NUM];
    void *device[NUM] = {NULL};
    bool ok = true;
    for (int i = 0; i < NUM; i++) {
        host[i] = calloc(1, bytes[i]);
        ok = ok && host[i] != NULL;
    }
    void *have = calloc(1, bytes[Y]);
    if (!CHECK(ok && have != NULL, "memory is short")) {
        exit(1);
    }
    fill(host[X], s->x, s->rows * s->k, 1);
    fill(host[W], MOE_BF16, 2 * s->n * s->k, 2);
    fill(host[BIAS], MOE_F32, 2 * s->n, 3);
    fill(host[WEIGHT], MOE_F32, s->rows, 4);
    ((int32_t *)host[OFFSETS])[1] = (int32_t)(s->rows / 3);
    ((int32_t *)host[OFFSETS])[2] = (int32_t)s->rows;
    for (int i = 0; i < NUM; i++) {
        ok = ok && moe_memory_alloc(hip, bytes[i], &device[i]) == MOE_OK &&
             moe_memory_copy(hip, device[i], host[i], bytes[i], MOE_COPY_TO_DEVICE, NULL) == MOE_OK;
    }
    CHECK(ok, "device memory: %s", moe_last_error());
    const bool ran =
        ok && product(cpu, MOE_DEVICE_CPU, s, host) == MOE_OK &&
        product(hip, MOE_DEVICE_HIP, s, device) == MOE_OK &&
        moe_memory_copy(hip, have, device[Y], bytes[Y], MOE_COPY_FROM_DEVICE, NULL) == MOE_OK;
    CHECK(ran, "n %d, k %d, rows %d, x %s: %s", (int)s->n, (int)s->k, (int)s->rows,
          moe_dtype_name(s->x), moe_last_error());
    CHECK(!ran || memcmp(have, host[Y], bytes[Y]) == 0, "n %d, k %d, rows %d, x %s: other bits",
          (int)s->n, (int)s->k, (int)s->rows, moe_dtype_name(s->x));
    for (int i = 0; i < NUM; i++) {
        moe_memory_free(hip, device[i], bytes[i]);
        free(host[i]);
    }
    free(have);
}

// Matrix kernels count k in 32 bits: more is refused before anything is launched.
static void check_long(const moe_context *hip)
{
    const shape s = {1, INT32_MAX / 2, 1, MOE_BF16, MOE_F32};
    void *memory[NUM];
    void *any = NULL;
    CHECK(moe_memory_alloc(hip, 64, &any) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < NUM; i++) { // nothing is read, but y must not overlap what would be
        memory[i] = (char *)any + (i == Y ? 0 : 16);
    }
    const moe_status status = product(hip, MOE_DEVICE_HIP, &s, memory);
    CHECK(status == MOE_E_UNSUPPORTED && strstr(moe_last_error(), "k = 1073741823") != NULL,
          "%d: %s", (int)status, moe_last_error());
    moe_memory_free(hip, any, 64);
}

// Kernels count the bytes of a packed expert in 32 bits: a larger one is refused before it is
// packed.
static void check_large(moe_context *hip)
{
    static const int64_t inter[] = {16384, 65536};
    for (int large = 0; large < 2; large++) {
        moe_layer_desc d = moe_layer_desc_default();
        moe_plan *plan = NULL;
        size_t bytes = 0;
        size_t align = 0;
        d.hidden = 32768;
        d.inter = inter[large];
        d.num_experts = 1;
        d.top_k = 1;
        d.max_tokens = 1;
        d.activation = MOE_ACT_SILU;
        d.gate_up = MOE_GATE_FIRST;
        d.routing = MOE_ROUTING_FROM_LOGITS;
        d.weight_stage = MOE_WEIGHT_OUTPUT;
        d.route.scoring = MOE_SCORING_SOFTMAX;
        d.route.renormalise = MOE_RENORM_SUM;
        d.x_dtype = MOE_BF16;
        for (int g = 0; g < 2; g++) {
            d.gemm[g].weight_format = MOE_FORMAT_BF16;
        }
        CHECK(moe_plan_create(hip, &d, &plan) == MOE_OK, "%s", moe_last_error());
        const moe_status status = moe_weights_bytes(plan, &bytes, &align);
        CHECK(status == (large ? MOE_E_OVERFLOW : MOE_OK), "expert of %d x %d: %d, %zu bytes: %s",
              (int)(2 * d.inter), (int)d.hidden, (int)status, bytes, moe_last_error());
        moe_plan_destroy(plan);
    }
}

int main(void)
{
    static const int64_t ns[] = {1, 4, 5, 63, 64, 65, 130};
    static const int64_t ks[] = {1, 7, 8, 17, 63, 64, 65, 136};
    static const int64_t rows[] = {1, 3, 64, 193};
    moe_context_desc desc = moe_context_desc_default();
    moe_context *cpu = NULL;
    moe_context *hip = NULL;
    desc.device = MOE_DEVICE_HIP;
    if (!CHECK(moe_context_create(NULL, &cpu) == MOE_OK &&
                   moe_context_create(&desc, &hip) == MOE_OK,
               "%s", moe_last_error())) {
        return test_summary();
    }
    for (size_t i = 0; i < sizeof ns / sizeof ns[0]; i++) {
        for (size_t j = 0; j < sizeof ks / sizeof ks[0]; j++) {
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
                const moe_dtype y = (i + j + r) % 2 == 0 ? MOE_F32 : MOE_BF16;
                const shape s = {ns[i], ks[j], rows[r], MOE_BF16, y};
                check(cpu, hip, &s);
                const shape plain = {ns[i], ks[j], rows[r], MOE_F32, y};
                if (j % 3 == 0) {
                    check(cpu, hip, &plain);
                }
            }
        }
    }
    check_large(hip);
    check_long(hip);
    moe_context_destroy(hip);
    moe_context_destroy(cpu);
    return test_summary();
}
