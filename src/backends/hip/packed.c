// SPDX-License-Identifier: Apache-2.0
#include "backends/hip/packed.h"

#include <string.h>

#include "backends/gpu/pack.h"
#include "backends/hip/mfma.h"
#include "core/safemath.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "ops/ggemm_at.h"

#define TILE  16  // outputs, and bytes of k, of a tile
#define SLICE 128 // elements of k that codes are padded to

// ---- formats -----------------------------------------------------------------------------------

bool moei_hip_packed_takes(const moei_format_info *format, moei_hip_code *code,
                           moei_hip_scales *scales)
{
    *scales = MOEI_HIP_SCALES_APART;
    if (format->block_k == 32 && format->scale_dtypes == 1u << MOE_E8M0) {
        *scales = MOEI_HIP_SCALES_E8M0;
    } else if (format->scale_dtypes == 1u << MOE_E4M3FN) {
        *scales = MOEI_HIP_SCALES_E4M3;
    }
    switch (format->elem) {
    case MOE_BF16:
        *code = MOEI_HIP_CODE_BF16;
        return true;
    case MOE_E2M1:
        *code = *scales == MOEI_HIP_SCALES_E4M3 ? MOEI_HIP_CODE_NVFP4 : MOEI_HIP_CODE_MXFP4;
        return *scales != MOEI_HIP_SCALES_APART;
    case MOE_UINT4:
        *code = MOEI_HIP_CODE_U4;
        return format->zero_point >= 0;
    case MOE_U8:
        *code = MOEI_HIP_CODE_U8;
        return format->zero_point >= 0;
    case MOE_I8:
        *code = MOEI_HIP_CODE_U8;
        return true;
    case MOE_E4M3FN:
    case MOE_E2M3:
    case MOE_E3M2:
        *code = MOEI_HIP_CODE_E4M3;
        return true;
    case MOE_E4M3FNUZ:
        *code = MOEI_HIP_CODE_E4M3FNUZ;
        return true;
    case MOE_E5M2:
        *code = MOEI_HIP_CODE_E5M2;
        return true;
    default:
        return false;
    }
}

int32_t moei_hip_zero_point(const moei_format_info *format)
{
    return format->elem == MOE_I8 ? 128 : format->zero_point;
}

// Scale codes whose products with every code but 0 are normal bf16: the smallest of a weight is
// 2^-1, 2^-9, 2^-16, the largest below 2^3, 2^9, 2^16.
void moei_hip_scale_range(moei_hip_code code, uint8_t *low, uint8_t *high)
{
    *low = code == MOEI_HIP_CODE_MXFP4 ? 2 : code == MOEI_HIP_CODE_E4M3 ? 10 : 17;
    *high = code == MOEI_HIP_CODE_MXFP4 ? 252 : code == MOEI_HIP_CODE_E4M3 ? 246 : 239;
}

static int64_t code_bytes(moei_hip_code code, int64_t k)
{
    switch (code) {
    case MOEI_HIP_CODE_BF16:
        return 2 * k;
    case MOEI_HIP_CODE_MXFP4:
    case MOEI_HIP_CODE_NVFP4:
    case MOEI_HIP_CODE_U4:
        return (k + 1) / 2;
    default:
        return k;
    }
}

// Groups of scales of 128 k.
static int slice_groups(moei_hip_scales scales)
{
    return scales == MOEI_HIP_SCALES_E8M0 ? 4 : 8;
}

moei_hip_packed moei_hip_packed_of(const moei_matrices *m, bool cdna4)
{
    moei_hip_packed p = {.code = MOEI_HIP_CODE_BF16};
    (void)moei_hip_packed_takes(m->format, &p.code, &p.scales);
    const int64_t k = moei_i64_round_up(m->k, p.code == MOEI_HIP_CODE_BF16 ? 32 : SLICE);
    const int64_t outputs = moei_i64_round_up(m->n, TILE);
    const bool scaled = m->format->scale_dtypes != 0;
    p.row_bytes = (int32_t)code_bytes(p.code, k);
    p.outputs = (int32_t)outputs;
    p.scales_at = outputs * p.row_bytes;
    p.zeros_at = p.scales_at;
    if (p.scales == MOEI_HIP_SCALES_APART) {
        const int64_t groups = m->block_k > 0 ? moei_i64_ceil_div(m->k, m->block_k) : 1;
        p.groups = scaled ? (int32_t)groups : 0;
        p.zeros_at += (int64_t)p.groups * outputs * (int64_t)sizeof(float);
        p.bytes = p.zeros_at + (m->zero_e_stride > 0 ? groups * outputs : 0);
    } else {
        p.cdna4 = cdna4 && p.scales == MOEI_HIP_SCALES_E8M0;
        p.groups = (int32_t)(k / SLICE) * slice_groups(p.scales);
        p.groups = p.cdna4 ? (int32_t)moei_i64_round_up(p.groups, 8) : p.groups;
        p.zeros_at += (p.cdna4 ? moei_i64_round_up(outputs, 32) : outputs) * p.groups;
        p.bytes = p.zeros_at;
    }
    return p;
}

static bool for_cdna4(const moei_kernel *kernel)
{
    return (kernel->isa & MOEI_HIP_CDNA4) != 0;
}

size_t moei_hip_packed_bytes(const moei_kernel *kernel, const moei_matrices *m)
{
    // Kernels count the bytes of an expert in 32 bits.
    if (m->k > INT32_MAX / 4 || m->n > INT32_MAX - TILE) {
        return SIZE_MAX;
    }
    const moei_hip_packed p = moei_hip_packed_of(m, for_cdna4(kernel));
    return p.bytes > UINT32_MAX ? SIZE_MAX : (size_t)p.bytes;
}

// ---- codes -------------------------------------------------------------------------------------

// Where 16 bytes of k of an output lie.
static int64_t piece_at(const moei_hip_packed *p, int64_t n, int64_t kb)
{
    return n / TILE * TILE * p->row_bytes + kb / TILE * TILE * TILE + n % TILE * TILE;
}

static bool has_six_bits(const moei_matrices *m)
{
    return m->format->elem == MOE_E2M3 || m->format->elem == MOE_E3M2;
}

// Bits of a row's last byte that no code of six bits has: 0, 2, 4 or 6.
static int spare_bits(int64_t k)
{
    return (int)(8 - 6 * k % 8) % 8;
}

// Codes of a row, as its bytes have them: what is left of the last one counts as one.
static int64_t row_codes(const moei_matrices *m)
{
    return m->k + (has_six_bits(m) && spare_bits(m->k) > 0 ? 1 : 0);
}

// Codes k0 .. k0 + count - 1 of six bits, and the same numbers as e4m3.
static void widen(const moei_matrices *m, const uint8_t *row, int64_t k0, int64_t count,
                  uint8_t *to)
{
    for (int64_t i = 0; i < count; i++) {
        const uint8_t code = (uint8_t)(k0 + i < m->k ? moei_get_u6(row, (size_t)(k0 + i))
                                                     : row[6 * m->k / 8] >> (8 - spare_bits(m->k)));
        const float v =
            m->format->elem == MOE_E2M3 ? moei_e2m3_to_f32(code) : moei_e3m2_to_f32(code);
        to[i] = moei_f32_to_e4m3fn(v, MOEI_OVERFLOW_SATURATE);
    }
}

static void narrow(const moei_matrices *m, const uint8_t *from, int64_t k0, int64_t count,
                   uint8_t *row)
{
    for (int64_t i = 0; i < count; i++) {
        const float v = moei_e4m3fn_to_f32(from[i]);
        const uint8_t code = m->format->elem == MOE_E2M3
                                 ? moei_f32_to_e2m3(v, MOEI_OVERFLOW_SATURATE)
                                 : moei_f32_to_e3m2(v, MOEI_OVERFLOW_SATURATE);
        if (k0 + i < m->k) {
            moei_set_u6(row, (size_t)(k0 + i), code);
        } else {
            const int kept = 8 - spare_bits(m->k);
            uint8_t *last = row + 6 * m->k / 8;
            *last = (uint8_t)((*last & ((1 << kept) - 1)) | code << kept);
        }
    }
}

static void pack_codes(const moei_hip_packed *p, const moei_matrices *m, uint8_t *to)
{
    const int64_t bytes = code_bytes(p->code, row_codes(m));
    const uint8_t flip = m->format->elem == MOE_I8 ? 0x80 : 0;
    for (int64_t n = 0; n < p->outputs; n++) {
        const uint8_t *row = m->values + n * m->value_n_stride;
        for (int64_t kb = 0; kb < p->row_bytes; kb += TILE) {
            uint8_t piece[TILE] = {0};
            const int64_t left = n < m->n ? moei_i64_min(bytes - kb, TILE) : 0;
            if (has_six_bits(m)) {
                widen(m, row, kb, left, piece);
            } else if (left > 0) {
                memcpy(piece, row + kb, (size_t)left);
            }
            for (int64_t i = 0; i < left; i++) {
                piece[i] ^= flip;
            }
            memcpy(to + piece_at(p, n, kb), piece, TILE);
        }
    }
}

static void unpack_codes(const moei_hip_packed *p, const uint8_t *from, const moei_matrices *m)
{
    const int64_t bytes = code_bytes(p->code, row_codes(m));
    const uint8_t flip = m->format->elem == MOE_I8 ? 0x80 : 0;
    for (int64_t n = 0; n < m->n; n++) {
        uint8_t *row = (uint8_t *)(uintptr_t)m->values + n * m->value_n_stride;
        for (int64_t kb = 0; kb < bytes; kb += TILE) {
            const uint8_t *piece = from + piece_at(p, n, kb);
            const int64_t left = moei_i64_min(bytes - kb, TILE);
            if (has_six_bits(m)) {
                narrow(m, piece, kb, left, row);
                continue;
            }
            for (int64_t i = 0; i < left; i++) {
                row[kb + i] = piece[i] ^ flip;
            }
        }
    }
}

// ---- scales ------------------------------------------------------------------------------------

// Byte of the scale of output n and group g, from the first one.
static int64_t scale_at(const moei_hip_packed *p, int64_t n, int64_t g)
{
    if (p->cdna4) {
        return n / 32 * 32 * p->groups + g / 8 * 256 + g % 4 * 64 + n % 16 * 4 + g / 4 % 2 * 2 +
               n / 16 % 2;
    }
    const int each = slice_groups(p->scales);
    return n / TILE * TILE * p->groups + g / each * TILE * each + n % TILE * each + g % each;
}

static moe_status refuse_scale(const moei_hip_packed *p, int64_t n, int64_t g, uint8_t scale)
{
    uint8_t low;
    uint8_t high;
    moei_hip_scale_range(p->code, &low, &high);
    if (p->scales == MOEI_HIP_SCALES_E4M3) {
        return moei_hip_host->fail(MOE_E_VALUE, "hip: scale [%lld, %lld] is NaN", (long long)n,
                                   (long long)g);
    }
    return moei_hip_host->fail(MOE_E_VALUE,
                               "hip: scale [%lld, %lld] has code %d, the matrix kernels take "
                               "%d..%d; a plan at level KERNEL takes any",
                               (long long)n, (long long)g, (int)scale, (int)low, (int)high);
}

// `any`: the kernel multiplies by the scale itself, whatever its code.
static moe_status pack_scales(const moei_hip_packed *p, const moei_matrices *m, bool any,
                              uint8_t *to)
{
    const uint8_t *scales = m->scales;
    const int64_t groups = moei_i64_ceil_div(m->k, m->block_k);
    const bool e8m0 = p->scales == MOEI_HIP_SCALES_E8M0;
    uint8_t low;
    uint8_t high;
    moei_hip_scale_range(p->code, &low, &high);
    memset(to, e8m0 ? 127 : 0, (size_t)(p->zeros_at - p->scales_at));
    for (int64_t n = 0; n < m->n; n++) {
        const int64_t first = moei_w_scale_at(m, 0, n, 0);
        for (int64_t g = 0; g < groups; g++) {
            const uint8_t scale = scales[first + g * m->scale_k_stride];
            if (!any && (e8m0 ? scale < low || scale > high : (scale & 0x7F) == 0x7F)) {
                return refuse_scale(p, n, g, scale);
            }
            to[scale_at(p, n, g)] = scale;
        }
    }
    return MOE_OK;
}

static void unpack_scales(const moei_hip_packed *p, const uint8_t *from, const moei_matrices *m)
{
    uint8_t *scales = (uint8_t *)(uintptr_t)m->scales;
    for (int64_t n = 0; n < m->n; n++) {
        const int64_t first = moei_w_scale_at(m, 0, n, 0);
        for (int64_t g = 0; g < moei_i64_ceil_div(m->k, m->block_k); g++) {
            scales[first + g * m->scale_k_stride] = from[scale_at(p, n, g)];
        }
    }
}

static int64_t output_of(const moei_matrices *m, int64_t r)
{
    return r < m->n ? r : -1;
}

// ---- an expert ---------------------------------------------------------------------------------

moe_status moei_hip_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to)
{
    const moei_hip_packed p = moei_hip_packed_of(from, for_cdna4(kernel));
    pack_codes(&p, from, to);
    if (p.scales != MOEI_HIP_SCALES_APART) {
        return pack_scales(&p, from, kernel->arith == MOEI_ARITH_MFMA_MX_K128, to + p.scales_at);
    }
    if (p.groups > 0) {
        moei_gpu_pack_apart(from, output_of, p.outputs, p.groups, to + p.scales_at,
                            from->zeros != NULL ? to + p.zeros_at : NULL);
    }
    return MOE_OK;
}

void moei_hip_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    const moei_hip_packed p = moei_hip_packed_of(to, for_cdna4(kernel));
    unpack_codes(&p, from, to);
    if (p.scales != MOEI_HIP_SCALES_APART) {
        unpack_scales(&p, from + p.scales_at, to);
    } else if (p.groups > 0) {
        moei_gpu_unpack_apart(from + p.scales_at, to->zeros != NULL ? from + p.zeros_at : NULL,
                              output_of, p.outputs, p.groups, to);
    }
}
