// SPDX-License-Identifier: Apache-2.0
// From the disassembler's text to an array of instructions with resolved operands. LLVM is the
// decoder: bits of encodings appear nowhere in the emulator.
//   \tNAME OPERAND, OPERAND MODIFIER MODIFIER  // ADDRESS: WORD WORD
#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "emulator/floats.h"

// ---- rows
#define EMU_DECLARE_BASE(family) extern const emu_rows emu_rows_##family##_base;
#define EMU_DECLARE_FMA(family)  extern const emu_rows emu_rows_##family##_fma;
EMU_FAMILIES(EMU_DECLARE_BASE)
#ifdef EMU_HAVE_FMA
EMU_FAMILIES(EMU_DECLARE_FMA)
#endif

static const emu_row **sorted;
static size_t num_sorted;
static pthread_once_t rows_once = PTHREAD_ONCE_INIT;

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const emu_row *const *)a)->name, (*(const emu_row *const *)b)->name);
}

static void gather_rows(void)
{
#define EMU_BASE_ROWS(family) &emu_rows_##family##_base,
    const emu_rows *families[] = {EMU_FAMILIES(EMU_BASE_ROWS)};
#ifdef EMU_HAVE_FMA
#define EMU_FMA_ROWS(family) &emu_rows_##family##_fma,
    const emu_rows *wide[] = {EMU_FAMILIES(EMU_FMA_ROWS)};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        getenv("MOE_EMULATOR_BASE") == NULL) {
        memcpy(families, wide, sizeof families);
    }
#endif
    size_t n = 0;
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
        n += families[f]->num;
    }
    sorted = malloc(n * sizeof *sorted);
    if (sorted == NULL) {
        return;
    }
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
        for (size_t i = 0; i < families[f]->num; i++) {
            sorted[num_sorted++] = &families[f]->row[i];
        }
    }
    qsort(sorted, num_sorted, sizeof *sorted, by_name);
}

size_t emu_num_rows(void)
{
    (void)pthread_once(&rows_once, gather_rows);
    return num_sorted;
}

const emu_row *emu_row_at(size_t i)
{
    return i < emu_num_rows() ? sorted[i] : NULL;
}

const emu_row *emu_find_row(const char *name, emu_arch arch)
{
    const emu_row key = {.name = name};
    const emu_row *of = &key;
    const size_t n = emu_num_rows();
    const emu_row **found = n ? bsearch(&of, sorted, n, sizeof *sorted, by_name) : NULL;
    return found != NULL && ((*found)->archs & (unsigned)arch) ? *found : NULL;
}

// ---- operands
typedef struct parse {
    emu_inst *in;
    const char *name; // with its suffix
    bool ok;
} parse;

static void set_plain(emu_operand *o)
{
    o->plain =
        o->kind == EMU_VECTOR && o->sel == EMU_DWORD && o->keep == UINT32_MAX && o->flip == 0;
}

static void set_constant(emu_operand *o, emu_type type, uint64_t v)
{
    (void)type;
    o->kind = EMU_CONST;
    o->words = 2;
    o->value[0] = (uint32_t)v;
    o->value[1] = (uint32_t)(v >> 32);
}

static void float_constant(emu_operand *o, emu_type type, double v)
{
    // 1 / (2 pi), as the hardware has it.
    const bool inverse = v > 0.1591 && v < 0.1592;
    switch (type) {
    case EMU_TYPE_F16:
    case EMU_TYPE_P16:
    case EMU_TYPE_U16:
        set_constant(o, type, inverse ? 0x3118u : moei_f32_to_f16((float)v));
        break;
    case EMU_TYPE_F64:
    case EMU_TYPE_U64:
    case EMU_TYPE_I64:
        set_constant(o, type, inverse ? 0x3FC45F306DC9C882u : emu_bits64(v));
        break;
    default:
        set_constant(o, type, inverse ? 0x3E22F983u : emu_bits((float)v));
        break;
    }
}

/// "v[4:7]", "s3", "a0": the register and how many.
static bool parse_register(emu_operand *o, const char *t)
{
    const char kind = t[0];
    if ((kind != 'v' && kind != 's' && kind != 'a') ||
        (t[1] != '[' && !isdigit((unsigned char)t[1]))) {
        return false;
    }
    unsigned first = 0;
    unsigned last = 0;
    if (t[1] == '[') {
        if (sscanf(t + 2, "%u:%u", &first, &last) != 2 || last < first) {
            return false;
        }
    } else {
        first = last = (unsigned)strtoul(t + 1, NULL, 10);
    }
    o->kind = kind == 's' ? EMU_SCALAR : EMU_VECTOR;
    o->reg = (uint16_t)(first + (kind == 'a' ? EMU_AGPR0 : 0));
    o->words = (uint8_t)(last - first + 1);
    const unsigned end = o->reg + o->words;
    return kind == 's' ? end <= EMU_SGPRS - 22 : end <= (kind == 'v' ? EMU_AGPR0 : EMU_VGPRS);
}

static const struct named {
    const char *name;
    uint8_t reg, words;
} named_registers[] = {
    {"vcc", EMU_VCC, 2},         {"vcc_lo", EMU_VCC, 1},   {"vcc_hi", EMU_VCC + 1, 1},
    {"exec", EMU_EXEC, 2},       {"exec_lo", EMU_EXEC, 1}, {"exec_hi", EMU_EXEC + 1, 1},
    {"m0", EMU_M0, 1},           {"flat_scratch", 102, 2}, {"flat_scratch_lo", 102, 1},
    {"flat_scratch_hi", 103, 1}, {"xnack_mask", 104, 2}};

static bool parse_named(emu_operand *o, const char *t)
{
    for (size_t i = 0; i < sizeof named_registers / sizeof named_registers[0]; i++) {
        if (strcmp(t, named_registers[i].name) == 0) {
            o->kind = EMU_SCALAR;
            o->reg = named_registers[i].reg;
            o->words = named_registers[i].words;
            return true;
        }
    }
    if (strcmp(t, "src_scc") == 0) {
        o->kind = EMU_SCC;
        o->words = 1;
        return true;
    }
    const bool shared = strncmp(t, "src_shared_base", 15) == 0;
    if (shared || strncmp(t, "src_private_base", 16) == 0) {
        const uint32_t high = shared ? EMU_SHARED_APERTURE : EMU_PRIVATE_APERTURE;
        set_constant(o, EMU_TYPE_U32, (uint64_t)high << 32);
        return true;
    }
    return false;
}

/// "sext(...)", "-...", "|...|", "abs(...)", "neg(...)" around a register or a number.
static bool parse_operand(emu_operand *o, char *t, emu_type type)
{
    const uint32_t sign = type == EMU_TYPE_F16 || type == EMU_TYPE_U16 ? 0x8000u : 0x80000000u;
    memset(o, 0, sizeof *o);
    o->keep = UINT32_MAX;
    if (strcmp(t, "off") == 0) {
        return true;
    }
    size_t n = strlen(t);
    if (n > 6 && strncmp(t, "sext(", 5) == 0 && t[n - 1] == ')') {
        o->sext = 1;
        t[n - 1] = 0;
        t += 5;
    }
    const bool number =
        isdigit((unsigned char)t[0]) || (t[0] == '-' && isdigit((unsigned char)t[1]));
    if (!number && t[0] == '-') {
        o->flip = sign;
        t++;
    }
    n = strlen(t);
    if (n > 2 && t[0] == '|' && t[n - 1] == '|') {
        o->keep = ~sign;
        t[n - 1] = 0;
        t++;
    }
    if (parse_register(o, t) || parse_named(o, t)) {
        return true;
    }
    char *end;
    if (strchr(t, '.') != NULL && strncmp(t, "0x", 2) != 0) {
        const double v = strtod(t, &end);
        float_constant(o, type, v);
        return *end == 0;
    }
    const bool hex = strncmp(t, "0x", 2) == 0 || strncmp(t, "-0x", 3) == 0;
    const int64_t v = strtoll(t, &end, 0);
    if (*end != 0 || end == t) {
        return false;
    }
    o->literal = hex;
    if (hex && type == EMU_TYPE_F64) {
        set_constant(o, type, (uint64_t)(uint32_t)v << 32);
    } else if (hex && type == EMU_TYPE_I64) {
        set_constant(o, type, (uint64_t)(int64_t)(int32_t)(uint32_t)v);
    } else {
        set_constant(o, type, (uint64_t)v);
    }
    return true;
}

// ---- modifiers
static unsigned parse_bits(const char *v)
{
    unsigned bits = 0;
    for (unsigned k = 0; *v && *v != ']'; v++) {
        if (*v == '0' || *v == '1') {
            bits |= (unsigned)(*v - '0') << k++;
        }
    }
    return bits;
}

static uint8_t parse_select(const char *v)
{
    static const char *const names[] = {"DWORD",  "BYTE_0", "BYTE_1", "BYTE_2",
                                        "BYTE_3", "WORD_0", "WORD_1"};
    for (uint8_t i = 0; i < 7; i++) {
        if (strcmp(v, names[i]) == 0) {
            return i;
        }
    }
    return EMU_DWORD;
}

/// The offset of ds_swizzle_b32, as a number.
static bool parse_swizzle(const char *v, int32_t *out)
{
    int a;
    int b;
    int c;
    int d;
    char mask[6];
    if (sscanf(v, "swizzle(SWAP,%d)", &a) == 1) {
        *out = a << 10 | 31;
    } else if (sscanf(v, "swizzle(REVERSE,%d)", &a) == 1) {
        *out = (a - 1) << 10 | 31;
    } else if (sscanf(v, "swizzle(BROADCAST,%d,%d)", &a, &b) == 2) {
        *out = b << 5 | (32 - a);
    } else if (sscanf(v, "swizzle(QUAD_PERM,%d,%d,%d,%d)", &a, &b, &c, &d) == 4) {
        *out = 0x8000 | a | b << 2 | c << 4 | d << 6;
    } else if (sscanf(v, "swizzle(BITMASK_PERM,\"%5[01pi]\")", mask) == 1 && strlen(mask) == 5) {
        int and = 0;
        int or = 0;
        int xor = 0;
        for (int i = 0; i < 5; i++) {
            const int bit = 1 << (4 - i);
            and |= mask[i] == 'p' || mask[i] == 'i' ? bit : 0;
            or |= mask[i] == '1' ? bit : 0;
            xor |= mask[i] == 'i' ? bit : 0;
        }
        *out = and | or << 5 | xor << 10;
    } else {
        char *end;
        *out = (int32_t)strtol(v, &end, 0);
        return end != v && *end == 0;
    }
    return true;
}

/// From which lane each lane reads; EMU_LANES where there is none.
static bool fill_dpp(emu_inst *in, const char *name, const char *v)
{
    const int n = v != NULL ? atoi(v) : 0;
    in->dpp = 1;
    for (int l = 0; l < EMU_LANES; l++) {
        const int row = l & ~15;
        const int i = l & 15;
        int from = -1;
        if (strcmp(name, "quad_perm") == 0) {
            from = (l & ~3) + (v[1 + 2 * (l & 3)] - '0');
        } else if (strcmp(name, "row_shl") == 0) {
            from = i + n < 16 ? l + n : -1;
        } else if (strcmp(name, "row_shr") == 0) {
            from = i >= n ? l - n : -1;
        } else if (strcmp(name, "row_ror") == 0) {
            from = row + ((i - n) & 15);
        } else if (strcmp(name, "row_mirror") == 0) {
            from = row + 15 - i;
        } else if (strcmp(name, "row_half_mirror") == 0) {
            from = (l & ~7) + 7 - (l & 7);
        } else if (strcmp(name, "row_newbcast") == 0) {
            from = row + n;
        } else if (strcmp(name, "row_bcast") == 0) {
            from = n == 15 ? (row == 0 ? -1 : row - 1) : (l < 32 ? -1 : 31);
        } else if (strcmp(name, "wave_shl") == 0) {
            from = l + 1 < EMU_LANES ? l + 1 : -1;
        } else if (strcmp(name, "wave_shr") == 0) {
            from = l - 1;
        } else if (strcmp(name, "wave_rol") == 0) {
            from = (l + 1) & 63;
        } else if (strcmp(name, "wave_ror") == 0) {
            from = (l - 1) & 63;
        } else {
            return false;
        }
        in->dpp_from[l] = (uint8_t)(from < 0 ? EMU_LANES : from);
    }
    return true;
}

/// A word after the operands. False: not known.
static bool parse_modifier(emu_inst *in, char *word)
{
    char *v = strchr(word, ':');
    if (v != NULL) {
        *v++ = 0;
    }
    static const char *const ignored[] = {"sc1", "nt",       "glc",      "slc",
                                          "gds", "row_mask", "bank_mask"};
    if (v == NULL) {
        if (strcmp(word, "clamp") == 0) {
            in->clamp = 1;
            return true;
        }
        if (strcmp(word, "sc0") == 0) {
            in->sc0 = 1;
            return true;
        }
        if (strcmp(word, "row_mirror") == 0 || strcmp(word, "row_half_mirror") == 0) {
            return fill_dpp(in, word, NULL);
        }
        for (size_t i = 0; i < 4; i++) {
            if (strcmp(word, ignored[i]) == 0) {
                return true;
            }
        }
        return false;
    }
    const long number = strtol(v, NULL, 0);
    if (strcmp(word, "offset") == 0) {
        return parse_swizzle(v, &in->offset);
    }
#define FIELD(text, field, value)                                                                  \
    if (strcmp(word, text) == 0) {                                                                 \
        in->field = (value);                                                                       \
        return true;                                                                               \
    }
    FIELD("offset0", offset0, (int32_t)number)
    FIELD("offset1", offset1, (int32_t)number)
    FIELD("op_sel", op_sel, (uint8_t)parse_bits(v))
    FIELD("op_sel_hi", op_sel_hi, (uint8_t)parse_bits(v))
    FIELD("neg_lo", neg_lo, (uint8_t)parse_bits(v))
    FIELD("neg_hi", neg_hi, (uint8_t)parse_bits(v))
    FIELD("mul", omod, number == 2 ? 1 : 2)
    FIELD("div", omod, 3)
    FIELD("cbsz", cbsz, (uint8_t)number)
    FIELD("blgp", blgp, (uint8_t)number)
    FIELD("abid", abid, (uint8_t)number)
    FIELD("bitop3", bitop3, (uint8_t)number)
    FIELD("row_mask", row_mask, (uint8_t)number)
    FIELD("bank_mask", bank_mask, (uint8_t)number)
    FIELD("bound_ctrl", bound_ctrl, 1)
    if (strcmp(word, "dst_sel") == 0 || strcmp(word, "dst_unused") == 0 ||
        strcmp(word, "src0_sel") == 0 || strcmp(word, "src1_sel") == 0) {
        in->sdwa = 1;
        FIELD("dst_sel", dst_sel, parse_select(v))
        FIELD("dst_unused", dst_unused,
              strcmp(v, "UNUSED_SEXT") == 0       ? EMU_SEXT
              : strcmp(v, "UNUSED_PRESERVE") == 0 ? EMU_PRESERVE
                                                  : EMU_PAD)
        // Sources follow the result; a carry or a mask may lie between: see place_selects.
        FIELD("src0_sel", offset0, parse_select(v))
        FIELD("src1_sel", offset1, parse_select(v))
    }
    return fill_dpp(in, word, v);
#undef FIELD
}

/// "hwreg(HW_REG_MODE, 4, 2)": bits of MODE. Other registers are not modelled.
static bool parse_hwreg(emu_inst *in, const char *t)
{
    int first = 0;
    int bits = 32;
    if (strncmp(t, "hwreg(HW_REG_MODE", 17) != 0) {
        return false;
    }
    (void)sscanf(t + 17, ", %d, %d", &first, &bits);
    in->offset0 = first;
    in->offset1 = bits;
    return first >= 0 && bits > 0 && first + bits <= 32;
}

/// "gpr_idx(SRC0,DST)".
static void parse_index(emu_inst *in, const char *t)
{
    in->offset0 = (strstr(t, "SRC0") ? 1 : 0) | (strstr(t, "SRC1") ? 2 : 0) |
                  (strstr(t, "SRC2") ? 4 : 0) | (strstr(t, "DST") ? 8 : 0);
}

static void place_selects(emu_inst *in)
{
    // v_addc_co_u32 and its like have a mask of lanes between the result and the sources.
    const int first = in->num > 2 && strstr(in->row->name, "_co_") != NULL ? 2 : 1;
    const uint8_t sel[2] = {(uint8_t)in->offset0, (uint8_t)in->offset1};
    for (int k = 0; k < 2 && first + k < in->num; k++) {
        in->o[first + k].sel = sel[k];
    }
}

/// Splits at commas that no bracket encloses; the last part may have modifiers behind a blank.
static bool parse_operands(emu_inst *in, char *t)
{
    const emu_type type = (emu_type)in->row->type;
    while (*t == ' ') {
        t++;
    }
    if (*t == 0) {
        return true;
    }
    for (;;) {
        int depth = 0;
        char *end = t;
        while (*end && (depth > 0 || (*end != ',' && *end != ' '))) {
            depth += *end == '[' || *end == '(' ? 1 : *end == ']' || *end == ')' ? -1 : 0;
            end++;
        }
        const char stop = *end;
        *end = 0;
        if (strncmp(t, "hwreg(", 6) == 0) {
            if (!parse_hwreg(in, t)) {
                return false;
            }
        } else if (strncmp(t, "gpr_idx(", 8) == 0) {
            parse_index(in, t);
        } else {
            if (in->num == EMU_MAX_OPERANDS || !parse_operand(&in->o[in->num], t, type)) {
                return false;
            }
            in->num++;
        }
        t = end + (stop != 0);
        while (*t == ' ') {
            t++;
        }
        if (stop != ',') {
            break;
        }
    }
    while (*t) {
        int depth = 0;
        char *end = t;
        while (*end && (depth > 0 || *end != ' ')) {
            depth += *end == '[' || *end == '(' ? 1 : *end == ']' || *end == ')' ? -1 : 0;
            end++;
        }
        const char stop = *end;
        *end = 0;
        if (!parse_modifier(in, t)) {
            return false;
        }
        t = end + (stop != 0);
        while (*t == ' ') {
            t++;
        }
    }
    return true;
}

// Words that begin like modifiers where operands would be.
static bool only_modifiers(const char *name)
{
    return strncmp(name, "buffer_", 7) == 0;
}

static void strip_suffix(char *name)
{
    static const char *const suffixes[] = {"_e32", "_e64", "_sdwa", "_dpp"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < 4; i++) {
        const size_t m = strlen(suffixes[i]);
        if (n > m && strcmp(name + n - m, suffixes[i]) == 0) {
            name[n - m] = 0;
            return;
        }
    }
}

static void run_unknown(emu_wave *w, const emu_inst *in)
{
    (void)in;
    emu_fail(w, -1, "the emulator does not know this instruction");
}

static void run_past_end(emu_wave *w, const emu_inst *in)
{
    (void)in;
    emu_fail(w, -1, "ran past the end of the kernel");
}

/// One line, without its comment.
static void parse_line(emu_inst *in, char *line, emu_arch arch)
{
    char name[80];
    size_t n = 0;
    while (line[n] && line[n] != ' ' && n + 1 < sizeof name) {
        name[n] = line[n];
        n++;
    }
    name[n] = 0;
    strip_suffix(name);
    in->run = run_unknown;
    in->row_mask = in->bank_mask = 15;
    in->row = emu_find_row(name, arch);
    if (in->row == NULL) {
        return;
    }
    const bool packed = strncmp(name, "v_pk_", 5) == 0;
    in->op_sel_hi = packed ? 7 : 0;
    if (in->row->type == EMU_TYPE_TEXT || only_modifiers(name)) {
        in->run = in->row->run;
        return;
    }
    if (!parse_operands(in, line + n)) {
        return;
    }
    if (in->sdwa) {
        place_selects(in);
    }
    in->special = in->sdwa || in->dpp;
    for (int k = 0; k < in->num; k++) {
        set_plain(&in->o[k]);
        if (in->dpp && k == 1) {
            in->o[k].plain = 0;
        }
        const emu_type type = (emu_type)in->row->type;
        if (k > 0 && (type == EMU_TYPE_F16 || type == EMU_TYPE_U16) &&
            ((unsigned)in->op_sel >> (k - 1) & 1u)) {
            in->o[k].plain = 0;
        }
    }
    in->run = in->row->run;
}

/// Address and bytes, from the comment: "// 000000004510: 20040085 0000FFFF <label>".
static bool parse_comment(const char *c, uint32_t *address, uint32_t *bytes)
{
    unsigned long at;
    int n = 0;
    if (sscanf(c, "// %lx:%n", &at, &n) < 1 || n == 0) {
        return false;
    }
    c += n;
    uint32_t words = 0;
    unsigned word;
    int used;
    while (sscanf(c, " %8x%n", &word, &used) == 1) {
        words++;
        c += used;
    }
    *address = (uint32_t)at;
    *bytes = 4 * words;
    return words > 0;
}

static void resolve_branches(emu_code *code)
{
    for (size_t i = 0; i < code->num; i++) {
        emu_inst *in = &code->inst[i];
        if (in->row == NULL || (strncmp(in->row->name, "s_branch", 8) != 0 &&
                                strncmp(in->row->name, "s_cbranch", 9) != 0)) {
            continue;
        }
        const int32_t distance = 4 + 4 * (int32_t)(int16_t)in->o[0].value[0];
        const int64_t at = (int64_t)in->address + distance - code->first;
        const bool inside = at >= 0 && at < code->bytes && at % 4 == 0;
        const uint32_t target = inside ? code->index[at / 4] : UINT32_MAX;
        if (target == UINT32_MAX) {
            in->run = run_unknown;
        }
        in->target = target;
    }
}

emu_code *emu_decode(char *text, emu_arch arch)
{
    size_t lines = 0;
    for (const char *p = text; *p; p++) {
        lines += *p == '\n';
    }
    emu_code *code = calloc(1, sizeof *code);
    if (code == NULL) {
        free(text);
        return NULL;
    }
    code->text = text;
    code->inst = calloc(lines + 2, sizeof *code->inst);
    if (code->inst == NULL) {
        emu_code_free(code);
        return NULL;
    }
    uint32_t end = 0;
    for (char *line = text; *line;) {
        char *next = strchr(line, '\n');
        next = next != NULL ? next : line + strlen(line);
        const bool last = *next == 0;
        *next = 0;
        char *comment = strstr(line, "// ");
        uint32_t address;
        uint32_t bytes;
        if (line[0] == '\t' && comment != NULL && parse_comment(comment, &address, &bytes)) {
            emu_inst *in = &code->inst[code->num];
            char *blank = comment;
            while (blank > line && (blank[-1] == ' ' || blank[-1] == '\t')) {
                blank--;
            }
            *blank = 0;
            char work[512];
            (void)snprintf(work, sizeof work, "%s", line + 1);
            in->address = address;
            in->text = line + 1;
            parse_line(in, work, arch);
            code->first = code->num == 0 ? address : code->first;
            end = address + bytes;
            code->num++;
        }
        line = last ? next : next + 1;
    }
    code->inst[code->num].run = run_past_end;
    code->inst[code->num].text = "";
    code->bytes = code->num ? end - code->first : 0;
    code->index = malloc((code->bytes / 4 + 1) * sizeof *code->index);
    if (code->index == NULL) {
        emu_code_free(code);
        return NULL;
    }
    memset(code->index, 0xFF, (code->bytes / 4 + 1) * sizeof *code->index);
    for (size_t i = 0; i < code->num; i++) {
        code->index[(code->inst[i].address - code->first) / 4] = (uint32_t)i;
    }
    resolve_branches(code);
    return code;
}

const emu_inst *emu_find_unknown(const emu_code *code, uint32_t begin, uint32_t end)
{
    const uint32_t offset = begin - code->first;
    const bool inside = begin >= code->first && offset < code->bytes;
    for (size_t i = inside ? code->index[offset / 4] : code->num; i < code->num; i++) {
        const emu_inst *in = &code->inst[i];
        if (in->address >= end) {
            break;
        }
        if (in->run == run_unknown) {
            return in;
        }
    }
    return NULL;
}

void emu_code_free(emu_code *code)
{
    if (code != NULL) {
        free(code->inst);
        free(code->index);
        free(code->text);
        free(code);
    }
}
