// SPDX-License-Identifier: Apache-2.0
// Every row of the emulator's instruction set against a scalar statement of it that shares nothing
// with the emulator. A case is code in assembly and what it leaves behind, for each lane; clang
// assembles one file of kernels, a kernel for each case, and the emulator runs it on random and on
// special operands with some lanes inactive. A row that no case executes is a failure.
//
//   test_instructions gfx942|gfx950 FOLDER [CASE]
//
// Cases are in cases/*.def:
//   T(name, types, code, statements)
// Each lane has a record of sixteen words: a[0 .. 3] in v[4:7], b in v[8:11], c in v[12:15], and d,
// what the result's registers v[16:19] hold before. Lane 0's record also lies in s[32:47]. v0 and
// v28 are the lane's offset in memory and in LDS (64 bytes each, private memory as well), s[4:5]
// the memory of the records, s[6:7] that of the results, v[24:25] and v[26:27] the lane's addresses
// in these. vcc and s[22:23] are a mask of lanes, e->in_mask. `types` has a letter for each of a,
// b, c, d (the last one repeats; fill() has them all): u integers, s small ones, p permutations, f
// floats, n normal floats, h pairs of f16, b pairs of bf16, d doubles, D doubles without NaN; then
// '>' and how results are compared and what else is written: f, h, B, d (all NaN are alike), m and
// V (*bit of each lane goes to s[20:21] or vcc), ? (s[20:21] is not looked at), s (the scalars
// below, not the lanes), x (all lanes are active). What is left behind is r: 0 .. 3 v[16:19]; 4, 5
// s[20:21]; 6, 7 vcc; 8 .. 15 the result's memory from byte 32 on; 16 .. 19 s[44:47]; 20 SCC; 21,
// 22 EXEC; 24 .. 27 v[4:7].
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator/assemble.h"
#include "emulator/expect.h"

enum { WORDS_IN = 16, WORDS_OUT = 32, GROUPS = 24, MAX_CASES = 2048, POISON = 0x5A5A5A5A };

typedef struct test_case {
    char name[48];
    const char *types;
    char code[640];
    expectation expect;
    emu_arch archs;
    int p, q; // of generated cases
} test_case;

static test_case cases[MAX_CASES];
static int num_cases;
static emu_arch arch;

#define DEFINE(name, ...)                                                                          \
    static void expect_##name(const uint32_t *a, const uint32_t *b, const uint32_t *c,             \
                              const uint32_t *d, const lane_of *e, uint32_t *r, int *bit)          \
    {                                                                                              \
        (void)a, (void)b, (void)c, (void)d, (void)e, (void)r, (void)bit;                           \
        __VA_ARGS__                                                                                \
    }
#define T(name, types, code, ...)    DEFINE(name, __VA_ARGS__)
#define T942(name, types, code, ...) DEFINE(name, __VA_ARGS__)
#define T950(name, types, code, ...) DEFINE(name, __VA_ARGS__)
#include "emulator/cases/all.def"
#undef T
#undef T942
#undef T950

static void add(const char *name, const char *types, const char *code, expectation expect,
                emu_arch archs, int p, int q)
{
    if (num_cases == MAX_CASES) {
        return;
    }
    test_case *t = &cases[num_cases++];
    (void)snprintf(t->name, sizeof t->name, "%s", name);
    (void)snprintf(t->code, sizeof t->code, "%s", code);
    t->types = types;
    t->expect = expect;
    t->archs = archs;
    t->p = p;
    t->q = q;
}

// ---- comparisons: every predicate of every type
static const char *const predicates[] = {"f", "lt",  "eq",  "le",  "gt",  "lg",  "ge",  "o",
                                         "u", "nge", "nlg", "ngt", "nle", "neq", "nlt", "tru"};
static const char *const integers[] = {"f", "lt", "eq", "le", "gt", "ne", "ge", "t"};
static const char *const compared[] = {"f32", "f16", "f64", "i32", "u32",
                                       "i64", "u64", "i16", "u16"};

static bool holds(const char *predicate, double x, double y)
{
    const bool less = x < y;
    const bool more = x > y;
    const bool same = x == y;
    const bool apart = isnan(x) || isnan(y);
    switch (predicate[0]) {
    case 'f':
        return false;
    case 't':
        return true;
    case 'o':
        return !apart;
    case 'u':
        return apart;
    case 'e':
        return same;
    case 'l':
        return predicate[1] == 't' ? less : predicate[1] == 'e' ? less || same : less || more;
    case 'g':
        return predicate[1] == 't' ? more : more || same;
    default: // n..
        if (strcmp(predicate, "ne") == 0) {
            return !same;
        }
        return strcmp(predicate, "neq") == 0 ? !same : !holds(predicate + 1, x, y);
    }
}

static void expect_compare(const uint32_t *a, const uint32_t *b, const uint32_t *c,
                           const uint32_t *d, const lane_of *e, uint32_t *r, int *bit)
{
    (void)c, (void)d, (void)r;
    const test_case *t = e->the_case;
    const int type = t->p % 16;
    const char *predicate = type < 3 ? predicates[t->q] : integers[t->q];
    double x[2];
    for (int i = 0; i < 2; i++) {
        const uint32_t *v = i ? b : a;
        switch (type) {
        case 0:
            x[i] = (double)F(v);
            break;
        case 1:
            x[i] = (double)half(v);
            break;
        case 2:
            x[i] = D(v);
            break;
        case 3:
            x[i] = (int32_t)v[0];
            break;
        case 4:
            x[i] = v[0];
            break;
        case 7:
            x[i] = (int16_t)v[0];
            break;
        case 8:
            x[i] = (uint16_t)v[0];
            break;
        default: { // 64 bits: the order of the values, without double's rounding
            const uint64_t flip = type == 5 ? 1ull << 63 : 0;
            const uint64_t mine = Q(v) ^ flip;
            const uint64_t other = Q(i ? a : b) ^ flip;
            x[i] = mine < other ? -1 : mine > other;
            break;
        }
        }
    }
    *bit = holds(predicate, x[0], x[1]);
}

static void expect_class(const uint32_t *a, const uint32_t *b, const uint32_t *c, const uint32_t *d,
                         const lane_of *e, uint32_t *r, int *bit)
{
    (void)c, (void)d, (void)r;
    const int type = e->the_case->p % 16;
    const double x = type == 0 ? (double)F(a) : type == 1 ? (double)half(a) : D(a);
    const bool quiet = type == 0 ? a[0] >> 22 & 1 : type == 1 ? a[0] >> 9 & 1 : a[1] >> 19 & 1;
    const double least = type == 0 ? 0x1p-126 : type == 1 ? 0x1p-14 : 0x1p-1022;
    const double size = fabs(x);
    int kind; // 0 the largest
    if (isnan(x)) {
        *bit = (b[0] >> (quiet ? 1 : 0)) & 1;
        return;
    }
    kind = isinf(x) ? 0 : size >= least ? 1 : size > 0 ? 2 : 3;
    *bit = (b[0] >> (signbit(x) ? 2 + kind : 9 - kind)) & 1;
}

static void add_comparisons(void)
{
    static const char *const types[] = {"ff>m", "hh>m", "dd>m", "uu>m", "uu>m",
                                        "qq>m", "qq>m", "uu>m", "uu>m"};
    char name[48];
    char code[256];
    for (int x = 0; x < 2; x++) {
        for (int t = 0; t < 9; t++) {
            const bool wide = strstr(compared[t], "64") != NULL;
            const char *operands = wide ? "v[4:5], v[8:9]" : "v4, v8";
            for (int q = 0; q < (t < 3 ? 16 : 8); q++) {
                const char *p = t < 3 ? predicates[q] : integers[q];
                (void)snprintf(name, sizeof name, "cmp%s_%s_%s", x ? "x" : "", p, compared[t]);
                (void)snprintf(code, sizeof code, "v_cmp%s_%s_%s_e64 s[20:21], %s", x ? "x" : "", p,
                               compared[t], operands);
                add(name, types[t], code, expect_compare, EMU_ANY, t + 16 * x, q);
            }
            if (t < 3) {
                (void)snprintf(name, sizeof name, "cmp%s_class_%s", x ? "x" : "", compared[t]);
                (void)snprintf(code, sizeof code, "v_cmp%s_class_%s_e64 s[20:21], %s, v8",
                               x ? "x" : "", compared[t], wide ? "v[4:5]" : "v4");
                add(name,
                    t == 0   ? "fu>m"
                    : t == 1 ? "hu>m"
                             : "du>m",
                    code, expect_class, EMU_ANY, t + 16 * x, 0);
            }
        }
    }
    add("cmp_vcc", "uu>V", "v_cmp_lt_u32_e32 vcc, v4, v8", expect_compare, EMU_ANY, 4, 1);
    add("cmp_modifiers", "ff>m", "v_cmp_lt_f32_e64 s[20:21], |v4|, -v8", expect_compare_modified,
        EMU_ANY, 0, 0);
    add("cmp_sdwa", "uu>V", "v_cmp_gt_u16_sdwa vcc, v4, v8 src0_sel:WORD_1 src1_sel:BYTE_2",
        expect_compare_selected, EMU_ANY, 0, 0);
}

// ---- operands
static uint64_t state = 0x1234567;

static uint32_t random32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static uint32_t pick(const uint32_t *list, size_t n)
{
    return list[random32() % n];
}

#define COUNT(x) (sizeof(x) / sizeof *(x))
static const uint32_t words[] = {
    0,        1,        2,        31,         32,         33,         63,         64,
    0x7F,     0x80,     0xFF,     0x100,      0x7FFF,     0x8000,     0xFFFF,     0x10000,
    0x7FFFFF, 0x800000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF};
static const uint32_t floats[] = {
    0,          0x80000000, 1,          0x80000001, 0x7FFFFF,   0x807FFFFF, 0x800000,   0x80800000,
    0x3F800000, 0xBF800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001,
    0x7F800001, 0x3F000000, 0x40200000, 0xC0600000, 0x4F000000, 0x4F800000, 0xCF000000, 0x4EFFFFFF,
    0x43E00000, 0x43E80000, 0x43F00000, 0x43700000, 0x43780000};
static const uint32_t halves[] = {0,      0x8000, 1,      0x8001, 0x3FF,  0x400,
                                  0x83FF, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00,
                                  0xFC00, 0x7E00, 0xFE01, 0x7C01, 0x3800, 0x6400};

static uint32_t random_float(void)
{
    const unsigned how = random32() % 8;
    if (how < 2) {
        return pick(floats, COUNT(floats));
    }
    if (how < 4) { // near one
        return (random32() & 0x807FFFFFu) | (117 + random32() % 20) << 23;
    }
    if (how == 4) { // few bits
        return (random32() & 0x80700000u) | (120 + random32() % 16) << 23;
    }
    return random32();
}

static uint32_t random_half(void)
{
    const unsigned how = random32() % 4;
    return how == 0   ? pick(halves, COUNT(halves))
           : how == 1 ? (random32() & 0x83FFu) | (10 + random32() % 10) << 10
                      : random32() & 0xFFFFu;
}

static uint32_t counter;

static void fill(uint32_t to[4], char type)
{
    static const char permutations[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 127, -1};
    for (int i = 0; i < 4; i++) {
        switch (type) {
        case 'f':
            to[i] = random_float();
            break;
        case 'n':
            to[i] = (random32() & 0x807FFFFFu) | (110 + random32() % 30) << 23;
            break;
        case 'h':
            to[i] = random_half() | random_half() << 16;
            break;
        case 'b':
            to[i] = random_float() >> 16 | (random_float() & 0xFFFF0000u);
            break;
        case 's':
            to[i] = random32() % 70;
            break;
        case 'e': // all codes of a byte, one after the other
            to[i] = (counter & 255u) * 0x01010101u + 0x40C08000u * (counter / 256u % 2u);
            counter++;
            break;
        case 't': // few bits, so that ties between codes occur
            to[i] = (counter & 31u) << 18 | (101 + counter / 32 % 50) << 23 |
                    (random32() & 0x80000000u);
            to[i] += random32() % 4 ? 0 : random32() % 3 - 1;
            counter++;
            break;
        case 'T': // pairs of these as bf16
            to[i] =
                (counter & 31u) << 2 | (101 + counter / 32 % 50) << 7 | (random32() & 0xFFFF8000u);
            counter++;
            break;
        case 'x': // scales
            to[i] = random32() % 16 ? (random32() & 0x807FFFFFu) | (117 + random32() % 20) << 23
                                    : random32();
            to[i] = random32() % 32 ? to[i]
                                    : (random32() & 0x7FFFFFu) | (random32() % 2 ? 0x7F800000u : 0);
            break;
        case 'N': // no NaN, little
            to[i] = random32() % 8 ? (random32() & 0x807FFFFFu) | (117 + random32() % 20) << 23
                                   : pick(floats, 12);
            break;
        case 'H': // pairs of f16 without NaN
            to[i] = ((random32() & 0x83FF83FFu) | (10 + random32() % 9) << 10 |
                     (10 + random32() % 9) << 26);
            break;
        case 'B': // pairs of bf16 without NaN
            to[i] = ((random32() & 0x807F807Fu) | (120 + random32() % 9) << 7 |
                     (120 + random32() % 9) << 23);
            break;
        case 'E': // doubles that are not 0
            if (i % 2) {
                const double x = ldexp((double)(random32() | 1), (int)(random32() % 80) - 50) *
                                 (random32() % 2 ? 1 : -1);
                memcpy(to + i - 1, &x, 8);
            }
            break;
        case 'p':
            to[i] = 0;
            for (int k = 0; k < 4; k++) {
                to[i] |= (uint32_t)(uint8_t)permutations[random32() % 16] << (8 * k);
            }
            break;
        case 'd':
        case 'D':
            if (i % 2) {
                double x = ldexp((double)(int32_t)random32(), (int)(random32() % 80) - 50);
                const unsigned how = random32() % 16;
                x = how == 0   ? 0
                    : how == 1 ? -0.0
                    : how == 2 ? (double)INFINITY
                    : how == 3 ? 0.5
                    : how == 4 ? -2.5
                               : x;
                x = how == 5 && type == 'd' ? (double)NAN
                    : how == 6              ? 0x1p-1060
                    : how == 7              ? 4294967295.5
                                            : x;
                x = how == 8 ? (double)F(floats + random32() % 12) : x;
                memcpy(to + i - 1, &x, 8);
            }
            break;
        case 'q': // often alike
            to[i] = random32() % 4 ? pick(words, 3) : pick(words, COUNT(words));
            break;
        default:
            to[i] = random32() % 3 ? random32() : pick(words, COUNT(words));
            break;
        }
    }
}

static char type_of(const test_case *t, unsigned k)
{
    const char *end = strchr(t->types, '>');
    const size_t n = end != NULL ? (size_t)(end - t->types) : strlen(t->types);
    return t->types[k < n ? k : n - 1];
}

static bool has(const test_case *t, char flag)
{
    const char *flags = strchr(t->types, '>');
    return flags != NULL && strchr(flags, flag) != NULL;
}

// ---- code
static const uint64_t some_lanes = 0xF0FF3C7FFFFFA5FFu;

static void write_kernel(FILE *f, const test_case *t)
{
    kernel_begins(f, t->name);
    (void)fprintf(f, "s_load_dwordx4 s[4:7], s[0:1], 0x0\ns_waitcnt lgkmcnt(0)\n"
                     "s_lshl_b32 s3, s2, 12\ns_add_u32 s4, s4, s3\ns_addc_u32 s5, s5, 0\n"
                     "s_lshl_b32 s3, s2, 13\ns_add_u32 s6, s6, s3\ns_addc_u32 s7, s7, 0\n"
                     "v_and_b32 v0, 0x3ff, v0\nv_lshlrev_b32 v1, 7, v0\nv_lshlrev_b32 v0, 6, v0\n"
                     "v_mov_b32 v28, v0\n");
    (void)fprintf(f,
                  "global_load_dwordx4 v[4:7], v0, s[4:5]\n"
                  "global_load_dwordx4 v[8:11], v0, s[4:5] offset:16\n"
                  "global_load_dwordx4 v[12:15], v0, s[4:5] offset:32\n"
                  "global_load_dwordx4 v[16:19], v0, s[4:5] offset:48\n"
                  "v_mov_b32 v25, s5\nv_add_co_u32 v24, vcc, s4, v0\n"
                  "v_addc_co_u32 v25, vcc, 0, v25, vcc\n"
                  "v_mov_b32 v27, s7\nv_add_co_u32 v26, vcc, s6, v1\n"
                  "v_addc_co_u32 v27, vcc, 0, v27, vcc\n"
                  "s_load_dwordx16 s[32:47], s[4:5], 0x0\ns_waitcnt vmcnt(0) lgkmcnt(0)\n"
                  "s_mov_b64 s[20:21], 0\ns_mov_b64 s[22:23], s[42:43]\ns_mov_b64 vcc, s[42:43]\n");
    const uint64_t lanes = has(t, 'x') ? ~(uint64_t)0 : some_lanes;
    (void)fprintf(f, "s_mov_b32 exec_lo, 0x%x\ns_mov_b32 exec_hi, 0x%x\ns_bitcmp1_b32 s43, 0\n",
                  (unsigned)lanes, (unsigned)(lanes >> 32));
    (void)fprintf(f, "%s\n", t->code);
    (void)fprintf(
        f, "s_cselect_b32 s24, 1, 0\ns_mov_b64 s[26:27], exec\ns_mov_b64 exec, -1\n"
           "global_store_dwordx4 v[26:27], v[16:19], off\n"
           "v_mov_b32 v20, s20\nv_mov_b32 v21, s21\nv_mov_b32 v22, vcc_lo\nv_mov_b32 v23, vcc_hi\n"
           "global_store_dwordx4 v[26:27], v[20:23], off offset:16\n"
           "v_mov_b32 v20, s44\nv_mov_b32 v21, s45\nv_mov_b32 v22, s46\nv_mov_b32 v23, s47\n"
           "global_store_dwordx4 v[26:27], v[20:23], off offset:64\n"
           "v_mov_b32 v20, s24\nv_mov_b32 v21, s26\nv_mov_b32 v22, s27\n"
           "global_store_dwordx3 v[26:27], v[20:22], off offset:80\n"
           "global_store_dwordx4 v[26:27], v[4:7], off offset:96\ns_endpgm\n");
    kernel_ends(f, t->name,
                ".amdhsa_group_segment_fixed_size 4096\n.amdhsa_private_segment_fixed_size 64\n"
                ".amdhsa_enable_private_segment 1\n.amdhsa_float_denorm_mode_32 3\n");
}

static emu_object *assemble(const char *folder)
{
    FILE *f = assembly_open(folder, "instructions", arch);
    for (int i = 0; f != NULL && i < num_cases; i++) {
        if (cases[i].archs & arch) {
            write_kernel(f, &cases[i]);
        }
    }
    return assembly_close(f, folder, "instructions", arch);
}

// ---- runs and comparisons
static int failures;
static const test_case *last_failed;
static int failed_cases;

static void fail(const test_case *t, const char *format, ...)
{
    char what[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (++failures && t != last_failed) {
        last_failed = t;
        failed_cases++;
        (void)fprintf(stderr, "FAILED: %s: `%s`: %s\n", t->name, t->code, what);
    }
}

static bool run(const test_case *t, emu_object *o, uint32_t *in, uint32_t *out)
{
    emu_kernel *k = assembly_kernel(o, t->name);
    char error[768] = "no such kernel";
    if (k == NULL || !emu_kernel_decode(k, error, sizeof error)) {
        fail(t, "%s", error);
        return false;
    }
    uint64_t kernarg[2] = {(uint64_t)(uintptr_t)in, (uint64_t)(uintptr_t)out};
    const size_t in_bytes = (size_t)GROUPS * EMU_LANES * WORDS_IN * 4;
    const size_t out_bytes = (size_t)GROUPS * EMU_LANES * WORDS_OUT * 4;
    emu_range ranges[3] = {
        {(uint64_t)(uintptr_t)kernarg, (uint64_t)(uintptr_t)(kernarg + 2), true, "the arguments"},
        {(uint64_t)(uintptr_t)in, (uint64_t)(uintptr_t)in + in_bytes, true, "the operands"},
        {(uint64_t)(uintptr_t)out, (uint64_t)(uintptr_t)out + out_bytes, false, "the results"}};
    sort_ranges(ranges, 3);
    emu_launch l = {.kernel = k,
                    .arch = arch,
                    .grid = {GROUPS, 1, 1},
                    .block = {EMU_LANES, 1, 1},
                    .ranges = ranges,
                    .num_ranges = 3,
                    .max_steps = 1 << 20,
                    .lds_races = true,
                    .lds_unwritten = true,
                    .strict_barriers = true,
                    .error = error,
                    .error_bytes = sizeof error};
    if (!emu_run(&l, 0, kernarg, kernarg)) {
        fail(t, "%s", error);
        return false;
    }
    return true;
}

static bool alike(const test_case *t, int word, const uint32_t *x, const uint32_t *y)
{
    if (x[word] == y[word]) {
        return true;
    }
    const bool nan_x = isnan(F(x + word)) != 0;
    const bool nan_y = isnan(F(y + word)) != 0;
    if (has(t, 'f') && word < 4) {
        return nan_x && nan_y;
    }
    if (has(t, 'd') && word < 4) {
        return isnan(D(x + word / 2 * 2)) && isnan(D(y + word / 2 * 2));
    }
    if (has(t, 'B') && word < 4) {
        for (int i = 0; i < 2; i++) {
            const uint32_t p = x[word] >> (16 * i) & 0x7FFFu;
            const uint32_t q = y[word] >> (16 * i) & 0x7FFFu;
            if (x[word] >> (16 * i) << 16 != y[word] >> (16 * i) << 16 &&
                !(p > 0x7F80u && q > 0x7F80u)) {
                return false;
            }
        }
        return true;
    }
    if (has(t, 'h') && word < 4) {
        for (int i = 0; i < 2; i++) {
            const uint32_t p = x[word] >> (16 * i) & 0xFFFFu;
            const uint32_t q = y[word] >> (16 * i) & 0xFFFFu;
            if (p != q && !((p & 0x7FFFu) > 0x7C00u && (q & 0x7FFFu) > 0x7C00u)) {
                return false;
            }
        }
        return true;
    }
    return false;
}

static void check_group(const test_case *t, const uint32_t *in, const uint32_t *out)
{
    const uint64_t exec = has(t, 'x') ? ~(uint64_t)0 : some_lanes;
    const uint64_t mask = in[10] | (uint64_t)in[11] << 32;
    static uint32_t want[EMU_LANES][WORDS_OUT];
    uint64_t bits = 0;
    uint32_t scalars[WORDS_OUT] = {0};
    bool scalars_set = false;
    for (int l = 0; l < EMU_LANES; l++) {
        const uint32_t *record = in + WORDS_IN * l;
        uint32_t *r = want[l];
        const bool active = exec >> l & 1;
        lane_of e = {in, l, exec, (int)(mask >> l & 1), mask, (int)(in[11] & 1), (int)arch, t};
        int bit = 0;
        for (int i = 0; i < WORDS_OUT; i++) {
            r[i] = POISON;
        }
        memcpy(r, record + 12, 16);
        r[4] = r[5] = 0;
        r[6] = in[10];
        r[7] = in[11];
        memcpy(r + 16, in + 12, 16);
        r[20] = in[11] & 1;
        r[21] = (uint32_t)exec;
        r[22] = (uint32_t)(exec >> 32);
        memcpy(r + 24, record, 16);
        uint32_t before[WORDS_OUT];
        memcpy(before, r, sizeof before);
        t->expect(record, record + 4, record + 8, record + 12, &e, r, &bit);
        bits |= (uint64_t)(active && bit) << l;
        if (!scalars_set) { // scalar results are the same on all lanes
            memcpy(scalars, r, sizeof scalars);
            scalars_set = true;
        }
        if (!active && strncmp(t->code, "v_writelane", 11) != 0) {
            memcpy(r, before, 16);
            memcpy(r + 8, before + 8, 32);
            memcpy(r + 24, before + 24, 16);
        }
    }
    const bool to_exec = strncmp(t->code, "v_cmpx", 6) == 0;
    for (int l = 0; l < EMU_LANES; l++) {
        const uint32_t *got = out + WORDS_OUT * l;
        uint32_t *r = want[l];
        memcpy(r + 16, scalars + 16, 28);
        if (has(t, 'm')) {
            r[4] = (uint32_t)bits;
            r[5] = (uint32_t)(bits >> 32);
        }
        if (has(t, 'V')) {
            r[6] = (uint32_t)bits;
            r[7] = (uint32_t)(bits >> 32);
        }
        if (to_exec) {
            r[21] = (uint32_t)bits;
            r[22] = (uint32_t)(bits >> 32);
        }
        for (int i = 0; i < WORDS_OUT; i++) {
            if (i == 23 || (has(t, '?') && (i == 4 || i == 5))) {
                continue;
            }
            if (!alike(t, i, got, r)) {
                fail(t, "lane %d, word %d: 0x%x, expected 0x%x; a %x %x b %x %x c %x %x d %x %x", l,
                     i, got[i], r[i], in[16 * l], in[16 * l + 1], in[16 * l + 4], in[16 * l + 5],
                     in[16 * l + 8], in[16 * l + 9], in[16 * l + 12], in[16 * l + 13]);
                return;
            }
        }
    }
}

static void check_case(const test_case *t, emu_object *o)
{
    static uint32_t in[GROUPS * EMU_LANES * WORDS_IN];
    static uint32_t out[GROUPS * EMU_LANES * WORDS_OUT];
    for (size_t i = 0; i < COUNT(in); i += 4) {
        fill(in + i, type_of(t, i / 4 % 4));
    }
    for (size_t i = 0; i < COUNT(out); i++) {
        out[i] = POISON;
    }
    if (!run(t, o, in, out)) {
        return;
    }
    for (int g = 0; g < GROUPS; g++) {
        check_group(t, in + (size_t)g * EMU_LANES * WORDS_IN,
                    out + (size_t)g * EMU_LANES * WORDS_OUT);
    }
}

/// Rows that some case executes, by the names in its code.
static int check_rows(void)
{
    int missing = 0;
    for (size_t i = 0; i < emu_num_rows(); i++) {
        const emu_row *row = emu_row_at(i);
        bool found = !(row->archs & arch) || strstr(row->name, "mfma") != NULL || // test_matrix.c
                     strcmp(row->name, "s_endpgm") == 0 ||
                     strcmp(row->name, "s_trap") == 0; // test_machine.c
        for (int k = 0; k < num_cases && !found; k++) {
            const char *p = cases[k].archs & arch ? cases[k].code : "";
            while ((p = strstr(p, row->name)) != NULL && !found) {
                const char *after = p + strlen(row->name);
                const bool begins = p == cases[k].code || p[-1] == ' ' || p[-1] == '\n';
                static const char *const ends[] = {"_e32 ", "_e64 ", "_sdwa ", "_dpp ", " ", "\n"};
                for (size_t x = 0; x < COUNT(ends); x++) {
                    found |=
                        begins && (strncmp(after, ends[x], strlen(ends[x])) == 0 || *after == 0);
                }
                p = after;
            }
        }
        if (!found) {
            (void)fprintf(stderr, "FAILED: no case executes %s\n", row->name);
            missing++;
        }
    }
    return missing;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        (void)fprintf(stderr, "usage: test_instructions gfx942|gfx950 FOLDER [CASE]\n");
        return 2;
    }
    arch = strcmp(argv[1], "gfx942") == 0 ? EMU_GFX942 : EMU_GFX950;
#define T(name, types, code, ...)    add(#name, types, code, expect_##name, EMU_ANY, 0, 0);
#define T942(name, types, code, ...) add(#name, types, code, expect_##name, EMU_GFX942, 0, 0);
#define T950(name, types, code, ...) add(#name, types, code, expect_##name, EMU_GFX950, 0, 0);
#include "emulator/cases/all.def"
    add_comparisons();
    emu_object *o = assemble(argv[2]);
    if (o == NULL) {
        return 1;
    }
    int n = 0;
    for (int i = 0; i < num_cases; i++) {
        if ((cases[i].archs & arch) && (argc < 4 || strcmp(cases[i].name, argv[3]) == 0)) {
            check_case(&cases[i], o);
            n++;
        }
    }
    const int missing = argc < 4 ? check_rows() : 0;
    emu_object_free(o);
    (void)printf(
        "%s: %d cases of %d lanes, %zu rows, %d failures in %d cases, %d rows without a case\n",
        argv[1], n, GROUPS * EMU_LANES, emu_num_rows(), failures, failed_cases, missing);
    return failures + missing > 0;
}
