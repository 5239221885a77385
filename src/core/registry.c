// SPDX-License-Identifier: Apache-2.0
// Selection over a table of kernels, and the texts of refusals.
#include "core/registry.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/isa.h"

static const moei_arith_info ariths[MOEI_NUM_ARITH] = {
#define MOE_ARITH(ID, name, bits, rounding, products, chunk, consistent, text)                     \
    {                                                                                              \
        #name,           bits,  (rounding) == 1 || (rounding) == 2,                                \
        products,        chunk, (consistent) != 0,                                                 \
        (rounding) >= 2, text},
#include "moe/arith.def"
#undef MOE_ARITH
};

const moei_arith_info *moei_arith_get(moei_arith arith)
{
    return &ariths[arith];
}

const char *moei_op_name(moei_op op)
{
    static const char *const names[MOEI_NUM_OPS] = {"route", "place", "sort",   "quantize",
                                                    "ggemm", "glu",   "combine"};
    return op < MOEI_NUM_OPS ? names[op] : "unknown op";
}

typedef enum value_kind {
    KIND_NUMBER,
    KIND_ISA,
    KIND_DTYPE,
    KIND_FORMAT,
    KIND_ARITH,
    KIND_LEVEL,
    KIND_QUANT,
    KIND_LAYOUT
} value_kind;

static const char *level_name(int64_t level)
{
    static const char *const names[] = {"DEFAULT", "NONE", "RUN", "BATCH", "KERNEL"};
    return level >= 0 && level <= MOE_DET_KERNEL ? names[level] : "unknown";
}

static const char *value_text(const moei_backend *backend, value_kind kind, int64_t value,
                              char *buffer, size_t capacity)
{
    switch (kind) {
    case KIND_ISA:
        return (backend->isa_text != NULL ? backend->isa_text : moei_isa_text)((uint64_t)value,
                                                                               buffer, capacity);
    case KIND_DTYPE:
        return moe_dtype_name((moe_dtype)value);
    case KIND_FORMAT:
        return moe_format_name((moe_format)value);
    case KIND_ARITH:
        return moei_arith_get((moei_arith)value)->name;
    case KIND_LEVEL:
        return level_name(value);
    case KIND_QUANT:
        return moe_quant_name((moe_quant_spec)value);
    case KIND_LAYOUT:
        return value == MOEI_LAYOUT_PACKED ? "packed" : "canonical";
    case KIND_NUMBER:
        break;
    }
    (void)snprintf(buffer, capacity, "%" PRId64, value);
    return buffer;
}

const char *moei_whynot_text(const moei_backend *backend, const moei_whynot *why, char *buffer,
                             size_t capacity)
{
    static const struct {
        value_kind kind;
        const char *text;
    } rows[MOEI_NUM_WHYNOT] = {
#define MOE_WHYNOT(ID, kind, text) {KIND_##kind, text},
#include "moe/whynot.def"
#undef MOE_WHYNOT
    };
    char have[256];
    char need[256];
    char *at = buffer;
    size_t left = capacity;
    const value_kind kind = rows[why->code].kind;
    const char *values[2] = {value_text(backend, kind, why->have, have, sizeof have),
                             value_text(backend, kind, why->need, need, sizeof need)};
    const bool of_device = why->code == MOEI_WHYNOT_ISA && backend->device != MOE_DEVICE_CPU;
    const char *text = of_device ? "device has %s, the kernel needs %s" : rows[why->code].text;
    int next = 0;
    for (const char *c = text; *c != '\0' && left > 1; c++) {
        if (c[0] == '%' && c[1] == 's' && next < 2) {
            const int n = snprintf(at, left, "%s", values[next++]);
            const size_t used = n > 0 && (size_t)n < left ? (size_t)n : left - 1;
            at += used;
            left -= used;
            c++;
        } else {
            *at++ = *c;
            left--;
        }
    }
    if (capacity > 0) {
        *at = '\0';
    }
    return buffer;
}

bool moei_registry_supports(const moei_kernel *kernel, uint64_t isa,
                            const moei_ggemm_problem *problem, moei_whynot *why)
{
    if ((kernel->isa & ~isa) != 0) {
        *why = (moei_whynot){MOEI_WHYNOT_ISA, (int64_t)isa, (int64_t)kernel->isa};
        return false;
    }
    if (problem == NULL) {
        return true;
    }
    if (problem->canonical && kernel->layout != MOEI_LAYOUT_ROW) {
        *why = (moei_whynot){MOEI_WHYNOT_LAYOUT, MOEI_LAYOUT_ROW, kernel->layout};
        return false;
    }
    if (problem->level == MOE_DET_KERNEL && !moei_arith_get(kernel->arith)->consistent) {
        *why = (moei_whynot){MOEI_WHYNOT_LEVEL, MOE_DET_BATCH, MOE_DET_KERNEL};
        return false;
    }
    return kernel->supports == NULL || kernel->supports(kernel, problem, why);
}

int moei_registry_select(const moei_kernel *kernels, size_t count, moei_op op, uint64_t isa,
                         const moei_ggemm_problem *problem, moei_whynot *why)
{
    int best = -1;
    double best_cost = 0.0;
    for (size_t i = 0; i < count; i++) {
        moei_whynot refusal = {MOEI_WHYNOT_NONE, 0, 0};
        if (kernels[i].op != op) {
            continue;
        }
        if (!moei_registry_supports(&kernels[i], isa, problem, &refusal)) {
            // Of all reasons, groups that no kernel can fold say most: types alone would be taken.
            *why = why->code == MOEI_WHYNOT_FOLD ? *why : refusal;
            continue;
        }
        const double cost = kernels[i].cost != NULL ? kernels[i].cost(&kernels[i], problem) : 0.0;
        if (best < 0 || cost < best_cost) {
            best = (int)i;
            best_cost = cost;
        }
    }
    return best;
}
