// SPDX-License-Identifier: Apache-2.0
// Which dialect a layer's tensors are in, and whether each is what the dialect asks for. What a
// dialect means lies in its row of dialects.def; there is no code per dialect.
#include "io/dialects.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/checkpoint.h"
#include "io/text.h"

// The columns of the table by short names.
enum {
    VALUES = MOE_ROLE_VALUES,
    SCALES = MOE_ROLE_SCALES,
    SCALE2 = MOE_ROLE_SCALE2,
    ACT = MOE_ROLE_ACT_SCALE,
    ZEROS = MOE_ROLE_ZERO_POINTS,
    SHAPE = MOE_ROLE_SHAPE,
    INDEX = MOE_ROLE_GROUP_INDEX,

    WEIGHT = MOEI_SUFFIX_WEIGHT,
    BLOCKS = MOEI_SUFFIX_BLOCKS,
    BLOCK_SCALES = MOEI_SUFFIX_SCALES,
    SCALE = MOEI_SUFFIX_SCALE,
    WEIGHT_SCALE = MOEI_SUFFIX_WEIGHT_SCALE,
    WEIGHT_SCALE_INV = MOEI_SUFFIX_WEIGHT_SCALE_INV,
    WEIGHT_SCALE_2 = MOEI_SUFFIX_WEIGHT_SCALE_2,
    WEIGHT_PACKED = MOEI_SUFFIX_WEIGHT_PACKED,
    WEIGHT_GLOBAL_SCALE = MOEI_SUFFIX_WEIGHT_GLOBAL_SCALE,
    WEIGHT_ZERO_POINT = MOEI_SUFFIX_WEIGHT_ZERO_POINT,
    WEIGHT_SHAPE = MOEI_SUFFIX_WEIGHT_SHAPE,
    WEIGHT_G_IDX = MOEI_SUFFIX_WEIGHT_G_IDX,
    INPUT_SCALE = MOEI_SUFFIX_INPUT_SCALE,
    INPUT_GLOBAL_SCALE = MOEI_SUFFIX_INPUT_GLOBAL_SCALE,
};

static const struct moei_dialect dialects[] = {
#include "io/dialects.def"
};

// As the names of files have them.
static const char *const suffix_names[MOEI_NUM_SUFFIXES] = {
    "",
    "weight",
    "blocks",
    "scales",
    "scale",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_packed",
    "weight_global_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_global_scale",
    "bias",
};
static const char *const projection_names[MOEI_NUM_PROJECTIONS] = {"gate_up", "gate", "up", "down"};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/// What the checks of one stack share.
struct checking {
    const moe_checkpoint_layer *layer;
    const char *call;
    const char *label;
    struct moei_stack *stack;
};

/// A tensor being checked.
struct subject {
    const char *name;
    moe_tensor t;
};

struct moei_tensor_text moei_tensor_describe(const moe_tensor *t)
{
    struct moei_tensor_text out;
    size_t used = 0;
    (void)snprintf(out.text, sizeof out.text, "%s [", moe_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++) {
        used = strlen(out.text);
        (void)snprintf(out.text + used, sizeof out.text - used, "%s%" PRId64, i > 0 ? ", " : "",
                       t->shape[i]);
    }
    used = strlen(out.text);
    (void)snprintf(out.text + used, sizeof out.text - used, "]");
    return out;
}

static struct moei_quote shown(const char *name)
{
    return moei_quote_head(name, strlen(name));
}

static moe_status view(const struct checking *c, const struct moei_piece *piece, int suffix,
                       struct subject *out)
{
    out->name = moei_piece_name(c->layer, piece, (enum moei_suffix)suffix);
    return moei_piece_view(c->layer, c->call, piece, (enum moei_suffix)suffix, &out->t);
}

// ---- which dialect -----------------------------------------------------------------------------

enum fit { FIT_NO, FIT_MISSING, FIT_YES };

static bool in_row(const struct moei_dialect *row, int suffix)
{
    for (int r = 1; r < MOEI_NUM_ROLES; r++) {
        if (row->role[r] == suffix) {
            return true;
        }
    }
    return suffix == MOEI_SUFFIX_BIAS;
}

static bool has_dtype(const struct checking *c, const struct moei_piece *piece, int suffix,
                      uint32_t dtypes, moe_tensor *t)
{
    return moei_piece_view(c->layer, c->call, piece, (enum moei_suffix)suffix, t) == MOE_OK &&
           t->dtype > 0 && t->dtype < 32 && (dtypes >> t->dtype & 1) != 0;
}

// Whether a piece is stored as a row says; *missing: the suffix that it lacks.
static enum fit fits(const struct checking *c, const struct moei_dialect *row,
                     const struct moei_piece *piece, int64_t k, int *missing)
{
    moe_tensor t;
    if (piece->tensor[row->role[VALUES]] == 0 ||
        !has_dtype(c, piece, row->role[VALUES], row->values, &t)) {
        return FIT_NO;
    }
    // Both packings of words have the same names and types: the width tells them apart.
    if (row->bits != 0 && t.ndim > 0 &&
        t.shape[t.ndim - 1] != moei_i64_ceil_div(k, 32 / row->bits)) {
        return FIT_NO;
    }
    for (int s = 1; s < MOEI_NUM_SUFFIXES; s++) {
        if (piece->tensor[s] != 0 && !in_row(row, s)) {
            return FIT_NO;
        }
    }
    if (row->role[SCALES] != 0 && piece->tensor[row->role[SCALES]] != 0 &&
        !has_dtype(c, piece, row->role[SCALES], row->scales, &t)) {
        return FIT_NO;
    }
    for (int r = SCALES; r <= SCALE2; r++) {
        if (row->role[r] != 0 && piece->tensor[row->role[r]] == 0) {
            *missing = row->role[r];
            return FIT_MISSING;
        }
    }
    return FIT_YES;
}

static const struct moei_dialect *detect(const struct checking *c, const struct moei_piece *piece,
                                         int64_t k, enum fit wanted)
{
    int missing;
    for (size_t i = 0; i < COUNT(dialects); i++) {
        if (fits(c, &dialects[i], piece, k, &missing) == wanted) {
            return &dialects[i];
        }
    }
    return NULL;
}

// The name of any tensor of a piece, and what it has, for messages; NULL: it has none.
static const char *describe_piece(const struct checking *c, const struct moei_piece *piece,
                                  char text[200])
{
    const char *name = NULL;
    text[0] = '\0';
    for (int s = 1; s < MOEI_NUM_SUFFIXES; s++) {
        struct subject of = {NULL, {0}};
        if (piece->tensor[s] == 0) {
            continue;
        }
        const char *type = view(c, piece, s, &of) == MOE_OK ? moe_dtype_name(of.t.dtype) : "C64";
        const size_t used = strlen(text);
        (void)snprintf(text + used, 200 - used, "%s%s %s", used > 0 ? ", " : "", suffix_names[s],
                       type);
        name = name == NULL ? of.name : name;
    }
    return name;
}

// Why a piece is not in the stack's dialect (NULL: in none).
static moe_status fail_piece(const struct checking *c, const struct moei_piece *piece, int64_t k)
{
    char text[200];
    int missing = 0;
    const struct moei_dialect *row = c->stack->dialect;
    const struct moei_dialect *other = detect(c, piece, k, FIT_YES);
    const char *name = describe_piece(c, piece, text);
    if (row == NULL) {
        row = detect(c, piece, k, FIT_MISSING);
    }
    if (row != NULL && fits(c, row, piece, k, &missing) == FIT_MISSING) {
        return moe_fail(MOE_E_NOT_FOUND,
                        "%s: %s: \"%s\" is there (%s), its %s is missing; %s needs it", c->call,
                        c->label, shown(name).text, text, suffix_names[missing], row->name);
    }
    if (row != NULL && other != NULL) {
        return moe_fail(MOE_E_MALFORMED, "%s: %s: two dialects at once: \"%s\" is %s, other %s %s",
                        c->call, c->label, shown(name).text, other->name, c->stack->what,
                        row->name);
    }
    return moe_fail(MOE_E_MALFORMED, "%s: %s: \"%s\" has %s, which %s%s", c->call, c->label,
                    shown(name).text, text, row != NULL ? "is not as in " : "is no known dialect",
                    row != NULL ? row->name : "");
}

// ---- which tensors -----------------------------------------------------------------------------

static int num_pieces(const struct moei_stack *s)
{
    return s->stacked ? 1 : s->count;
}

static bool is_empty(const struct moei_piece *piece)
{
    for (int i = 0; i < MOEI_NUM_SUFFIXES; i++) {
        if (piece->tensor[i] != 0) {
            return false;
        }
    }
    return true;
}

// First name of a projection over all experts, NULL: there is none.
static const char *example(const struct checking *c, enum moei_projection p)
{
    char text[200];
    for (int e = 0; e < num_pieces(c->stack); e++) {
        const char *name = describe_piece(c, moei_stack_piece(c->stack, e, p), text);
        if (name != NULL) {
            return name;
        }
    }
    return NULL;
}

// Gate and up joined or apart; without a gate, up alone is what "joined" means.
static moe_status settle_projections(const struct checking *c, bool gated)
{
    struct moei_stack *s = c->stack;
    const char *gate = example(c, MOEI_GATE);
    const char *joined = example(c, MOEI_GATE_UP);
    if (!gated) {
        MOE_REQUIRE(gate == NULL && joined == NULL, MOE_E_MALFORMED,
                    "%s: %s: \"%s\" is there, the configuration's activation has no gate", c->call,
                    c->label, shown(gate != NULL ? gate : joined).text);
        for (int e = 0; e < num_pieces(s); e++) {
            struct moei_piece *pieces = &s->pieces[(size_t)e * MOEI_NUM_PROJECTIONS];
            pieces[MOEI_GATE_UP] = pieces[MOEI_UP];
            memset(&pieces[MOEI_UP], 0, sizeof pieces[MOEI_UP]);
        }
        return MOE_OK;
    }
    const char *apart = gate != NULL ? gate : example(c, MOEI_UP);
    MOE_REQUIRE(joined == NULL || apart == NULL, MOE_E_MALFORMED,
                "%s: %s: \"%s\" has gate and up, \"%s\" one of them", c->call, c->label,
                shown(joined).text, shown(apart).text);
    s->apart = apart != NULL;
    return MOE_OK;
}

static moe_status check_present(const struct checking *c)
{
    for (int g = 0; g < 2; g++) {
        enum moei_projection parts[2];
        const int n = moei_stack_parts(c->stack, g, parts);
        for (int i = 0; i < n; i++) {
            const char *name = example(c, parts[i]);
            MOE_REQUIRE(name != NULL, MOE_E_NOT_FOUND, "%s: %s: the %s have no %s projection",
                        c->call, c->label, c->stack->what, projection_names[parts[i]]);
            for (int e = 0; e < num_pieces(c->stack); e++) {
                MOE_REQUIRE(!is_empty(moei_stack_piece(c->stack, e, parts[i])), MOE_E_NOT_FOUND,
                            "%s: %s: expert %d has no %s projection; \"%s\" is one of another",
                            c->call, c->label, e, projection_names[parts[i]], shown(name).text);
            }
        }
    }
    return MOE_OK;
}

static moe_status find_dialect(const struct checking *c, const int64_t k[2])
{
    for (int wanted = 0; wanted < 2; wanted++) {
        for (int e = 0; e < num_pieces(c->stack); e++) {
            for (int g = 0; g < 2; g++) {
                enum moei_projection parts[2];
                const int n = moei_stack_parts(c->stack, g, parts);
                for (int i = 0; i < n; i++) {
                    const struct moei_piece *piece = moei_stack_piece(c->stack, e, parts[i]);
                    int missing;
                    if (wanted == 0 && c->stack->dialect == NULL) {
                        c->stack->dialect = detect(c, piece, k[g], FIT_YES);
                    } else if (wanted == 1 &&
                               (c->stack->dialect == NULL ||
                                fits(c, c->stack->dialect, piece, k[g], &missing) != FIT_YES)) {
                        return fail_piece(c, piece, k[g]);
                    }
                }
            }
        }
    }
    return MOE_OK;
}

// ---- formats -----------------------------------------------------------------------------------

/// The formats of an element type by the grain of its scales.
static const struct {
    moe_dtype element;
    moe_format format[4]; // by moei_grain
} grained[] = {
    {MOE_F32, {MOE_FORMAT_F32, 0, 0, 0}},
    {MOE_BF16, {MOE_FORMAT_BF16, 0, 0, 0}},
    {MOE_F16, {MOE_FORMAT_F16, 0, 0, 0}},
    {MOE_E4M3FN, {0, MOE_FORMAT_E4M3FN_TENSOR, MOE_FORMAT_E4M3FN_CHANNEL, MOE_FORMAT_E4M3FN_BLOCK}},
    {MOE_E4M3FNUZ,
     {0, MOE_FORMAT_E4M3FNUZ_TENSOR, MOE_FORMAT_E4M3FNUZ_CHANNEL, MOE_FORMAT_E4M3FNUZ_BLOCK}},
    {MOE_E5M2, {0, MOE_FORMAT_E5M2_TENSOR, MOE_FORMAT_E5M2_CHANNEL, MOE_FORMAT_E5M2_BLOCK}},
    {MOE_I8, {0, MOE_FORMAT_INT8_TENSOR, MOE_FORMAT_INT8_CHANNEL, MOE_FORMAT_INT8_BLOCK}},
};

static moe_format grained_format(moe_dtype element, enum moei_grain grain)
{
    for (size_t i = 0; i < COUNT(grained); i++) {
        if (grained[i].element == element) {
            return grained[i].format[grain];
        }
    }
    return MOE_FORMAT_UNSET;
}

#define BLOCK 128 // rows and columns that share a scale in the *_BLOCK formats

// Whether the dimensions of a tensor, without the experts', are these; trailing 1s may be left out.
static bool same_dims(const struct moei_stack *s, const moe_tensor *t, int64_t d0, int64_t d1)
{
    const int lead = s->stacked && (s->count > 1 || t->ndim == 3) ? 1 : 0;
    const int64_t a = t->ndim > lead ? t->shape[lead] : 1;
    const int64_t b = t->ndim > lead + 1 ? t->shape[lead + 1] : 1;
    return t->ndim <= lead + 2 && t->ndim >= lead && (lead == 0 || t->shape[0] == s->count) &&
           a == d0 && b == d1;
}

static moe_status fail_dims(const struct checking *c, const struct subject *of, const char *want)
{
    return moe_fail(MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, expected %s%s", c->call, c->label,
                    shown(of->name).text, moei_tensor_describe(&of->t).text, want,
                    c->stack->stacked && c->stack->count > 1 ? " per expert" : "");
}

static moe_status require_dims(const struct checking *c, const struct subject *of, int64_t d0,
                               int64_t d1)
{
    char want[64];
    (void)snprintf(want, sizeof want, "[%" PRId64 ", %" PRId64 "]", d0, d1);
    return same_dims(c->stack, &of->t, d0, d1) ? MOE_OK : fail_dims(c, of, want);
}

// Rows of block scales in a piece of n rows. Halves that share a tensor but not their blocks would
// need a row that belongs to both.
static moe_status block_rows(const struct checking *c, int g, int64_t n, const char *name,
                             int64_t *rows)
{
    const moe_gate_up order = g == 0 && !c->stack->apart ? c->stack->gate_up : MOE_GATE_UP_UNSET;
    *rows = moei_i64_ceil_div(n, BLOCK);
    MOE_REQUIRE((order != MOE_GATE_FIRST && order != MOE_UP_FIRST) || n / 2 % BLOCK == 0,
                MOE_E_UNSUPPORTED,
                "%s: %s: \"%s\": gate and up of %" PRId64 " rows each in one tensor, block scales "
                "need a multiple of %d",
                c->call, c->label, shown(name).text, n / 2, BLOCK);
    return MOE_OK;
}

// The group of integer formats: from the configuration, else from the shapes.
static moe_status settle_group(const struct checking *c, const struct subject *scales,
                               const struct moei_quant_says *says, int64_t columns,
                               struct moei_product *p)
{
    static const int64_t groups[] = {128, 64, 32, 16};
    int64_t group = says->group > 0 ? says->group : moei_i64_ceil_div(p->k, columns);
    bool known = false;
    for (size_t i = 0; i < COUNT(groups); i++) {
        // A last group that is cut short hides the size.
        if (says->group == 0 && p->k % columns != 0 &&
            moei_i64_ceil_div(p->k, groups[i]) == columns) {
            group = groups[i];
        }
        known = known || group == groups[i];
    }
    MOE_REQUIRE(moei_i64_ceil_div(p->k, group) == columns, MOE_E_MALFORMED,
                "%s: %s: \"%s\" is %s, quantization_config has groups of %" PRId64 " in %" PRId64,
                c->call, c->label, shown(scales->name).text, moei_tensor_describe(&scales->t).text,
                group, p->k);
    MOE_REQUIRE(known, MOE_E_UNSUPPORTED,
                "%s: %s: \"%s\" has groups of %" PRId64 ", known are 16, 32, 64, 128", c->call,
                c->label, shown(scales->name).text, group);
    p->group = (int32_t)group;
    return MOE_OK;
}

static moe_status settle_words(const struct checking *c, const struct subject *scales,
                               const struct moei_quant_says *says, struct moei_product *p)
{
    const moe_tensor *t = &scales->t;
    const int64_t columns = t->ndim > 0 ? t->shape[t->ndim - 1] : 1;
    p->element = c->stack->dialect->bits == 4 ? MOE_UINT4 : MOE_I8;
    MOE_REQUIRE(says->bits == 0 || says->bits == c->stack->dialect->bits, MOE_E_MALFORMED,
                "%s: %s: quantization_config says num_bits %" PRId64 ", the tensors are %s",
                c->call, c->label, says->bits, c->stack->dialect->name);
    if (p->element == MOE_I8 && same_dims(c->stack, t, p->rows[0], 1)) {
        p->grain = MOEI_GRAIN_CHANNEL;
        p->format = MOE_FORMAT_INT8_CHANNEL;
        return MOE_OK;
    }
    MOE_REQUIRE(columns > 0 && columns <= p->k, MOE_E_MALFORMED,
                "%s: %s: \"%s\" is %s, expected a scale for each group of %" PRId64 " columns",
                c->call, c->label, shown(scales->name).text, moei_tensor_describe(t).text, p->k);
    MOE_TRY(settle_group(c, scales, says, columns, p));
    p->grain = MOEI_GRAIN_BLOCKS;
    p->block_n = 1;
    p->block_k = p->group;
    p->format = p->element == MOE_I8 ? MOE_FORMAT_INT8_GROUP : MOE_FORMAT_INT4_GROUP;
    return MOE_OK;
}

// Grain by shape: one number, one per row, or one per block.
static moe_status settle_by_scales(const struct checking *c, const struct subject *scales, int g,
                                   const struct moei_quant_says *says, struct moei_product *p)
{
    const struct moei_stack *s = c->stack;
    const moe_tensor *t = &scales->t;
    const bool joined = g == 0 && !s->apart && s->gate_up != MOE_GATE_UP_UNSET;
    const int64_t n = p->rows[0];
    if (same_dims(s, t, 1, 1) || (joined && same_dims(s, t, 2, 1))) {
        p->grain = MOEI_GRAIN_TENSOR;
        p->scale_parts = same_dims(s, t, 1, 1) ? 1 : 2;
    } else if (same_dims(s, t, n, 1)) {
        p->grain = MOEI_GRAIN_CHANNEL;
    } else if (p->element == MOE_I8 && t->ndim > 0 && same_dims(s, t, n, t->shape[t->ndim - 1])) {
        MOE_TRY(settle_group(c, scales, says, t->shape[t->ndim - 1], p));
        p->grain = MOEI_GRAIN_BLOCKS;
        p->block_n = 1;
        p->block_k = p->group;
        p->format = MOE_FORMAT_INT8_GROUP;
        return MOE_OK;
    } else {
        p->grain = MOEI_GRAIN_BLOCKS;
        p->block_n = p->block_k = BLOCK;
    }
    p->format = grained_format(p->element, p->grain);
    return MOE_OK;
}

// Format, grain and types of product g from its first piece.
static moe_status settle_product(const struct checking *c, int g,
                                 const struct moei_quant_says *says, struct moei_product *p)
{
    const struct moei_dialect *row = c->stack->dialect;
    enum moei_projection parts[2];
    struct subject values;
    struct subject scales;
    (void)moei_stack_parts(c->stack, g, parts);
    const struct moei_piece *piece = moei_stack_piece(c->stack, 0, parts[0]);
    MOE_TRY(view(c, piece, row->role[VALUES], &values));
    MOE_TRY(view(c, piece, row->role[SCALES], &scales));
    p->element = values.t.dtype;
    p->scale_parts = 1;
    p->zeros = piece->tensor[row->role[ZEROS]] != 0;
    p->act = piece->tensor[row->role[ACT]] != 0;
    switch (row->kind) {
    case MOEI_KIND_FLOAT:
        p->format = grained_format(p->element, MOEI_GRAIN_NONE);
        return MOE_OK;
    case MOEI_KIND_FIXED:
        p->format = row->format;
        p->element = row->format == MOE_FORMAT_MXFP8_E4M3 ? MOE_E4M3FN : MOE_E2M1;
        p->scale_dtype = row->format == MOE_FORMAT_NVFP4 ? MOE_E4M3FN : MOE_E8M0;
        p->grain = MOEI_GRAIN_BLOCKS;
        p->block_n = 1;
        p->block_k = row->format == MOE_FORMAT_NVFP4 ? 16 : 32;
        return MOE_OK;
    case MOEI_KIND_BLOCK:
        p->grain = MOEI_GRAIN_BLOCKS;
        p->block_n = p->block_k = BLOCK;
        p->format = grained_format(p->element, p->grain);
        break;
    case MOEI_KIND_WORDS:
        MOE_TRY(settle_words(c, &scales, says, p));
        break;
    case MOEI_KIND_BY_SCALES:
        MOE_TRY(settle_by_scales(c, &scales, g, says, p));
        break;
    }
    p->scale_dtype = scales.t.dtype;
    MOE_REQUIRE(p->block_n != BLOCK || scales.t.dtype != MOE_F16, MOE_E_UNSUPPORTED,
                "%s: %s: \"%s\" is f16, block scales are f32, bf16 or e8m0", c->call, c->label,
                shown(scales.name).text);
    return MOE_OK;
}

// ---- each tensor -------------------------------------------------------------------------------

static moe_status check_values(const struct checking *c, const struct subject *of, int64_t n,
                               const struct moei_product *p)
{
    const moe_tensor *t = &of->t;
    const struct moei_dialect *row = c->stack->dialect;
    const int bits = moe_dtype_bits(p->element);
    if (row->role[VALUES] == MOEI_SUFFIX_BLOCKS) {
        char want[96];
        (void)snprintf(want, sizeof want, "[%" PRId64 ", %" PRId64 ", 16]", n, p->k / 32);
        const int lead = c->stack->stacked && (c->stack->count > 1 || t->ndim == 4) ? 1 : 0;
        const bool fits_in = t->ndim == lead + 3 && t->shape[lead] == n &&
                             t->shape[lead + 1] == p->k / 32 && t->shape[lead + 2] == 16 &&
                             (lead == 0 || t->shape[0] == c->stack->count) && p->k % 32 == 0;
        return fits_in ? MOE_OK : fail_dims(c, of, want);
    }
    if (row->kind == MOEI_KIND_WORDS) {
        return require_dims(c, of, n, moei_i64_ceil_div(p->k, 32 / row->bits));
    }
    const int64_t columns = bits == 4 ? moei_i64_ceil_div(p->k, 2) : p->k;
    return c->stack->transposed ? require_dims(c, of, columns, n) : require_dims(c, of, n, columns);
}

static moe_status check_scales(const struct checking *c, const struct subject *of, int g, int64_t n,
                               const struct moei_product *p)
{
    int64_t rows = n;
    MOE_REQUIRE(c->stack->dialect->kind == MOEI_KIND_FIXED || of->t.dtype == p->scale_dtype,
                MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, other experts have %s", c->call, c->label,
                shown(of->name).text, moe_dtype_name(of->t.dtype), moe_dtype_name(p->scale_dtype));
    switch (p->grain) {
    case MOEI_GRAIN_TENSOR:
        return require_dims(c, of, p->scale_parts, 1);
    case MOEI_GRAIN_CHANNEL:
        return require_dims(c, of, n, 1);
    default:
        if (p->block_n > 1) {
            MOE_TRY(block_rows(c, g, n, of->name, &rows));
        }
        return require_dims(c, of, rows, moei_i64_ceil_div(p->k, p->block_k));
    }
}

static int64_t load_integer(const moe_tensor *t, int64_t i)
{
    const unsigned char *at = (const unsigned char *)t->data + t->byte_offset;
    int64_t wide;
    int32_t narrow;
    if (t->dtype == MOE_I64) {
        memcpy(&wide, at + (size_t)i * sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, at + (size_t)i * sizeof narrow, sizeof narrow);
    return narrow;
}

// The unpacked shape must be ours, and columns must not be reordered.
static moe_status check_integers(const struct checking *c, const struct moei_piece *piece,
                                 int64_t n, const struct moei_product *p)
{
    const struct moei_dialect *row = c->stack->dialect;
    struct subject of;
    MOE_TRY(view(c, piece, row->role[SHAPE], &of));
    if (row->role[SHAPE] != 0 && of.name != NULL && !c->stack->stacked) {
        MOE_REQUIRE((of.t.dtype == MOE_I64 || of.t.dtype == MOE_I32) && of.t.ndim == 1 &&
                        of.t.shape[0] == 2,
                    MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, expected int64 [2]", c->call, c->label,
                    shown(of.name).text, moei_tensor_describe(&of.t).text);
        const int64_t rows = load_integer(&of.t, 0);
        const int64_t columns = load_integer(&of.t, 1);
        MOE_REQUIRE(rows == n && columns == p->k, MOE_E_MALFORMED,
                    "%s: %s: \"%s\" says [%" PRId64 ", %" PRId64 "], expected [%" PRId64
                    ", %" PRId64 "]",
                    c->call, c->label, shown(of.name).text, rows, columns, n, p->k);
    }
    MOE_TRY(view(c, piece, row->role[INDEX], &of));
    if (row->role[INDEX] != 0 && of.name != NULL) {
        MOE_REQUIRE((of.t.dtype == MOE_I64 || of.t.dtype == MOE_I32) && of.t.ndim == 1 &&
                        of.t.shape[0] == p->k && p->group > 0,
                    MOE_E_UNSUPPORTED, "%s: %s: \"%s\" is %s, expected int32 [%" PRId64 "]",
                    c->call, c->label, shown(of.name).text, moei_tensor_describe(&of.t).text, p->k);
        for (int64_t i = 0; i < p->k; i++) {
            MOE_REQUIRE(load_integer(&of.t, i) == i / p->group, MOE_E_UNSUPPORTED,
                        "%s: %s: \"%s\" puts column %" PRId64 " into group %" PRId64
                        ", only %" PRId64 " is known: reordered columns",
                        c->call, c->label, shown(of.name).text, i, load_integer(&of.t, i),
                        i / p->group);
        }
    }
    return MOE_OK;
}

// Bias, zero points, second-level and input scales: all experts have them, or none.
static moe_status check_optional(const struct checking *c, const struct moei_piece *piece,
                                 int suffix, bool wanted, uint32_t dtypes, int64_t d0, int64_t d1)
{
    struct subject of;
    if (suffix == 0) {
        return MOE_OK;
    }
    MOE_TRY(view(c, piece, suffix, &of));
    if (!wanted && of.name == NULL) {
        return MOE_OK;
    }
    char text[200];
    MOE_REQUIRE(wanted && of.name != NULL, wanted ? MOE_E_NOT_FOUND : MOE_E_MALFORMED,
                "%s: %s: \"%s\" has %s %s, the other %s (or the configuration) have%s", c->call,
                c->label, shown(describe_piece(c, piece, text)).text, wanted ? "no" : "a",
                suffix_names[suffix], c->stack->what, wanted ? " one" : " none");
    MOE_REQUIRE((dtypes >> of.t.dtype & 1) != 0, MOE_E_MALFORMED,
                "%s: %s: \"%s\" is %s, which %s "
                "is not",
                c->call, c->label, shown(of.name).text, moe_dtype_name(of.t.dtype),
                suffix_names[suffix]);
    return require_dims(c, &of, d0, d1);
}

static moe_status check_piece(const struct checking *c, const struct moei_piece *piece, int g,
                              int64_t n, const struct moei_product *p)
{
    static const uint32_t floats = 1u << MOE_F32 | 1u << MOE_BF16 | 1u << MOE_F16;
    const struct moei_dialect *row = c->stack->dialect;
    struct subject of;
    MOE_TRY(view(c, piece, row->role[VALUES], &of));
    MOE_REQUIRE(row->kind == MOEI_KIND_WORDS || row->kind == MOEI_KIND_FIXED ||
                    of.t.dtype == p->element,
                MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, other experts have %s", c->call, c->label,
                shown(of.name).text, moe_dtype_name(of.t.dtype), moe_dtype_name(p->element));
    MOE_TRY(check_values(c, &of, n, p));
    if (row->role[SCALES] != 0) {
        MOE_TRY(view(c, piece, row->role[SCALES], &of));
        MOE_TRY(check_scales(c, &of, g, n, p));
    }
    if (row->role[SCALE2] != 0) {
        MOE_TRY(view(c, piece, row->role[SCALE2], &of));
        const bool two = g == 0 && !c->stack->apart && c->stack->gate_up != MOE_GATE_UP_UNSET &&
                         same_dims(c->stack, &of.t, 2, 1);
        MOE_REQUIRE(of.t.dtype == MOE_F32, MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, expected f32",
                    c->call, c->label, shown(of.name).text, moe_dtype_name(of.t.dtype));
        MOE_TRY(require_dims(c, &of, two ? 2 : 1, 1));
    }
    const int64_t groups = p->group > 0 ? moei_i64_ceil_div(p->k, p->group) : 1;
    MOE_TRY(check_optional(c, piece, row->role[ACT], p->act, 1u << MOE_F32, 1, 1));
    MOE_TRY(check_optional(c, piece, row->role[ZEROS], p->zeros, 1u << MOE_I32,
                           moei_i64_ceil_div(n, 8), groups));
    MOE_TRY(check_optional(c, piece, MOEI_SUFFIX_BIAS, p->bias, floats, n, 1));
    return check_integers(c, piece, n, p);
}

// ---- the configuration -------------------------------------------------------------------------

static bool allows(const struct moei_dialect *row, const struct moei_quant_says *says)
{
    const char *at = row->methods;
    while (at != NULL) {
        const char *end = strchr(at, ';');
        const size_t size = end == NULL ? strlen(at) : (size_t)(end - at);
        const char *colon = memchr(at, ':', size);
        const size_t method = colon == NULL ? size : (size_t)(colon - at);
        const size_t format = colon == NULL ? 0 : size - method - 1;
        if (strlen(says->method) == method && strncmp(says->method, at, method) == 0 &&
            (colon == NULL || says->format[0] == '\0' ||
             (strlen(says->format) == format && strncmp(says->format, colon + 1, format) == 0))) {
            return true;
        }
        at = end == NULL ? NULL : end + 1;
    }
    return false;
}

static moe_status check_says(const struct checking *c, const struct moei_quant_says *says)
{
    const struct moei_dialect *row = c->stack->dialect;
    if (!says->given) {
        return MOE_OK;
    }
    MOE_REQUIRE(!says->excluded || row->methods == NULL, MOE_E_MALFORMED,
                "%s: %s: quantization_config leaves the %s unquantised (\"%s\"), the tensors are "
                "%s",
                c->call, c->label, c->stack->what, says->entry.text, row->name);
    MOE_REQUIRE(says->excluded || allows(row, says), MOE_E_MALFORMED,
                "%s: %s: quantization_config says %s%s%s of the %s, the tensors are %s", c->call,
                c->label, shown(says->method).text, says->format[0] != '\0' ? ":" : "",
                shown(says->format).text, c->stack->what, row->name);
    MOE_REQUIRE(row->kind != MOEI_KIND_BLOCK || says->block[0] == 0 ||
                    (says->block[0] == BLOCK && says->block[1] == BLOCK),
                MOE_E_UNSUPPORTED,
                "%s: %s: weight_block_size is [%" PRId64 ", %" PRId64 "], only [%d, %d] is known",
                c->call, c->label, says->block[0], says->block[1], BLOCK, BLOCK);
    return MOE_OK;
}

moe_status moei_stack_check(const moe_checkpoint_layer *layer, const char *call,
                            const struct moei_quant_says *says, struct moei_stack *stack)
{
    const struct checking c = {layer, call, moei_checkpoint_label(layer->checkpoint), stack};
    const bool shared = stack == &layer->shared;
    const moe_layer_desc *d = &layer->desc;
    const int64_t inter = shared ? d->shared.inter : d->inter;
    const int64_t width = shared || d->latent == 0 ? d->hidden : d->latent;
    const bool gated = moe_activation_gated(shared ? d->shared.activation : d->activation) != 0;
    const int64_t k[2] = {width, inter};
    MOE_TRY(settle_projections(&c, gated));
    MOE_TRY(check_present(&c));
    MOE_TRY(find_dialect(&c, k));
    MOE_TRY(check_says(&c, says));
    // Experts with tensors of their own are [out, in], gate first, whatever the class's stacks are.
    stack->transposed =
        stack->stacked && stack->transposed &&
        (stack->dialect->kind == MOEI_KIND_FLOAT || stack->dialect->kind == MOEI_KIND_BY_SCALES);
    stack->gate_up = stack->apart ? MOE_GATE_FIRST : stack->gate_up;
    for (int g = 0; g < 2; g++) {
        enum moei_projection parts[2];
        const int n = moei_stack_parts(stack, g, parts);
        struct moei_product *p = &stack->gemm[g];
        p->k = k[g];
        p->bias = (shared ? d->shared.gemm[g].bias : d->gemm[g].bias) != 0;
        p->rows[0] = g == 1 ? width : gated && !stack->apart ? 2 * inter : inter;
        p->rows[1] = n > 1 ? inter : 0;
        MOE_TRY(settle_product(&c, g, says, p));
        for (int e = 0; e < num_pieces(stack); e++) {
            for (int i = 0; i < n; i++) {
                MOE_TRY(check_piece(&c, moei_stack_piece(stack, e, parts[i]), g, p->rows[i], p));
            }
        }
    }
    return MOE_OK;
}
