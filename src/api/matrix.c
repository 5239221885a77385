// SPDX-License-Identifier: Apache-2.0
// A matrix by itself: described, packed, unpacked, adopted. It is a stack like those of a plan's
// weights, and its memory is laid out and written by the same functions; ops/ggemm.c multiplies.
#define _DEFAULT_SOURCE // madvise
#include "ops/matrix.h"

#include <inttypes.h>

#include "api/weights_internal.h"
#include "core/huge.h"

#define MOST_EXPERTS  4096
#define MOST_ELEMENTS ((int64_t)1 << 48) // of an expert: sizes of all stay below 2^63 bytes
#define NAME          "matrix"           // in messages and layouts

// A descriptor that has been checked, and what follows from it.
typedef struct described {
    moe_matrix_desc desc; // defaults resolved
    const moei_kernel *kernel;
} described;

static moei_stack stack_of(const described *d)
{
    return (moei_stack){.gemm = &d->desc.gemm,
                        .kernel = d->kernel,
                        .count = d->desc.count,
                        .n = d->desc.outputs,
                        .k = d->desc.inputs,
                        .transposed = d->desc.transposed != 0};
}

static moe_status check_sizes(const moe_matrix_desc *d, const char *call)
{
    const struct {
        int64_t value, low, high;
        const char *name;
    } fields[] = {{d->outputs, 1, INT32_MAX, "outputs"},
                  {d->inputs, 1, INT32_MAX, "inputs"},
                  {d->count, 1, MOST_EXPERTS, "count"},
                  {d->transposed, 0, 1, "transposed"},
                  {d->determinism, MOE_DET_NONE, MOE_DET_KERNEL, "determinism"}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        MOE_REQUIRE(fields[i].value >= fields[i].low && fields[i].value <= fields[i].high,
                    MOE_E_ARGUMENT, "%s: desc.%s = %" PRId64 ", must be %" PRId64 "..%" PRId64,
                    call, fields[i].name, fields[i].value, fields[i].low, fields[i].high);
    }
    MOE_REQUIRE(d->outputs <= MOST_ELEMENTS / d->inputs, MOE_E_OVERFLOW,
                "%s: desc.outputs = %" PRId64 " times desc.inputs = %" PRId64 " exceeds %" PRId64
                " elements",
                call, d->outputs, d->inputs, MOST_ELEMENTS);
    return MOE_OK;
}

// Fills in what x is where it arrives as codes.
static moe_status check_input(moe_matrix_desc *d, const char *call)
{
    const moe_dtype codes = moei_gemm_operand_dtype(&d->gemm, MOE_DTYPE_UNSET);
    if (codes != MOE_DTYPE_UNSET) {
        MOE_REQUIRE(d->x_dtype == MOE_DTYPE_UNSET || d->x_dtype == codes, MOE_E_DTYPE,
                    "%s: desc.x_dtype = %s, but desc.gemm.act = %s gives %s; 0 works", call,
                    moe_dtype_name(d->x_dtype), moe_quant_name(d->gemm.act.spec),
                    moe_dtype_name(codes));
        d->x_dtype = codes;
        return MOE_OK;
    }
    MOE_REQUIRE(d->x_dtype != MOE_DTYPE_UNSET, MOE_E_UNSET, "%s: desc.x_dtype is unset", call);
    MOE_REQUIRE(d->x_dtype > 0 && d->x_dtype < 32 &&
                    (MOEI_DTYPE_BIT(d->x_dtype) & MOEI_DTYPES_FLOAT) != 0,
                MOE_E_DTYPE, "%s: desc.x_dtype = %s, must be f32, bf16 or f16", call,
                moe_dtype_name(d->x_dtype));
    return MOE_OK;
}

static moe_status describe(const moe_context *ctx, const moe_matrix_desc *desc, const char *call,
                           described *out)
{
    moe_matrix_desc *d = &out->desc;
    MOE_REQUIRE(ctx != NULL && desc != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                ctx == NULL ? "ctx" : "desc");
    MOE_TRY(moei_struct_read(desc, d, sizeof *d, call, "desc"));
    MOE_REQUIRE(ctx->backend->host_memory, MOE_E_UNSUPPORTED,
                "%s: the tensors of backend %s are not in host memory; moe_ggemm takes them where "
                "they lie",
                call, ctx->backend->name);
    d->count = d->count != 0 ? d->count : 1;
    d->determinism = d->determinism != MOE_DET_DEFAULT ? d->determinism : MOE_DET_BATCH;
    MOE_TRY(check_sizes(d, call));
    MOE_TRY(moei_gemm_desc_check(&d->gemm, call, "desc.gemm"));
    MOE_TRY(check_input(d, call));
    const moe_dtype elem = moei_format(d->gemm.weight_format)->elem;
    MOE_REQUIRE(d->transposed == 0 || moe_dtype_bits(elem) >= 8, MOE_E_UNSUPPORTED,
                "%s: desc.transposed = 1 with desc.gemm.weight_format = %s, %d bits an element; it "
                "needs whole bytes: transpose the weights",
                call, moe_format_name(d->gemm.weight_format), moe_dtype_bits(elem));
    const moei_ggemm_problem problem = {.m_max = 1,
                                        .n = d->outputs,
                                        .k = d->inputs,
                                        .experts = d->count,
                                        .gemm = &d->gemm,
                                        .x_dtype = d->x_dtype,
                                        .y_dtype = MOE_F32,
                                        .transposed = d->transposed != 0,
                                        .level = d->determinism};
    return moei_ggemm_select(ctx, &problem, call, "desc.gemm", &out->kernel);
}

// Points the matrices into `memory` (NULL: sizes alone); returns their bytes, SIZE_MAX on overflow.
static size_t place(const moe_context *ctx, const described *d, const void *memory,
                    moei_matrices *m, float **act_scale)
{
    moei_arena arena = {(unsigned char *)(uintptr_t)memory, 0};
    const moei_stack stack = stack_of(d);
    *act_scale = NULL;
    moei_stack_place(&arena, ctx, &stack, m, act_scale);
    return arena.used;
}

static moe_status measure(const moe_context *ctx, const described *d, const char *call,
                          size_t *bytes)
{
    moei_matrices m;
    float *act_scale;
    *bytes = place(ctx, d, NULL, &m, &act_scale);
    MOE_REQUIRE(*bytes != SIZE_MAX, MOE_E_OVERFLOW, "%s: the matrices exceed %zu bytes", call,
                SIZE_MAX);
    return MOE_OK;
}

moe_status moe_matrix_bytes(const moe_context *ctx, const moe_matrix_desc *desc, size_t *bytes,
                            size_t *align)
{
    const char *call = "moe_matrix_bytes";
    described d;
    size_t need = 0;
    MOE_REQUIRE(bytes != NULL && align != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                bytes == NULL ? "bytes" : "align");
    MOE_TRY(describe(ctx, desc, call, &d));
    MOE_TRY(measure(ctx, &d, call, &need));
    *bytes = need;
    *align = MOEI_ARENA_ALIGN;
    return MOE_OK;
}

// A handle over the memory, in which nothing is packed yet.
static moe_status make(const moe_context *ctx, const described *d, const void *memory, size_t bytes,
                       const char *call, moe_matrix **out)
{
    MOE_REQUIRE((uintptr_t)memory % MOEI_ARENA_ALIGN == 0, MOE_E_ALIGNMENT,
                "%s: memory is not aligned to %d bytes", call, MOEI_ARENA_ALIGN);
    const size_t self_bytes = sizeof(moe_matrix) + (size_t)d->desc.count * sizeof(bool);
    moe_matrix *matrix = moei_alloc(ctx, self_bytes, 64);
    MOE_REQUIRE(matrix != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call, self_bytes);
    memset(matrix, 0, self_bytes);
    matrix->ctx = ctx;
    matrix->self_bytes = self_bytes;
    matrix->desc = d->desc;
    matrix->kernel = d->kernel;
    matrix->memory = memory;
    matrix->bytes = bytes;
    (void)place(ctx, d, memory, &matrix->m, &matrix->act_scale);
    *out = matrix;
    return MOE_OK;
}

moe_status moe_matrix_create(const moe_context *ctx, const moe_matrix_desc *desc, void *memory,
                             size_t bytes, moe_matrix **out)
{
    const char *call = "moe_matrix_create";
    described d;
    size_t need = 0;
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, "%s: out is NULL", call);
    MOE_TRY(describe(ctx, desc, call, &d));
    MOE_TRY(measure(ctx, &d, call, &need));
    MOE_REQUIRE(memory != NULL && bytes >= need, MOE_E_ARGUMENT,
                "%s: memory of %zu bytes, needs %zu", call, memory == NULL ? 0 : bytes, need);
    MOE_TRY(make(ctx, &d, memory, need, call, out));
    moei_ask_huge_pages(memory, need);
    return MOE_OK;
}

void moe_matrix_destroy(moe_matrix *matrix)
{
    if (matrix != NULL) {
        moei_free(matrix->ctx, matrix, matrix->self_bytes);
    }
}

const char *moe_matrix_kernel(const moe_matrix *matrix)
{
    return matrix->kernel->name;
}

// ---- in and out --------------------------------------------------------------------------------

// The views of a source, or to write to, as experts [first, first + count) of the matrix.
static moe_status from_source(const moe_matrix *matrix, int32_t first,
                              const moe_matrix_source *source, const char *call, const char *name,
                              moei_matrices *out)
{
    MOE_REQUIRE(matrix != NULL && source != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                matrix == NULL ? "matrix" : name);
    const moe_matrix_desc *d = &matrix->desc;
    const moei_view views[] = {
        {&source->values, "values", false}, {&source->scales, "scales", false},
        {&source->scale2, "scale2", false}, {&source->zero_points, "zero_points", false},
        {&source->bias, "bias", false},     {&source->act_scale, "act_scale", false}};
    MOE_TRY(moei_views_check_device(views, sizeof views / sizeof views[0],
                                    matrix->ctx->backend->device, call));
    const int64_t count = source->values.ndim <= 2 ? 1 : source->values.shape[0];
    MOE_REQUIRE(first >= 0 && count >= 0 && count <= d->count - (int64_t)first, MOE_E_SHAPE,
                "%s: experts %d .. %" PRId64 ", the matrix has %d", call, (int)first,
                first + count - 1, (int)d->count);
    return moei_matrices_from_source(source, &d->gemm, (int32_t)count, d->outputs, d->inputs,
                                     d->transposed != 0, MOE_GATE_UP_UNSET, call, NAME, out);
}

moe_status moe_matrix_pack(moe_matrix *matrix, int32_t first, const moe_matrix_source *source)
{
    const char *call = "moe_matrix_pack";
    moei_matrices from;
    MOE_TRY(from_source(matrix, first, source, call, "source", &from));
    MOE_REQUIRE(!matrix->adopted, MOE_E_STATE,
                "%s: the matrix was adopted from packed bytes, which are not written; pack into "
                "memory of moe_matrix_create",
                call);
    MOE_TRY(moei_scales_check(matrix->ctx, &from, MOEI_ON_HOST, first, call, NAME));
    MOE_TRY(moei_act_scale_agree(matrix->ctx, &from, matrix->act_scale, &matrix->agreed, true, call,
                                 NAME, "a matrix has one"));
    const moei_put_one put = {&from, &matrix->m, matrix->kernel, NAME};
    for (int32_t e = 0; e < from.count; e++) {
        MOE_TRY(moei_put_expert(matrix->ctx, &put, 1, e, first + e, call));
        matrix->has_expert[first + e] = true;
    }
    return MOE_OK;
}

moe_status moe_matrix_unpack(const moe_matrix *matrix, int32_t first, const moe_matrix_source *out)
{
    const char *call = "moe_matrix_unpack";
    moei_matrices to;
    MOE_TRY(from_source(matrix, first, out, call, "out", &to));
    for (int32_t e = 0; e < to.count; e++) {
        MOE_REQUIRE(matrix->has_expert[first + e], MOE_E_STATE,
                    "%s: expert %d of the matrix has not been packed", call, (int)(first + e));
        MOE_TRY(
            moei_fits_check(matrix->ctx, matrix->kernel, &matrix->m, first + e, &to, call, NAME));
    }
    for (int32_t e = 0; e < to.count; e++) {
        MOE_TRY(moei_get_expert(matrix->ctx, matrix->kernel, &matrix->m, first + e, &to, e, call));
    }
    if (to.act_scale != NULL) {
        memcpy((void *)(uintptr_t)to.act_scale, matrix->act_scale, sizeof(float));
    }
    return MOE_OK;
}

// ---- packed bytes outside a process ------------------------------------------------------------

// A descriptor whose layout is named.
typedef struct named {
    const moe_context *ctx;
    const described *d;
} named;

static moe_status put_layout(const void *arg, const char *call, moei_text *t)
{
    const named *n = arg;
    const moei_stack stack = stack_of(n->d);
    moei_matrices m;
    float *act_scale;
    const size_t bytes = place(n->ctx, n->d, NULL, &m, &act_scale);
    moei_put_layout_head(n->ctx, t);
    MOE_TRY(moei_put_stack(n->ctx, &stack, &m, NAME, call, t));
    moei_put(t, " bytes=%zu", bytes);
    return MOE_OK;
}

moe_status moe_matrix_layout_name(const moe_context *ctx, const moe_matrix_desc *desc, char *buffer,
                                  size_t capacity, size_t *needed)
{
    const char *call = "moe_matrix_layout_name";
    described d;
    size_t bytes = 0;
    MOE_REQUIRE(buffer != NULL || capacity == 0, MOE_E_ARGUMENT,
                "%s: buffer is NULL with a capacity of %zu", call, capacity);
    if (capacity > 0) {
        buffer[0] = '\0';
    }
    MOE_TRY(describe(ctx, desc, call, &d));
    MOE_TRY(measure(ctx, &d, call, &bytes));
    const named n = {ctx, &d};
    moei_text t = {buffer, capacity, 0};
    MOE_TRY(put_layout(&n, call, &t));
    if (needed != NULL) {
        *needed = t.length;
    }
    return MOE_OK;
}

moe_status moe_matrix_adopt(const moe_context *ctx, const moe_matrix_desc *desc, const void *memory,
                            size_t bytes, const char *layout, moe_matrix **out)
{
    const char *call = "moe_matrix_adopt";
    described d;
    size_t need = 0;
    moe_matrix *matrix = NULL;
    MOE_REQUIRE(memory != NULL && layout != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL",
                call,
                memory == NULL   ? "memory"
                : layout == NULL ? "layout"
                                 : "out");
    MOE_TRY(describe(ctx, desc, call, &d));
    MOE_TRY(measure(ctx, &d, call, &need));
    const named n = {ctx, &d};
    const moei_layout_of of = {put_layout, &n, "the descriptor's", "descriptor"};
    MOE_TRY(moei_layout_check(ctx, &of, layout, call));
    MOE_REQUIRE(bytes == need, MOE_E_SHAPE, "%s: %zu packed bytes, the matrices take %zu", call,
                bytes, need);
    MOE_TRY(make(ctx, &d, memory, need, call, &matrix));
    const moe_status status =
        matrix->act_scale != NULL ? moei_act_scale_check(*matrix->act_scale, call, NAME) : MOE_OK;
    if (status != MOE_OK) {
        moe_matrix_destroy(matrix);
        return status;
    }
    matrix->adopted = true;
    memset(matrix->has_expert, 1, (size_t)d.desc.count * sizeof(bool));
    *out = matrix;
    return MOE_OK;
}
