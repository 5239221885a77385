// SPDX-License-Identifier: Apache-2.0
// Which problems the matrix kernels of the CUDA plugin take, and what they name where they refuse.
// The table of a plugin can be asked without a GPU. Argument: libmoe_cuda.so.
#include <dlfcn.h>
#include <string.h>

#include "backends/plugins.h"
#include "unit/test.h"

/// A product, the one row of its kind, and the answer: NONE accepts.
typedef struct question {
    const char *row; // after "moek_ggemm_"
    moe_gemm_desc gemm;
    moe_dtype x;
    int64_t k;
    bool transposed;
    moei_whynot answer;
} question;

#define FP8    "e4m3_any_e4m3__sm90a"
#define PACKED "bf16_any_packed__sm90a_"
#define CODES  "e4m3_any_packed__sm90a_"
#define ACT(s, ...)                                                                                \
    {                                                                                              \
        .spec = MOE_QUANT_##s, __VA_ARGS__                                                         \
    }
#define WEIGHTS(f) .weight_format = MOE_FORMAT_##f
#define NONE                                                                                       \
    {                                                                                              \
        MOEI_WHYNOT_NONE, 0, 0                                                                     \
    }

static const question questions[] = {
    {FP8,
     {WEIGHTS(E4M3FN_BLOCK), .act = ACT(FP8_GROUP_DIV, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {FP8,
     {WEIGHTS(E4M3FN_BLOCK), .act = ACT(FP8_GROUP_DIV, .group = 128)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {FP8, {WEIGHTS(E4M3FN_BLOCK), .act = ACT(FP8_TOKEN, .group = 0)}, MOE_E4M3FN, 256, false, NONE},
    {FP8,
     {WEIGHTS(E4M3FN_TENSOR), .act = ACT(FP8_GROUP_DIV, .group = 128)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {FP8,
     {WEIGHTS(E4M3FN_CHANNEL), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     16,
     false,
     NONE},
    // Scales of x that last longer than those of the weights, or less.
    {FP8,
     {WEIGHTS(E4M3FN_BLOCK), .act = ACT(FP8_GROUP_DIV, .group = 256)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 256, 128}},
    {FP8,
     {WEIGHTS(E4M3FN_TENSOR), .act = ACT(FP8_GROUP_DIV, .group = 256)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 256, 128}},
    {FP8,
     {WEIGHTS(E4M3FN_BLOCK), .act = ACT(FP8_GROUP_DIV, .group = 64)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 64, 128}},
    {FP8,
     {WEIGHTS(MXFP8_E4M3), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 32, 128}},
    {FP8,
     {WEIGHTS(E4M3FN_TENSOR), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E5M2,
     256,
     false,
     {MOEI_WHYNOT_ACT_DTYPE, MOE_E5M2, MOE_E4M3FN}},
    {FP8,
     {WEIGHTS(E5M2_TENSOR), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_WGT_FORMAT, MOE_FORMAT_E5M2_TENSOR, MOE_FORMAT_E4M3FN_BLOCK}},
    {FP8,
     {WEIGHTS(E4M3FN_TENSOR), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     24,
     false,
     {MOEI_WHYNOT_ALIGNMENT, 24, 16}},
    {FP8,
     {WEIGHTS(E4M3FN_TENSOR), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     256,
     true,
     {MOEI_WHYNOT_TRANSPOSED, 1, 0}},
    // Packed weights: the class is that of the scale's extent along k.
    {PACKED "c576", {WEIGHTS(MXFP4)}, MOE_BF16, 90, false, NONE},
    {PACKED "c576", {WEIGHTS(NVFP4)}, MOE_BF16, 96, false, NONE},
    {PACKED "c576", {WEIGHTS(INT8_CHANNEL)}, MOE_BF16, 33, false, NONE},
    {PACKED "c576", {WEIGHTS(E4M3FN_TENSOR)}, MOE_BF16, 33, false, NONE},
    {PACKED "c576", {WEIGHTS(INT4_GROUP)}, MOE_BF16, 256, false, {MOEI_WHYNOT_FOLD, 128, 0}},
    {PACKED "b128", {WEIGHTS(INT4_GROUP)}, MOE_BF16, 256, false, NONE},
    {PACKED "b64", {WEIGHTS(INT4_GROUP), .weight_group = 64}, MOE_BF16, 256, false, NONE},
    {PACKED "b32", {WEIGHTS(UINT8_GROUP), .weight_group = 32}, MOE_BF16, 256, false, NONE},
    {PACKED "b32", {WEIGHTS(MXFP8_E4M3)}, MOE_BF16, 256, false, NONE},
    {PACKED "b128",
     {WEIGHTS(INT4_GROUP), .weight_group = 64},
     MOE_BF16,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 64, 128}},
    {PACKED "b128",
     {WEIGHTS(INT4_GROUP), .weight_group = 256},
     MOE_BF16,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 256, 128}},
    {PACKED "c576",
     {WEIGHTS(MXFP4)},
     MOE_F32,
     96,
     false,
     {MOEI_WHYNOT_ACT_DTYPE, MOE_F32, MOE_BF16}},
    {PACKED "c576",
     {WEIGHTS(MXFP6_E2M3)},
     MOE_BF16,
     96,
     false,
     {MOEI_WHYNOT_WGT_FORMAT, MOE_FORMAT_MXFP6_E2M3, MOE_FORMAT_MXFP4}},
    // The same with codes of x: one scale a row, or powers of two along k, which are decoded.
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     90,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_STATIC, .group = 0)},
     MOE_E4M3FN,
     90,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(NVFP4), .act = ACT(FP8_TENSOR, .group = 0)},
     MOE_E4M3FN,
     96,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(INT8_CHANNEL), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     33,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(MX_FLOOR, .elem = MOE_E4M3FN)},
     MOE_E4M3FN,
     90,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(NVFP4), .act = ACT(MX_EVEN, .elem = MOE_E4M3FN)},
     MOE_E4M3FN,
     96,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(INT8_CHANNEL), .act = ACT(MX_NO_EMAX, .group = 0)},
     MOE_E4M3FN,
     96,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_GROUP_RECIP, .scale_type = MOE_SCALE_UE8M0_PACKED)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_GROUP_DIV, .scale_type = MOE_SCALE_UE8M0_F32)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_GROUP_DIV, .scale_type = MOE_SCALE_E8M0, .group = 64)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {CODES "b128",
     {WEIGHTS(INT4_GROUP), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {CODES "b64",
     {WEIGHTS(INT4_GROUP), .weight_group = 64, .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    {CODES "b32",
     {WEIGHTS(MXFP8_E4M3), .act = ACT(FP8_STATIC, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     NONE},
    // Scales along k that are no powers of two, or hold for fewer codes than are decoded at once.
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_GROUP_DIV, .group = 0)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_ACT_QUANT, MOE_QUANT_FP8_GROUP_DIV, MOE_QUANT_MX_FLOOR}},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_GROUP_DIV, .scale_type = MOE_SCALE_F32, .group = 32)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_ACT_QUANT, MOE_QUANT_FP8_GROUP_DIV, MOE_QUANT_MX_FLOOR}},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_GROUP_DIV, .scale_type = MOE_SCALE_E8M0, .group = 8)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 8, 32}},
    // Both scales along k; those of the weights decide the class.
    {CODES "b128",
     {WEIGHTS(INT4_GROUP), .act = ACT(MX_FLOOR, .elem = MOE_E4M3FN)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 32, 0}},
    {CODES "c576",
     {WEIGHTS(INT4_GROUP), .act = ACT(MX_FLOOR, .elem = MOE_E4M3FN)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 128, 0}},
    {CODES "b32",
     {WEIGHTS(MXFP4), .act = ACT(MX_FLOOR, .elem = MOE_E4M3FN)},
     MOE_E4M3FN,
     256,
     false,
     {MOEI_WHYNOT_FOLD, 0, 32}},
    {CODES "c576",
     {WEIGHTS(MXFP4), .act = ACT(MX_FLOOR, .elem = MOE_E5M2)},
     MOE_E5M2,
     256,
     false,
     {MOEI_WHYNOT_ACT_DTYPE, MOE_E5M2, MOE_E4M3FN}},
    {CODES "c576",
     {WEIGHTS(MXFP4)},
     MOE_BF16,
     96,
     false,
     {MOEI_WHYNOT_ACT_DTYPE, MOE_BF16, MOE_E4M3FN}},
    {PACKED "c576",
     {WEIGHTS(MXFP4), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     96,
     false,
     {MOEI_WHYNOT_ACT_DTYPE, MOE_E4M3FN, MOE_BF16}},
    {CODES "c576",
     {WEIGHTS(MXFP6_E2M3), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     96,
     false,
     {MOEI_WHYNOT_WGT_FORMAT, MOE_FORMAT_MXFP6_E2M3, MOE_FORMAT_MXFP4}},
    {CODES "c576",
     {WEIGHTS(E4M3FN_TENSOR), .act = ACT(FP8_TOKEN, .group = 0)},
     MOE_E4M3FN,
     96,
     true,
     {MOEI_WHYNOT_TRANSPOSED, 1, 0}},
    // Floats.
    {"bf16_any_bf16__sm90a", {WEIGHTS(BF16)}, MOE_BF16, 24, false, NONE},
    {"bf16_any_bf16__sm90a", {WEIGHTS(BF16)}, MOE_BF16, 20, false, {MOEI_WHYNOT_ALIGNMENT, 20, 8}},
    {"bf16_any_bf16__sm90a",
     {WEIGHTS(BF16)},
     MOE_F16,
     24,
     false,
     {MOEI_WHYNOT_ACT_DTYPE, MOE_F16, MOE_BF16}},
    {"f16_any_f16__sm90a",
     {WEIGHTS(BF16)},
     MOE_F16,
     24,
     false,
     {MOEI_WHYNOT_WGT_FORMAT, MOE_FORMAT_BF16, MOE_FORMAT_F16}},
};

static const moei_kernel *row_named(const moei_backend *backend, const char *name)
{
    const size_t skip = strlen("moek_ggemm_");
    for (size_t i = 0; i < backend->num_kernels; i++) {
        const moei_kernel *kernel = &backend->kernels[i];
        if (kernel->op == MOEI_OP_GGEMM && strcmp(kernel->name + skip, name) == 0) {
            return kernel;
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    typedef const moei_backend *(*entry_fn)(const moei_host *, uint32_t);
    void *library = dlopen(argc > 1 ? argv[1] : "", RTLD_NOW | RTLD_LOCAL);
    entry_fn entry = NULL;
    if (CHECK(library != NULL, "%s", dlerror())) {
        void *symbol = dlsym(library, "moe_backend_entry");
        memcpy(&entry, &symbol, sizeof entry);
    }
    if (!CHECK(entry != NULL, "no moe_backend_entry")) {
        return test_summary();
    }
    const moei_backend *backend = entry(moei_host_table(), MOE_BACKEND_ABI);
    for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
        const question *q = &questions[i];
        const moei_kernel *kernel = row_named(backend, q->row);
        if (!CHECK(kernel != NULL, "%s: no such row", q->row)) {
            continue;
        }
        const moei_ggemm_problem problem = {.m_max = 64,
                                            .n = 256,
                                            .k = q->k,
                                            .experts = 4,
                                            .gemm = &q->gemm,
                                            .x_dtype = q->x,
                                            .y_dtype = MOE_F32,
                                            .transposed = q->transposed,
                                            .level = MOE_DET_BATCH};
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        const bool taken = kernel->supports(kernel, &problem, &why);
        const moei_whynot *want = &q->answer;
        CHECK(taken == (want->code == MOEI_WHYNOT_NONE), "question %zu, %s: %s", i, q->row,
              taken ? "taken" : "refused");
        CHECK(taken || (why.code == want->code && why.have == want->have && why.need == want->need),
              "question %zu, %s: code %d, %lld and %lld; expected %d, %lld and %lld", i, q->row,
              (int)why.code, (long long)why.have, (long long)why.need, (int)want->code,
              (long long)want->have, (long long)want->need);
    }
    return test_summary();
}
