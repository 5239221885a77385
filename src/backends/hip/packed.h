// SPDX-License-Identifier: Apache-2.0
// Packed weights. An expert is
//   codes  tiles of 16 outputs x 16 bytes of k, as AITER's shuffle (16, 16) has them: byte kb of
//          output n at (n / 16) * 16 * row_bytes + (kb / 16) * 256 + (n % 16) * 16 + kb % 16.
//          A wave that reads what its matrix instruction wants of 16 outputs reads it in one piece
//   then, by the kind of scales:
//     in codes' units (e8m0 or e4m3 a byte): gfx950, e8m0: the CDNA4 layout of scales, byte (n, g)
//     at
//          (n / 32) * 32 * groups + (g / 8) * 256 + (g % 4) * 64 + (n % 16) * 4 + (g / 4 % 2) * 2 +
//          (n / 16 % 2), outputs padded to 32, groups to 8. Else: for 16 outputs and 128 k after
//          each other, [output][groups of the 128 k]
//     apart: f32 [groups][outputs, padded to 16]; then zero points, a byte each, the same
// Codes are those of canonical memory, but that int8 is offset binary (code ^ 0x80, zero point 128)
// and six-bit floats are the same number as e4m3. k is padded to 128 (bf16: to 32), outputs to 16;
// padding is 0, e8m0 scales of it 127. Gate and up rows stay in their order.
#ifndef MOEI_HIP_PACKED_H
#define MOEI_HIP_PACKED_H

#include "moe/backend.h"
#include "numerics/hd.h"

/// How codes are decoded.
typedef enum moei_hip_code {
    MOEI_HIP_CODE_BF16,
    MOEI_HIP_CODE_MXFP4,
    MOEI_HIP_CODE_NVFP4,
    MOEI_HIP_CODE_U4,
    MOEI_HIP_CODE_U8,   // int8, too
    MOEI_HIP_CODE_E4M3, // six-bit floats, too
    MOEI_HIP_CODE_E4M3FNUZ,
    MOEI_HIP_CODE_E5M2,
    MOEI_HIP_NUM_CODES
} moei_hip_code;

/// How scales along k lie.
typedef enum moei_hip_scales {
    MOEI_HIP_SCALES_APART, // f32 [groups][outputs]; a sum of codes is multiplied. Or there are none
    MOEI_HIP_SCALES_E8M0,  // a byte per 32 k, decoded with the codes
    MOEI_HIP_SCALES_E4M3   // a byte per 16 k, decoded with the codes
} moei_hip_scales;

/// An expert's block: offsets in bytes.
typedef struct moei_hip_packed {
    moei_hip_code code;
    moei_hip_scales scales;
    bool cdna4;                  // e8m0 scales lie in the CDNA4 layout
    int32_t row_bytes;           // of codes, padded
    int32_t outputs;             // padded: pitch of scales and zero points that lie apart
    int32_t groups;              // of scales along k; in the CDNA4 layout padded to 8
    int64_t scales_at, zeros_at; // equal: there are no scales; zeros_at == bytes: no zero points
    int64_t bytes;
} moei_hip_packed;

#ifdef __cplusplus
extern "C" {
#endif

/// False where weights of the format have no packed form whose products are exact.
bool moei_hip_packed_takes(const moei_format_info *format, moei_hip_code *code,
                           moei_hip_scales *scales);

/// e8m0 scales that a packed form takes: products of codes with them are normal bf16.
void moei_hip_scale_range(moei_hip_code code, uint8_t *low, uint8_t *high);

/// Zero point of packed codes without one per group; -1: they have none.
int32_t moei_hip_zero_point(const moei_format_info *format);

/// `m`: as packed_bytes and kernels have it. `cdna4`: of the kernel's architecture.
moei_hip_packed moei_hip_packed_of(const moei_matrices *m, bool cdna4);

/// Members of the vtable.
size_t moei_hip_packed_bytes(const moei_kernel *kernel, const moei_matrices *m);
moe_status moei_hip_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to);
void moei_hip_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to);

#ifdef __cplusplus
}
#endif
#endif
