// SPDX-License-Identifier: Apache-2.0
// Every MFMA row of the emulator against dot products in double, with layouts computed from the
// other side: for each element of the result, where its factors lie.
//
//   test_matrix gfx942|gfx950 FOLDER [CASE]
//
// A lane's record: 16 words of C, 8 of A, 8 of B, a scale for A and one for B. The result is
// compared bit for bit where sums are exact, and within 2^-21 of the sum of magnitudes for any
// operands; both orders of summation. Some lanes are inactive, which must not matter.
#include <math.h>
#include <stdbool.h>

#include "emulator/assemble.h"
#include "emulator/expect.h"

enum { RECORD = 64, MAX_CASES = 512, AT_A = 16, AT_B = 24, AT_SCALES = 32 };
enum { F32 = 8, F16, BF16, I8 }; // after the small formats

typedef struct test_case {
    char name[96];
    char code[256];
    const char *row;
    int m, k, a, b; // formats
    int blocks;     // 0: no scales
    int byte_a, byte_b;
    bool agprs;
    float constant; // C, where it is one
    bool has_constant;
} test_case;

static test_case cases[MAX_CASES];
static int num_cases;
static emu_arch arch;
static int failures;

static const struct format {
    const char *name;
    int id, bits;
} formats[] = {{"fp8", FP8, 8},  {"bf8", BF8, 8},    {"f32", F32, 32},
               {"f16", F16, 16}, {"bf16", BF16, 16}, {"i8", I8, 8}};

static int bits_of(int id)
{
    return id == FP4                 ? 4
           : id == FP6 || id == BF6  ? 6
           : id == F32               ? 32
           : id == F16 || id == BF16 ? 16
                                     : 8;
}

static int format_named(const char *name, size_t n)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (strlen(formats[i].name) == n && strncmp(formats[i].name, name, n) == 0) {
            return formats[i].id;
        }
    }
    return -1;
}

static void registers(char *to, size_t room, char file, int first, int bits)
{
    const int words = bits / 32;
    if (words == 1) {
        (void)snprintf(to, room, "%c%d", file, first);
    } else {
        (void)snprintf(to, room, "%c[%d:%d]", file, first, first + words - 1);
    }
}

/// A case of a row: the instruction's text from its shape.
static void add(test_case t, const char *modifiers)
{
    char a[16];
    char b[16];
    char d[16];
    char c[16];
    const int groups = 64 / t.m;
    registers(a, sizeof a, 'v', 32, t.k / groups * bits_of(t.a));
    registers(b, sizeof b, 'v', 40, t.k / groups * bits_of(t.b));
    registers(d, sizeof d, t.agprs ? 'a' : 'v', t.agprs ? 0 : 16, t.m * t.m / 64 * 32);
    (void)snprintf(c, sizeof c, "%s", d);
    if (t.has_constant) {
        (void)snprintf(c, sizeof c, "%s", t.constant == 0 ? "0" : "1.0");
    }
    (void)snprintf(t.code, sizeof t.code, "%s %s, %s, %s, %s%s %s", t.row, d, a, b, c,
                   t.blocks ? ", v48, v49" : "", modifiers);
    (void)snprintf(t.name, sizeof t.name, "case_%d", num_cases);
    if (num_cases < MAX_CASES) {
        cases[num_cases++] = t;
    }
}

static void add_row(const char *row)
{
    test_case t = {.row = row};
    int n;
    const char *rest = strstr(row, "_16x16x");
    rest = rest != NULL ? rest : strstr(row, "_32x32x");
    if (rest == NULL || sscanf(rest, "_%dx%dx%d_%n", &t.m, &n, &t.k, &n) < 3) {
        (void)fprintf(stderr, "FAILED: %s is not understood\n", row);
        failures++;
        return;
    }
    rest += n;
    if (strcmp(rest, "f8f6f4") != 0) {
        const char *second = strchr(rest, '_');
        t.a = format_named(rest, second != NULL ? (size_t)(second - rest) : strlen(rest));
        t.b = second != NULL ? format_named(second + 1, strlen(second + 1)) : t.a;
        add(t, "");
        t.agprs = true;
        add(t, "");
        t.agprs = false;
        t.has_constant = true;
        add(t, "");
        if (t.a != I8) {
            t.constant = 1;
            add(t, "");
        }
        return;
    }
    const bool scaled = strstr(row, "scale") != NULL;
    for (t.a = FP8; t.a <= FP4; t.a++) {
        for (t.b = FP8; t.b <= FP4; t.b++) {
            char modifiers[96];
            t.blocks = scaled ? t.k / 32 : 0;
            t.byte_a = scaled ? (t.a + 2 * t.b) % 4 : 0;
            t.byte_b = scaled ? (3 * t.a + t.b + 1) % 4 : 0;
            (void)snprintf(modifiers, sizeof modifiers, "cbsz:%d blgp:%d", t.a, t.b);
            if (scaled) {
                (void)snprintf(modifiers, sizeof modifiers,
                               "op_sel:[%d,%d,0] op_sel_hi:[%d,%d,0] cbsz:%d blgp:%d", t.byte_a % 2,
                               t.byte_b % 2, t.byte_a / 2, t.byte_b / 2, t.a, t.b);
            }
            add(t, modifiers);
        }
    }
}

static void write_kernel(FILE *f, const test_case *t)
{
    kernel_begins(f, t->name);
    (void)fprintf(f, "s_load_dwordx4 s[4:7], s[0:1], 0x0\nv_and_b32 v0, 0x3ff, v0\n"
                     "v_lshlrev_b32 v0, 8, v0\ns_waitcnt lgkmcnt(0)\n");
    for (int i = 0; i < 9; i++) {
        (void)fprintf(f, "global_load_dwordx4 v[%d:%d], v0, s[4:5] offset:%d\n", 16 + 4 * i,
                      19 + 4 * i, 16 * i);
    }
    (void)fprintf(f, "s_waitcnt vmcnt(0)\n");
    for (int i = 0; i < 16 && t->agprs; i++) {
        (void)fprintf(f, "v_accvgpr_write_b32 a%d, v%d\nv_mov_b32 v%d, -1\n", i, 16 + i, 16 + i);
    }
    (void)fprintf(f, "s_mov_b32 exec_lo, 0xff00ff0f\n%s\ns_nop 7\ns_mov_b64 exec, -1\n", t->code);
    for (int i = 0; i < 16 && t->agprs; i++) {
        (void)fprintf(f, "v_accvgpr_read_b32 v%d, a%d\n", 16 + i, i);
    }
    for (int i = 0; i < 4; i++) {
        (void)fprintf(f, "global_store_dwordx4 v0, v[%d:%d], s[6:7] offset:%d\n", 16 + 4 * i,
                      19 + 4 * i, 16 * i);
    }
    (void)fprintf(f, "s_endpgm\n");
    kernel_ends(f, t->name, ".amdhsa_float_denorm_mode_32 3\n");
}

// ---- the other side
/// Lane and item of element k of a row.
static void find(const test_case *t, int format, int row, int k, int *lane, int *item)
{
    const int groups = 64 / t->m;
    const int items = t->k / groups;
    const bool eight = bits_of(format) == 8 && t->k * t->m == 2048; // f8f6f4
    if (eight) {
        const int half_k = t->k / 2;
        *lane = row + t->m * (k % half_k / 16);
        *item = k % 16 + 16 * (k / half_k);
    } else {
        *lane = row + t->m * (k / items);
        *item = k % items;
    }
}

static uint32_t code_at(const uint32_t *words, int item, int bits)
{
    uint32_t code = 0;
    for (int i = 0; i < bits; i++) {
        const int at = item * bits + i;
        code |= (words[at / 32] >> (at % 32) & 1) << i;
    }
    return code;
}

static double value_of(int format, uint32_t code)
{
    switch (format) {
    case F32:
        return (double)F(&code);
    case F16:
        return (double)half_of(code);
    case BF16:
        return (double)bf(code);
    case I8:
        return (int8_t)code;
    default:
        return (double)small_value((int)arch, format, code);
    }
}

static double element(const test_case *t, const uint32_t *in, bool b, int row, int k)
{
    const int format = b ? t->b : t->a;
    int lane;
    int item;
    find(t, format, row, k, &lane, &item);
    double v =
        value_of(format, code_at(in + RECORD * lane + (b ? AT_B : AT_A), item, bits_of(format)));
    if (t->blocks) {
        const uint32_t word = in[RECORD * (row + t->m * (k / 32)) + AT_SCALES + b];
        const uint32_t scale = word >> (8 * (b ? t->byte_b : t->byte_a)) & 255;
        v = scale == 255 ? (double)NAN : ldexp(v, (int)scale - 127);
    }
    return v;
}

static bool check(const test_case *t, const uint32_t *in, const uint32_t *out, bool exact)
{
    const int rows = 64 / t->m;
    for (int i = 0; i < t->m; i++) {
        for (int j = 0; j < t->m; j++) {
            const int lane = j + t->m * (i / 4 % rows);
            const int at = i % 4 + 4 * (i / (4 * rows));
            const uint32_t *c = &in[RECORD * lane + at];
            const uint32_t *d = &out[RECORD * lane + at];
            double sum = t->has_constant ? (double)t->constant
                         : t->a == I8    ? (double)(int32_t)c[0]
                                         : (double)F(c);
            double size = fabs(sum);
            int64_t whole = (int64_t)sum;
            for (int k = 0; k < t->k; k++) {
                const double x = element(t, in, false, i, k);
                const double y = element(t, in, true, j, k);
                sum += x * y;
                size += fabs(x * y);
                whole += t->a == I8 ? (int64_t)(x * y) : 0;
            }
            const double got = (double)F(d);
            bool right;
            if (t->a == I8) {
                right = d[0] == (uint32_t)whole;
            } else if (!isfinite(size) || size > 1e38) {
                right = isnan(sum)   ? isnan(got) || size > 1e38
                        : isinf(sum) ? got == sum || isnan(got)
                                     : true;
                right |= isinf(got) && size > 1e38;
            } else {
                right = exact ? d[0] == U((float)sum) || (sum == 0 && got == 0)
                              : fabs(got - sum) <= 0x1p-21 * size + 0x1p-126;
            }
            if (!right) {
                (void)fprintf(
                    stderr,
                    "FAILED: %s: element (%d, %d) is %.9g (0x%x), expected %.9g, magnitudes %.9g\n",
                    t->code, i, j, got, d[0], sum, size);
                return false;
            }
        }
    }
    return true;
}

// ---- operands
static uint64_t state = 0xABCDEF;

static uint32_t random32(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

/// A code whose value is a small multiple of a half, found by trial.
static uint32_t little_code(int format)
{
    for (;;) {
        const int bits = bits_of(format);
        const uint32_t code = format == F32    ? U((float)((int)(random32() % 9) - 4))
                              : format == F16  ? to_half((int)(random32() % 9) - 4)
                              : format == BF16 ? U((float)((int)(random32() % 9) - 4)) >> 16
                                               : random32() & ((1u << bits) - 1);
        const double v = value_of(format, code);
        if (format == I8 || (fabs(v) <= 8 && v * 2 == floor(v * 2))) {
            return code;
        }
    }
}

static void fill(const test_case *t, uint32_t *in, bool exact)
{
    for (int l = 0; l < 64; l++) {
        uint32_t *r = in + RECORD * l;
        for (int i = 0; i < RECORD; i++) {
            r[i] = random32();
        }
        for (int i = 0; i < 16; i++) {
            if (t->a != I8) {
                r[i] = U(exact ? (float)((int)(random32() % 2001) - 1000)
                               : (float)(int32_t)random32() * 0x1p-28f);
            }
        }
        for (int s = 0; s < 2; s++) { // little spread where sums must be exact
            uint32_t word = 0;
            for (int i = 0; i < 32; i += 8) {
                word |= (exact                  ? 126 + random32() % 3
                         : random32() % 64 == 0 ? 255
                                                : 117 + random32() % 20)
                        << i;
            }
            r[AT_SCALES + s] = word;
        }
        for (int side = 0; side < 2; side++) {
            const int format = side ? t->b : t->a;
            const int bits = bits_of(format);
            uint32_t *words = r + (side ? AT_B : AT_A);
            const int items = t->k * t->m / 64;
            for (int i = 0; i < items; i++) {
                uint32_t code = exact ? little_code(format) : random32();
                if (!exact && format == F32) {
                    code = U((float)(int32_t)code * 0x1p-30f);
                } else if (!exact && format == BF16) {
                    code = U((float)(int32_t)code * 0x1p-30f) >> 16;
                }
                if (bits == 32) {
                    words[i] = code;
                    continue;
                }
                for (int b = 0; b < bits; b++) {
                    const int at = i * bits + b;
                    words[at / 32] = (words[at / 32] & ~(1u << (at % 32))) | (code >> b & 1)
                                                                                 << (at % 32);
                }
            }
        }
    }
}

static bool run(const test_case *t, emu_object *o, uint32_t *in, uint32_t *out, int sum)
{
    char error[768] = "no such kernel";
    emu_kernel *k = assembly_kernel(o, t->name);
    uint64_t kernarg[2] = {(uint64_t)(uintptr_t)in, (uint64_t)(uintptr_t)out};
    const size_t bytes = (size_t)64 * RECORD * 4;
    emu_range ranges[3] = {
        {(uint64_t)(uintptr_t)kernarg, (uint64_t)(uintptr_t)(kernarg + 2), true, "the arguments"},
        {(uint64_t)(uintptr_t)in, (uint64_t)(uintptr_t)in + bytes, true, "the operands"},
        {(uint64_t)(uintptr_t)out, (uint64_t)(uintptr_t)out + bytes, false, "the results"}};
    sort_ranges(ranges, 3);
    emu_launch l = {.kernel = k,
                    .arch = arch,
                    .grid = {1, 1, 1},
                    .block = {64, 1, 1},
                    .ranges = ranges,
                    .num_ranges = 3,
                    .max_steps = 1 << 20,
                    .sum = sum,
                    .error = error,
                    .error_bytes = sizeof error};
    if (k == NULL || !emu_kernel_decode(k, error, sizeof error) ||
        !emu_run(&l, 0, kernarg, kernarg)) {
        (void)fprintf(stderr, "FAILED: %s: %s\n", t->code, error);
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        (void)fprintf(stderr, "usage: test_matrix gfx942|gfx950 FOLDER [CASE]\n");
        return 2;
    }
    arch = strcmp(argv[1], "gfx942") == 0 ? EMU_GFX942 : EMU_GFX950;
    int rows = 0;
    for (size_t i = 0; i < emu_num_rows(); i++) {
        const emu_row *row = emu_row_at(i);
        if ((row->archs & arch) && strstr(row->name, "mfma") != NULL) {
            add_row(row->name);
            rows++;
        }
    }
    FILE *f = assembly_open(argv[2], "matrix", arch);
    for (int i = 0; f != NULL && i < num_cases; i++) {
        write_kernel(f, &cases[i]);
    }
    emu_object *o = assembly_close(f, argv[2], "matrix", arch);
    if (o == NULL) {
        return 1;
    }
    static uint32_t in[64 * RECORD];
    static uint32_t out[64 * RECORD];
    int runs = 0;
    for (int i = 0; i < num_cases; i++) {
        const test_case *t = &cases[i];
        if (argc > 3 && strcmp(argv[3], t->name) != 0) {
            continue;
        }
        for (int pass = 0; pass < 4; pass++) {
            const bool exact = pass < 2;
            fill(t, in, exact);
            if (!run(t, o, in, out, pass % 2) || !check(t, in, out, exact)) {
                failures++;
                break;
            }
            runs++;
        }
    }
    emu_object_free(o);
    (void)printf("%s: %d rows, %d cases, %d runs, %d failures\n", argv[1], rows, num_cases, runs,
                 failures);
    return failures > 0 || rows == 0;
}
