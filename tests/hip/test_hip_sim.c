// SPDX-License-Identifier: Apache-2.0
// The products on matrix units twice, from the same sources: as machine code in the emulator, and
// as fibers on the host. Packed weights must be the same bytes, results the same bits: for every
// row, weight format and form of activations, with few and with many rows of an expert.
#include <stdlib.h>
#include <string.h>

#include "api/weights_internal.h"
#include "backends/hip/mfma.h"
#include "checkmoe/ggemm_case.h"
#include "checkmoe/op_run.h"
#include "core/registry.h"
#include "quant/elements.h"
#include "quant/specs.h"
#include "unit/test.h"

static const moe_quant_desc forms[] = {
    {.spec = MOE_QUANT_NONE},
    {.spec = MOE_QUANT_FP8_TOKEN},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 64, .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
    {.spec = MOE_QUANT_FP8_GROUP_RECIP,
     .scale_type = MOE_SCALE_UE8M0_PACKED,
     .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
    {.spec = MOE_QUANT_INT8_TOKEN},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E2M1},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E4M3FN},
    {.spec = MOE_QUANT_NVFP4},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .elem = MOE_E4M3FNUZ},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .elem = MOE_E5M2, .scale_type = MOE_SCALE_UE8M0_F32},
    {.spec = MOE_QUANT_MX_EVEN, .elem = MOE_E3M2},
};

typedef struct device {
    moe_context *ctx;
    const moei_kernel *kernel; // the row in hand
    uint8_t *packed;
} device;

static const moei_kernel *row_of(const moe_context *ctx, const char *name)
{
    for (size_t i = 0; i < ctx->backend->num_kernels; i++) {
        if (strcmp(ctx->backend->kernels[i].name, name) == 0) {
            return &ctx->backend->kernels[i];
        }
    }
    return NULL;
}

// Runs a case, whose y then has the result. False: `wrong` says why.
static bool run(const device *d, moec_ggemm_case *c, const moek_ggemm_args *args, char *wrong,
                size_t size)
{
    moec_twins twins;
    moec_buffers_poison(&c->buffers);
    moec_twins_begin(&twins, d->ctx);
    for (int i = 0; i < c->buffers.count; i++) {
        moec_twins_add(&twins, &c->buffers.item[i].guard, c->buffers.item[i].output);
    }
    bool ok = moec_twins_up(&twins, MOEC_POISON) == MOE_OK &&
              moec_op_run(d->ctx, &twins, d->kernel, args) == MOE_OK;
    if (!ok) {
        (void)snprintf(wrong, size, "%s", moe_last_error());
    }
    ok = ok && moec_twins_down(&twins, wrong, size);
    moec_twins_end(&twins);
    return ok;
}

// The arguments of a row: of a packed layout, with all experts packed to c->packed.
static moe_status arguments(const device *d, moec_ggemm_case *c, moek_ggemm_args *args)
{
    MOE_TRY(moec_ggemm_args(c, args));
    if (d->kernel->layout != MOEI_LAYOUT_PACKED) {
        return MOE_OK;
    }
    moei_matrices m = args->w;
    m.values = NULL;
    m.scales = NULL;
    m.zeros = NULL;
    const size_t bytes = d->ctx->backend->packed_bytes(d->kernel, &m);
    if (c->packed == NULL) {
        c->packed = moec_ggemm_take(c, false, c->experts, bytes, c->at_end);
        MOE_REQUIRE(c->packed != NULL, MOE_E_NO_MEMORY, "memory is short");
    }
    for (int32_t e = 0; e < c->experts; e++) {
        const moei_matrices one = moei_expert_of(&args->w, e);
        MOE_TRY(d->ctx->backend->pack(d->kernel, &one, c->packed + (size_t)e * bytes));
    }
    m.layout = MOEI_LAYOUT_PACKED;
    m.values = c->packed;
    m.value_e_stride = (int64_t)bytes;
    args->w = m;
    return MOE_OK;
}

static void compare(const device *machine, const device *fibers, moec_ggemm_case *c)
{
    const char *name = machine->kernel->name;
    const size_t bytes = (size_t)(c->rows * c->y_stride * moe_dtype_bits(c->y_dtype) / 8);
    char wrong[200] = "memory is short";
    moek_ggemm_args args;
    uint8_t *want = malloc(bytes + 1);
    uint8_t *codes = NULL;
    bool ok = want != NULL && arguments(machine, c, &args) == MOE_OK &&
              run(machine, c, &args, wrong, sizeof wrong);
    if (!CHECK(ok, "%s: %s: %s", name, c->text, wrong)) {
        free(want);
        return;
    }
    memcpy(want, c->y, bytes);
    const size_t packed =
        c->packed != NULL ? (size_t)c->experts * (size_t)args.w.value_e_stride : 0;
    codes = malloc(packed + 1);
    ok = codes != NULL;
    if (ok && packed > 0) {
        memcpy(codes, c->packed, packed);
        memset(c->packed, 0x5A, packed);
    }
    ok = ok && arguments(fibers, c, &args) == MOE_OK && run(fibers, c, &args, wrong, sizeof wrong);
    CHECK(ok, "%s: %s: on the host: %s", name, c->text, wrong);
    CHECK(!ok || packed == 0 || memcmp(codes, c->packed, packed) == 0,
          "%s: %s: packed weights differ", name, c->text);
    CHECK(!ok || memcmp(want, c->y, bytes) == 0, "%s: %s: bits differ", name, c->text);
    free(codes);
    free(want);
}

// More rows than the kernels for few rows take, in tiles of which the last is not full.
static void draw_many(moec_ggemm_case *c, moec_rng *rng)
{
    c->experts = 1 + (int32_t)moec_below(rng, 2);
    for (int32_t e = 0; e < c->experts; e++) {
        c->offsets[e + 1] = c->offsets[e] + 20 + (int32_t)moec_below(rng, 70);
    }
    c->rows = c->offsets[c->experts];
}

/// True where the row takes the case.
static bool check(const device *machine, const device *fibers, const moe_gemm_desc *gemm,
                  moe_dtype x_dtype, bool many, uint64_t seed)
{
    moec_rng rng = {seed};
    moei_whynot why;
    moec_ggemm_case *c = calloc(1, sizeof *c);
    if (!CHECK(c != NULL, "memory is short")) {
        return false;
    }
    moec_ggemm_begin(c, gemm, x_dtype, MOEC_NORMAL, true);
    moec_ggemm_draw(c, &rng, MOEC_SHAPE_PLAIN);
    c->transposed = false;
    if (many) {
        draw_many(c, &rng);
    }
    const moei_ggemm_problem problem = {.m_max = c->rows,
                                        .n = c->n,
                                        .k = c->k,
                                        .experts = c->experts,
                                        .gemm = &c->gemm,
                                        .x_dtype = x_dtype,
                                        .y_dtype = c->y_dtype};
    const bool takes = moei_registry_supports(machine->kernel, machine->ctx->isa, &problem, &why);
    CHECK(takes == moei_registry_supports(fibers->kernel, fibers->ctx->isa, &problem, &why),
          "%s: one of two takes a case", machine->kernel->name);
    if (takes && CHECK(moec_ggemm_build(c, &rng), "memory is short")) {
        compare(machine, fibers, c);
    }
    moec_ggemm_free(c);
    free(c);
    return takes;
}

// Every format and form that the row takes, but one in `every` of what is not the first of a
// format.
static int check_row(const device *machine, const device *fibers, uint64_t every)
{
    const moei_format_info *info;
    uint64_t number = 0;
    int cases = 0;
    for (size_t f = 0; (info = moei_format_at(f)) != NULL; f++) {
        int of_format = 0;
        for (size_t a = 0; a < sizeof forms / sizeof forms[0]; a++) {
            const moe_gemm_desc gemm = {.weight_format = info->format, .act = forms[a]};
            const moe_dtype x = moei_gemm_operand_dtype(&gemm, MOE_BF16);
            number++;
            if (of_format > 0 && number % every != 0) {
                continue;
            }
            for (int many = 0; many < 2; many++) {
                const uint64_t seed = 1000 * number + (uint64_t)many;
                of_format += check(machine, fibers, &gemm, x, many != 0, seed) ? 1 : 0;
            }
        }
        cases += of_format;
    }
    return cases;
}

static moe_context *open_context(const char *backend)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    desc.backend = backend;
    CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s: %s", backend, moe_last_error());
    return ctx;
}

int main(void)
{
    device machine = {.ctx = open_context("hip")};
    device fibers = {.ctx = open_context("sim")};
    for (size_t i = 0;
         machine.ctx != NULL && fibers.ctx != NULL && i < machine.ctx->backend->num_kernels; i++) {
        machine.kernel = &machine.ctx->backend->kernels[i];
        fibers.kernel = row_of(fibers.ctx, machine.kernel->name);
        if (machine.kernel->isa == MOEI_HIP_ANY || (machine.kernel->isa & ~machine.ctx->isa) != 0) {
            continue; // a body of gpu/, or of another machine
        }
        if (!CHECK(fibers.kernel != NULL, "%s: not on the host", machine.kernel->name)) {
            continue;
        }
        const int cases = check_row(&machine, &fibers, 3);
        CHECK(cases > 0, "%s: no case", machine.kernel->name);
        printf("%-40s %d cases\n", machine.kernel->name, cases);
    }
    moec_twins_release(machine.ctx);
    moe_context_destroy(machine.ctx);
    moe_context_destroy(fibers.ctx);
    return test_summary();
}
