// SPDX-License-Identifier: Apache-2.0
// The table of quantisers, its checks and defaults.
#include "quant/specs.h"

#include <stdio.h>
#include <string.h>

#include "core/check.h"

static const moei_quant_info quants[] = {
#define MOE_QUANT_ROW(ID, name, elem, elems, grain, group, rows, free_group, scale_type,           \
                      scale_types, floor, scale, code, rounding, nan, level, source)               \
    {MOE_QUANT_##ID,                                                                               \
     #name,                                                                                        \
     elem,                                                                                         \
     elems,                                                                                        \
     MOEI_GRAIN_##grain,                                                                           \
     group,                                                                                        \
     rows,                                                                                         \
     (free_group) != 0,                                                                            \
     MOE_SCALE_##scale_type,                                                                       \
     scale_types,                                                                                  \
     floor,                                                                                        \
     MOEI_SCALE_##scale,                                                                           \
     MOEI_CODE_##code,                                                                             \
     MOEI_ROUND_##rounding,                                                                        \
     MOEI_NAN_##nan,                                                                               \
     MOE_DET_##level,                                                                              \
     source},
#include "quant/specs.def"
#undef MOE_QUANT_ROW
};

static const struct {
    const char *name;
    moe_dtype dtype;
} scale_types[] = {
    [MOE_SCALE_DEFAULT] = {"default", MOE_DTYPE_UNSET},
    [MOE_SCALE_F32] = {"f32", MOE_F32},
    [MOE_SCALE_UE8M0_F32] = {"ue8m0_f32", MOE_F32},
    [MOE_SCALE_E8M0] = {"e8m0", MOE_E8M0},
    [MOE_SCALE_UE8M0_PACKED] = {"ue8m0_packed", MOE_I32},
    [MOE_SCALE_E4M3FN] = {"e4m3fn", MOE_E4M3FN},
};
#define NUM_SCALE_TYPES ((moe_scale_type)(sizeof scale_types / sizeof scale_types[0]))

#define MAX_GROUP (1 << 20)

const moei_quant_info *moei_quant_at(size_t i)
{
    return i < sizeof quants / sizeof quants[0] ? &quants[i] : NULL;
}

const moei_quant_info *moei_quant_get(moe_quant_spec spec)
{
    const moei_quant_info *info;
    for (size_t i = 0; (info = moei_quant_at(i)) != NULL; i++) {
        if (info->spec == spec) {
            return info;
        }
    }
    return NULL;
}

const char *moe_quant_name(moe_quant_spec spec)
{
    const moei_quant_info *info = moei_quant_get(spec);
    return info != NULL ? info->name : spec == MOE_QUANT_NONE ? "none" : "unknown quantiser";
}

moe_quant_spec moe_quant_from_name(const char *name)
{
    const moei_quant_info *info;
    for (size_t i = 0; name != NULL && (info = moei_quant_at(i)) != NULL; i++) {
        if (strcmp(info->name, name) == 0) {
            return info->spec;
        }
    }
    return MOE_QUANT_NONE;
}

moe_dtype moei_scale_dtype(moe_scale_type type)
{
    return type > 0 && type < NUM_SCALE_TYPES ? scale_types[type].dtype : MOE_DTYPE_UNSET;
}

const char *moei_scale_type_name(moe_scale_type type)
{
    return type >= 0 && type < NUM_SCALE_TYPES ? scale_types[type].name : "unknown scale type";
}

float moe_fp8_quant_max(moe_dtype elem)
{
    return moei_fp8_quant_max(elem);
}

// "e2m1 or e4m3fn"
static const char *join_names(uint32_t mask, const char *(*name)(int32_t), char *buffer,
                              size_t capacity)
{
    size_t at = 0;
    buffer[0] = '\0';
    for (int32_t i = 1; i < 32; i++) {
        if ((mask & (1u << i)) != 0 && at < capacity) {
            const int n =
                snprintf(buffer + at, capacity - at, "%s%s", at > 0 ? " or " : "", name(i));
            at += n > 0 ? (size_t)n : 0;
        }
    }
    return buffer;
}

static moe_status check_none(const moe_quant_desc *desc, const char *call)
{
    const bool empty = desc->elem == 0 && desc->group == 0 && desc->scale_type == 0 &&
                       desc->scale_layout == 0 && desc->amax_bound == 0.0f;
    MOE_REQUIRE(empty, MOE_E_UNSET,
                "%s: quant.spec is unset (0), but elem = %d, group = %d, scale_type = %d, "
                "scale_layout = %d, amax_bound = %g; name a quantiser, or set all to 0",
                call, (int)desc->elem, (int)desc->group, (int)desc->scale_type,
                (int)desc->scale_layout, (double)desc->amax_bound);
    return MOE_OK;
}

static moe_status check_group(const moe_quant_desc *desc, const moei_quant_info *info,
                              const char *call)
{
    if (desc->group == 0 || desc->group == info->group) {
        return MOE_OK;
    }
    MOE_REQUIRE(info->group > 0, MOE_E_UNSUPPORTED,
                "%s: quant.group = %d, quantiser %s has one scale per %s; 0 works", call,
                (int)desc->group, info->name, info->grain == MOEI_GRAIN_TOKEN ? "row" : "tensor");
    MOE_REQUIRE(info->free_group, MOE_E_UNSUPPORTED,
                "%s: quant.group = %d, quantiser %s has a fixed group of %d", call,
                (int)desc->group, info->name, (int)info->group);
    MOE_REQUIRE(desc->group > 0 && desc->group <= MAX_GROUP, MOE_E_ARGUMENT,
                "%s: quant.group = %d, must be 1..%d (0: %d)", call, (int)desc->group, MAX_GROUP,
                (int)info->group);
    const moe_dtype elem = desc->elem != 0 ? desc->elem : info->elem;
    MOE_REQUIRE(desc->group * moe_dtype_bits(elem) % 8 == 0, MOE_E_UNSUPPORTED,
                "%s: quant.group = %d of %s does not end on a byte; %d works", call,
                (int)desc->group, moe_dtype_name(elem), (int)info->group);
    return MOE_OK;
}

moe_status moei_quant_check(const moe_quant_desc *desc, const char *call)
{
    char names[128];
    if (desc->spec == MOE_QUANT_NONE) {
        return check_none(desc, call);
    }
    const moei_quant_info *info = moei_quant_get(desc->spec);
    MOE_REQUIRE(info != NULL, MOE_E_ARGUMENT, "%s: quant.spec = %d is not a quantiser", call,
                (int)desc->spec);
    MOE_REQUIRE(desc->elem == 0 ||
                    (desc->elem > 0 && desc->elem < 32 && (info->elems & (1u << desc->elem)) != 0),
                MOE_E_UNSUPPORTED, "%s: quant.elem = %s, quantiser %s makes %s", call,
                moe_dtype_name(desc->elem), info->name,
                join_names(info->elems, moe_dtype_name, names, sizeof names));
    MOE_TRY(check_group(desc, info, call));
    MOE_REQUIRE(desc->scale_type == 0 || (desc->scale_type > 0 && desc->scale_type < 32 &&
                                          (info->scale_types & (1u << desc->scale_type)) != 0),
                MOE_E_UNSUPPORTED, "%s: quant.scale_type = %s, quantiser %s has %s", call,
                moei_scale_type_name(desc->scale_type), info->name,
                join_names(info->scale_types, moei_scale_type_name, names, sizeof names));
    MOE_REQUIRE(desc->scale_layout >= 0 && desc->scale_layout <= MOE_SCALE_LAYOUT_COLUMN,
                MOE_E_ARGUMENT, "%s: quant.scale_layout = %d, must be 0 (row), 1 (row), 2 (column)",
                call, (int)desc->scale_layout);
    MOE_REQUIRE(desc->scale_layout != MOE_SCALE_LAYOUT_COLUMN || info->group > 0, MOE_E_UNSUPPORTED,
                "%s: quant.scale_layout = column, quantiser %s has no scales along k; row works",
                call, info->name);
    MOE_REQUIRE(desc->amax_bound == 0.0f || info->scale == MOEI_SCALE_TOKEN, MOE_E_UNSUPPORTED,
                "%s: quant.amax_bound = %g, quantiser %s has none; set it to 0 (fp8_token has one)",
                call, (double)desc->amax_bound, info->name);
    MOE_REQUIRE(desc->amax_bound >= 0.0f && desc->amax_bound <= 3.4e38f, MOE_E_ARGUMENT,
                "%s: quant.amax_bound = %g, must be finite and >= 0", call,
                (double)desc->amax_bound);
    return MOE_OK;
}

moe_status moei_quant_check_act(const moe_quant_desc *desc, const char *call, const char *name)
{
    const moei_quant_info *info = moei_quant_get(desc->spec);
    MOE_REQUIRE(info == NULL || info->grain != MOEI_GRAIN_BLOCK, MOE_E_UNSUPPORTED,
                "%s: %s.act = %s, whose scales span %d rows: a token would depend on its "
                "neighbours; fp8_group_* with group %d works",
                call, name, info->name, (int)info->block_rows, (int)info->group);
    return MOE_OK;
}

void moei_quant_resolve(moe_quant_desc *desc)
{
    const moei_quant_info *info = moei_quant_get(desc->spec);
    if (info == NULL) {
        return;
    }
    desc->elem = desc->elem != 0 ? desc->elem : info->elem;
    desc->group = desc->group != 0 ? desc->group : info->group;
    desc->scale_type = desc->scale_type != 0 ? desc->scale_type : info->scale_type;
    desc->scale_layout = desc->scale_layout != 0 ? desc->scale_layout : MOE_SCALE_LAYOUT_ROW;
}

bool moei_quant_needs_given_scale(const moe_quant_desc *desc)
{
    const moei_quant_info *info = moei_quant_get(desc->spec);
    return info != NULL && (info->scale == MOEI_SCALE_GIVEN || info->scale == MOEI_SCALE_NVFP4);
}

bool moei_quant_has_global_scale(const moe_quant_desc *desc)
{
    const moei_quant_info *info = moei_quant_get(desc->spec);
    return info != NULL && info->code == MOEI_CODE_GLOBAL;
}

moe_determinism moei_quant_level(const moe_quant_desc *desc)
{
    const moei_quant_info *info = moei_quant_get(desc->spec);
    return info != NULL ? info->level : MOE_DET_KERNEL;
}
