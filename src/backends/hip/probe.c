// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/hip/probe_ask.h"
#include "numerics/bf16.h"
#include "numerics/fp4.h"
#include "numerics/fp8.h"

enum { LANES = MOEI_HIP_PROBE_THREADS };

// ---- asking ------------------------------------------------------------------------------------

enum { MAX_IN = 8 + 8 + 4 + 2, MAX_OUT = MOEI_HIP_NUM_ARITHMETIC }; // words of a lane
#define MAX_WORDS ((size_t)MOEI_HIP_PROBE_WAVES * LANES * (MAX_IN + MAX_OUT))

bool moei_hip_disagree(const moei_hip_session *s, moei_hip_family family, const char *what,
                       const char *why)
{
    char *text = s->found->text[family];
    if (text[0] == '\0') {
        (void)snprintf(text, sizeof s->found->text[family], "%s: %s", what, why);
    }
    return false;
}

bool moei_hip_ask(moei_hip_session *s, moei_hip_family family, const char *kernel, uint32_t waves,
                  uint32_t in, uint32_t out)
{
    const moei_hip_runtime *hip = s->hip;
    const size_t lanes = (size_t)waves * LANES;
    uint32_t *results = s->host + lanes * in;
    moei_hip_probe_args args = {
        {MOEI_HIP_PROBE_THREADS, waves, {0, 0}}, s->device, (uint32_t *)s->device + lanes * in};
    size_t bytes = sizeof args;
    void *extra[] = {HIP_LAUNCH_PARAM_BUFFER_POINTER, &args, HIP_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     HIP_LAUNCH_PARAM_END};
    hipFunction_t function = NULL;
    hipError_t error = hip->hipModuleGetFunction(&function, s->module, kernel);
    if (error == hipSuccess) {
        error =
            hip->hipMemcpyAsync(s->device, s->host, 4 * lanes * in, hipMemcpyHostToDevice, NULL);
    }
    if (error == hipSuccess) {
        error = hip->hipModuleLaunchKernel(function, waves, 1, 1, MOEI_HIP_PROBE_THREADS, 1, 1, 0,
                                           NULL, NULL, extra);
    }
    if (error == hipSuccess) {
        error =
            hip->hipMemcpyAsync(results, args.out, 4 * lanes * out, hipMemcpyDeviceToHost, NULL);
    }
    if (error == hipSuccess) {
        error = hip->hipStreamSynchronize(NULL);
    }
    if (error == hipSuccess) {
        return true;
    }
    (void)hip->hipGetLastError();
    return moei_hip_disagree(s, family, kernel, hip->hipGetErrorString(error));
}

// ---- arithmetic --------------------------------------------------------------------------------

// What the bodies of gpu/ stand on: the same operators on the host.
static uint32_t arithmetic_of(moei_hip_arithmetic what, const uint32_t in[3],
                              const uint32_t *lane_0)
{
    const float a = moei_f32_from_bits(in[0]);
    const float b = moei_f32_from_bits(in[1]);
    const float c = moei_f32_from_bits(in[2]);
    switch (what) {
    case MOEI_HIP_ARITHMETIC_DIVIDE:
        return moei_f32_bits(moei_divf(a, b));
    case MOEI_HIP_ARITHMETIC_SQRT:
        return moei_f32_bits(moei_sqrtf(a));
    case MOEI_HIP_ARITHMETIC_FMA:
        return moei_f32_bits(moei_fmaf(a, b, c));
    case MOEI_HIP_ARITHMETIC_PAIR_LOW:
        return moei_f32_bits(moei_fmaf(a, c, b));
    case MOEI_HIP_ARITHMETIC_PAIR_HIGH:
        return moei_f32_bits(moei_fmaf(b, c, a));
    case MOEI_HIP_ARITHMETIC_MULTIPLY:
        return moei_f32_bits(a * b);
    case MOEI_HIP_ARITHMETIC_ADD:
        return moei_f32_bits(a + b);
    case MOEI_HIP_ARITHMETIC_SUM:
        return moei_f32_bits(a + b + c);
    case MOEI_HIP_ARITHMETIC_FROM_INT:
        return moei_f32_bits((float)(int32_t)in[0]);
    case MOEI_HIP_ARITHMETIC_FROM_UNSIGNED:
        return moei_f32_bits((float)in[0]);
    case MOEI_HIP_ARITHMETIC_FROM_BYTE:
        return moei_f32_bits((float)(in[0] & 0xFF));
    case MOEI_HIP_ARITHMETIC_TO_INT:
        return moei_absf(c) < 0x1p31f ? (uint32_t)(int32_t)c : 0u;
    case MOEI_HIP_ARITHMETIC_QUOTIENT:
        return in[1] != 0 ? in[0] / in[1] : 0u;
    case MOEI_HIP_ARITHMETIC_LONG_QUOTIENT:
        return MOEI_HIP_PROBE_LONG(in);
    case MOEI_HIP_ARITHMETIC_FROM_LONG:
        return moei_f32_bits((float)(int64_t)((uint64_t)in[0] << 32 | in[1]));
    case MOEI_HIP_ARITHMETIC_TO_LONG:
        return MOEI_HIP_PROBE_TO_LONG(c);
    default: { // of the same half of the wave
        const uint32_t lane = (uint32_t)((in - lane_0) / 3);
        return lane_0[3 * (lane / 32 * 32 + MOEI_HIP_PROBE_LANE(lane % 32))];
    }
    }
}

// Values where a sequence of steps or a mode of rounding would show.
static const uint32_t special[] = {
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x00000003, 0x007FFFFF, 0x807FFFFF,
    0x00800000, 0x80800000, 0x00800001, 0x01000000, 0x1A000001, 0x33800000, 0x33800001,
    0x3EAAAAAB, 0x3F7FFFFF, 0x3F800000, 0xBF800000, 0x3F800001, 0x3FFFFFFF, 0x40400000,
    0x40490FDB, 0x4B000001, 0x4B800000, 0x4B800001, 0xCB800002, 0x5F000000, 0x7E800001,
    0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000};

static bool probe_arithmetic(moei_hip_session *s)
{
    static const char *const texts[MOEI_HIP_NUM_ARITHMETIC] = {
#define MOEI_HIP_TEXT(id, text) text,
        MOEI_HIP_ARITHMETIC(MOEI_HIP_TEXT)
#undef MOEI_HIP_TEXT
    };
    enum { SPECIAL = sizeof special / sizeof special[0], WAVES = 24 };
    for (uint32_t i = 0; i < WAVES * LANES; i++) {
        const uint32_t pair[2] = {i % SPECIAL, i / SPECIAL};
        for (uint32_t j = 0; j < 3; j++) {
            s->host[3 * i + j] = i >= SPECIAL * SPECIAL ? moei_hip_draw(s)
                                 : j < 2                ? special[pair[j]]
                                                        : special[moei_hip_draw_below(s, SPECIAL)];
        }
    }
    if (!moei_hip_ask(s, MOEI_HIP_FAMILY_ARITHMETIC, "moek_probe_arithmetic", WAVES, 3,
                      MOEI_HIP_NUM_ARITHMETIC)) {
        return false;
    }
    const uint32_t *results = s->host + 3 * WAVES * LANES;
    for (uint32_t i = 0; i < WAVES * LANES * MOEI_HIP_NUM_ARITHMETIC; i++) {
        const uint32_t lane = i / MOEI_HIP_NUM_ARITHMETIC;
        const moei_hip_arithmetic what = (moei_hip_arithmetic)(i % MOEI_HIP_NUM_ARITHMETIC);
        const uint32_t *in = s->host + 3 * lane;
        const uint32_t expected = arithmetic_of(what, in, s->host + 3 * (lane / LANES * LANES));
        const bool integer = what >= MOEI_HIP_ARITHMETIC_TO_INT;
        if (integer ? results[i] != expected : !moei_hip_same(results[i], expected)) {
            char why[112];
            (void)snprintf(why, sizeof why, "of %08x, %08x, %08x: expected %08x, came %08x", in[0],
                           in[1], in[2], expected, results[i]);
            return moei_hip_disagree(s, MOEI_HIP_FAMILY_ARITHMETIC, texts[what], why);
        }
    }
    return true;
}

// ---- codes to bf16 -----------------------------------------------------------------------------

typedef struct codes {
    const char *name, *kernel;
    moei_hip_code code;
} codes;

static const codes code_rows[] = {
#define MOE_HIP_PROBE_CODES(name, code) {#name, "moek_probe_codes_" #name, MOEI_HIP_CODE_##code},
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_CODES
};

static float code_value(moei_hip_code code, uint32_t c, float zero)
{
    switch (code) {
    case MOEI_HIP_CODE_MXFP4:
    case MOEI_HIP_CODE_NVFP4:
        return moei_e2m1_to_f32((uint8_t)c);
    case MOEI_HIP_CODE_E4M3:
        return moei_e4m3fn_to_f32((uint8_t)c);
    case MOEI_HIP_CODE_E4M3FNUZ:
        return moei_e4m3fnuz_to_f32((uint8_t)c);
    case MOEI_HIP_CODE_E5M2:
        return moei_e5m2_to_f32((uint8_t)c);
    default:
        return (float)c - zero;
    }
}

// A scale as kernels have it for packed weights.
static float draw_scale(moei_hip_session *s, moei_hip_code code)
{
    uint8_t low;
    uint8_t high;
    switch (code) {
    case MOEI_HIP_CODE_MXFP4:
    case MOEI_HIP_CODE_E4M3:
    case MOEI_HIP_CODE_E5M2:
        moei_hip_scale_range(code, &low, &high);
        return moei_f32_from_bits((low + moei_hip_draw_below(s, high - low + 1u)) << 23);
    case MOEI_HIP_CODE_NVFP4: // e4m3
        return moei_e4m3fn_to_f32(
            (uint8_t)(moei_hip_draw_below(s, 127) | (moei_hip_draw(s) & 0x80u)));
    default:
        return 1.0f;
    }
}

// Each code in each place of its word, with scales of all kinds.
static bool probe_codes(moei_hip_session *s, const codes *row)
{
    enum { WAVES = 16, PLACES = 8 }; // codes of a lane
    const moei_hip_code code = row->code;
    const bool offset = code == MOEI_HIP_CODE_U4 || code == MOEI_HIP_CODE_U8;
    const bool nibbles =
        code == MOEI_HIP_CODE_MXFP4 || code == MOEI_HIP_CODE_NVFP4 || code == MOEI_HIP_CODE_U4;
    const uint32_t bits = nibbles ? 4 : 8;
    const uint32_t words = nibbles ? 1 : 2;
    for (uint32_t i = 0; i < WAVES * LANES; i++) {
        uint32_t *in = s->host + i * (words + 2);
        memset(in, 0, 4 * words);
        for (uint32_t p = 0; p < PLACES; p++) {
            const uint32_t c = (i + 31 * p) & ((1u << bits) - 1);
            in[p * bits / 32] |= c << (p * bits % 32);
        }
        in[words] = moei_f32_bits(draw_scale(s, code));
        in[words + 1] = moei_f32_bits(offset ? (float)moei_hip_draw_below(s, 1u << bits) : 0.0f);
    }
    if (!moei_hip_ask(s, MOEI_HIP_FAMILY_CODES, row->kernel, WAVES, words + 2, 4)) {
        return false;
    }
    const uint32_t *results = s->host + WAVES * LANES * (words + 2);
    for (uint32_t i = 0; i < WAVES * LANES * PLACES; i++) {
        const uint32_t p = i % PLACES;
        const uint32_t *in = s->host + i / PLACES * (words + 2);
        const uint32_t c = in[p * bits / 32] >> (p * bits % 32) & ((1u << bits) - 1);
        const float scale = moei_f32_from_bits(in[words]);
        const float expected = code_value(code, c, moei_f32_from_bits(in[words + 1])) * scale;
        const float came =
            moei_bf16_to_f32((uint16_t)(results[i / PLACES * 4 + p / 2] >> (p % 2 * 16)));
        if (came != expected && (came == came || expected == expected)) {
            char why[112];
            (void)snprintf(why, sizeof why, "code %02x in place %u, scale %g: expected %g, came %g",
                           c, p, (double)scale, isnan(expected) ? (double)NAN : (double)expected,
                           (double)came);
            return moei_hip_disagree(s, MOEI_HIP_FAMILY_CODES, row->name, why);
        }
    }
    return true;
}

// ---- all of it ---------------------------------------------------------------------------------

static const struct {
    const char *name;
    uint64_t bit;
} families[MOEI_HIP_NUM_FAMILIES] = {
#define MOE_HIP_FAMILY(id, bit, name) {name, MOEI_HIP_##bit},
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_FAMILY
};

static void probe_all(moei_hip_session *s, const moei_hip_arch *arch)
{
    bool good[MOEI_HIP_NUM_FAMILIES] = {false};
    moei_hip_findings *found = s->found;
    good[MOEI_HIP_FAMILY_ARITHMETIC] = probe_arithmetic(s);
    good[MOEI_HIP_FAMILY_CODES] = true;
    for (size_t i = 0; i < sizeof code_rows / sizeof code_rows[0]; i++) {
        good[MOEI_HIP_FAMILY_CODES] = good[MOEI_HIP_FAMILY_CODES] && probe_codes(s, &code_rows[i]);
    }
    if (!moei_hip_probe_matrices(s, arch->isa, good)) {
        (void)moei_hip_disagree(s, MOEI_HIP_FAMILY_ARITHMETIC, "memory", "there is none left");
        return;
    }
    for (int f = 0; f < MOEI_HIP_NUM_FAMILIES; f++) {
        found->isa |= good[f] ? families[f].bit : 0;
        found->asked[f] = good[f] || found->text[f][0] != '\0';
    }
}

const char *moei_hip_family_text(const moei_hip_findings *found, moei_hip_family family, char *text,
                                 size_t capacity)
{
    const unsigned long *tiny = found->tiny[family];
    if (found->text[family][0] != '\0') {
        (void)snprintf(text, capacity, "%s off: %s", families[family].name, found->text[family]);
    } else {
        (void)snprintf(text, capacity, "%s: as expected%s", families[family].name,
                       tiny[0] + tiny[1] == 0 ? ""
                       : tiny[1] == 0         ? "; subnormal sums are kept"
                       : tiny[0] == 0         ? "; subnormal sums become 0"
                                              : "; some subnormal sums become 0");
    }
    return text;
}

const char *moei_hip_found_text(const moei_hip_findings *found, uint64_t isa, char *text,
                                size_t capacity)
{
    const bool device = (isa & MOEI_HIP_ANY) != 0; // else what a row needs
    size_t used = strlen(moei_hip_isa_text(isa, text, capacity));
    for (int f = 0; f < MOEI_HIP_NUM_FAMILIES; f++) {
        const bool has = (isa & families[f].bit) != 0;
        const bool off = device && !has && found->text[f][0] != '\0';
        if (used < capacity && (off || (has && !device))) {
            used += (size_t)snprintf(text + used, capacity - used, off ? " (%s off: %s)" : ", %s",
                                     families[f].name, found->text[f]);
        }
    }
    return text;
}

void moei_hip_probe(const moei_hip_runtime *hip, const moei_hip_arch *arch, hipModule_t module,
                    moei_hip_findings *found)
{
    moei_hip_session s = {.hip = hip,
                          .module = module,
                          .fnuz = (arch->isa & MOEI_HIP_CDNA3) != 0,
                          .host = malloc(4 * MAX_WORDS),
                          .found = found};
    memset(found, 0, sizeof *found);
    found->isa = arch->isa & ~(uint64_t)MOEI_HIP_ANY;
    if (s.host == NULL) {
        (void)moei_hip_disagree(&s, MOEI_HIP_FAMILY_ARITHMETIC, "memory", "there is none left");
    } else {
        const hipError_t error = hip->hipMalloc(&s.device, 4 * MAX_WORDS);
        if (error == hipSuccess) {
            probe_all(&s, arch);
            (void)hip->hipFree(s.device);
        } else {
            (void)moei_hip_disagree(&s, MOEI_HIP_FAMILY_ARITHMETIC, "memory",
                                    hip->hipGetErrorString(error));
        }
        (void)hip->hipGetLastError();
    }
    free(s.host);
}
