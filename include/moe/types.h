// SPDX-License-Identifier: Apache-2.0
/// @file types.h  Element types, devices, tensor views and weight formats.
#ifndef MOE_TYPES_H
#define MOE_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include "moe/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Element type of a tensor view. Sub-byte types are packed, the element with the lower index in
/// the lower bits (4-bit: low nibble first; 6-bit: four codes in three bytes, little-endian).
typedef int32_t moe_dtype;
enum {
    MOE_DTYPE_UNSET = 0,
    MOE_F32 = 1,
    MOE_BF16 = 2,
    MOE_F16 = 3,
    MOE_F64 = 4,
    MOE_I8 = 5,
    MOE_U8 = 6,
    MOE_I16 = 7,
    MOE_U16 = 8,
    MOE_I32 = 9,
    MOE_U32 = 10,
    MOE_I64 = 11,
    MOE_U64 = 12,
    MOE_BOOL = 13,
    MOE_E4M3FN = 14,   ///< OCP OFP8 1.0 E4M3: max 448, no infinity, NaN 0x7F and 0xFF
    MOE_E4M3FNUZ = 15, ///< bias 8, max 240, no infinity, NaN 0x80, no negative zero
    MOE_E5M2 = 16,     ///< OCP OFP8 1.0 E5M2: max 57344, infinities and NaN as IEEE
    MOE_E5M2FNUZ = 17, ///< bias 16, max 57344, NaN 0x80
    MOE_E8M0 = 18,     ///< OCP MX 1.0 scale: 2^(code - 127), 255 is NaN
    MOE_E2M1 = 19,     ///< OCP MX 1.0 FP4: 0 0.5 1 1.5 2 3 4 6, bit 3 is the sign
    MOE_E2M3 = 20,     ///< OCP MX 1.0 FP6 E2M3: max 7.5
    MOE_E3M2 = 21,     ///< OCP MX 1.0 FP6 E3M2: max 28
    MOE_INT4 = 22,     ///< two's complement nibble, -8..7
    MOE_UINT4 = 23     ///< nibble 0..15
};

/// Name as spelt in kernel names ("bf16", "e4m3fn"); "unknown dtype" for other values.
MOE_API const char *moe_dtype_name(moe_dtype dtype);

/// Bits of one element (4, 6, 8, 16, 32, 64); 0 for MOE_DTYPE_UNSET and unknown values.
MOE_API int moe_dtype_bits(moe_dtype dtype);

/// Where memory lives. Numbers equal DLPack's DLDeviceType.
typedef int32_t moe_device_type;
enum {
    MOE_DEVICE_UNSET = 0, ///< in a context: the CPU; in a view: the context's device
    MOE_DEVICE_CPU = 1,
    MOE_DEVICE_CUDA = 2,
    MOE_DEVICE_HIP = 10,
    MOE_DEVICE_EXT = 12 ///< another plugin's own
};

/// Name ("cpu", "cuda", "hip", "ext").
MOE_API const char *moe_device_name(moe_device_type type);

#define MOE_MAX_DIMS 4

/// A view of memory that somebody else owns; the meaning of DLPack's DLTensor, without pointers
/// to shape and stride so that a view can be copied and kept.
///   element (i0, i1, ..) lies at data + byte_offset + (i0*stride[0] + i1*stride[1] + ..) elements
/// Strides are in elements and may exceed the compact ones; the last dimension of a sub-byte type
/// is packed and has stride 1. A view whose data is NULL is absent.
typedef struct moe_tensor {
    void *data;
    uint64_t byte_offset;
    moe_dtype dtype;
    moe_device_type device; ///< MOE_DEVICE_UNSET: the device of the context
    int32_t device_id;
    int32_t ndim; ///< 0..MOE_MAX_DIMS
    int64_t shape[MOE_MAX_DIMS];
    int64_t stride[MOE_MAX_DIMS];
} moe_tensor;

/// Fills a compact row-major view; dimensions past ndim are ignored. Never fails: a view that
/// makes no sense is refused by the call that gets it.
static inline moe_tensor moe_tensor_make(const void *data, moe_dtype dtype, int32_t ndim,
                                         const int64_t *shape)
{
    moe_tensor t;
    int64_t step = 1;
    int32_t i;
    t.data = (void *)(uintptr_t)data;
    t.byte_offset = 0;
    t.dtype = dtype;
    t.device = MOE_DEVICE_UNSET;
    t.device_id = 0;
    t.ndim = ndim;
    for (i = 0; i < MOE_MAX_DIMS; i++) {
        t.shape[i] = 1;
        t.stride[i] = 1;
    }
    for (i = ndim < MOE_MAX_DIMS ? ndim : MOE_MAX_DIMS; i-- > 0;) {
        t.shape[i] = shape[i];
        t.stride[i] = step;
        step = shape[i] > 0 && step > INT64_MAX / shape[i] ? INT64_MAX : step * shape[i];
    }
    return t;
}
static inline moe_tensor moe_tensor_1d(const void *data, moe_dtype dtype, int64_t n)
{
    return moe_tensor_make(data, dtype, 1, &n);
}
static inline moe_tensor moe_tensor_2d(const void *data, moe_dtype dtype, int64_t n0, int64_t n1)
{
    int64_t shape[2];
    shape[0] = n0;
    shape[1] = n1;
    return moe_tensor_make(data, dtype, 2, shape);
}
static inline moe_tensor moe_tensor_3d(const void *data, moe_dtype dtype, int64_t n0, int64_t n1,
                                       int64_t n2)
{
    int64_t shape[3];
    shape[0] = n0;
    shape[1] = n1;
    shape[2] = n2;
    return moe_tensor_make(data, dtype, 3, shape);
}

/// How an expert's matrix is stored: element type, scale granularity, scale type. The rows of
/// src/quant/formats.def; docs/formats.md describes each.
typedef int32_t moe_format;
enum {
    MOE_FORMAT_UNSET = 0,
    MOE_FORMAT_F32 = 1,
    MOE_FORMAT_BF16 = 2,
    MOE_FORMAT_F16 = 3,
    MOE_FORMAT_E4M3FN_TENSOR = 4,  ///< one f32 scale per expert (or per gate and up part)
    MOE_FORMAT_E4M3FN_CHANNEL = 5, ///< one f32 scale per output row
    MOE_FORMAT_E4M3FN_BLOCK = 6,   ///< one scale per 128 x 128 block (f32, bf16 or e8m0)
    MOE_FORMAT_E4M3FNUZ_TENSOR = 7,
    MOE_FORMAT_E4M3FNUZ_CHANNEL = 8,
    MOE_FORMAT_E4M3FNUZ_BLOCK = 9,
    MOE_FORMAT_E5M2_TENSOR = 10,
    MOE_FORMAT_E5M2_CHANNEL = 11,
    MOE_FORMAT_E5M2_BLOCK = 12,
    MOE_FORMAT_INT8_TENSOR = 13,
    MOE_FORMAT_INT8_CHANNEL = 14,
    MOE_FORMAT_INT8_BLOCK = 15,  ///< one scale per 128 x 128 block
    MOE_FORMAT_INT8_GROUP = 16,  ///< one scale per row and weight_group elements of k
    MOE_FORMAT_UINT8_GROUP = 17, ///< the same with codes 0..255 and a zero point (128)
    MOE_FORMAT_INT4_GROUP = 18,  ///< codes 0..15 and a zero point (8), group of 32, 64, 128
    MOE_FORMAT_MXFP4 = 19,       ///< OCP MX 1.0: e2m1, e8m0 per 32
    MOE_FORMAT_MXFP6_E2M3 = 20,
    MOE_FORMAT_MXFP6_E3M2 = 21,
    MOE_FORMAT_MXFP8_E4M3 = 22,
    MOE_FORMAT_MXFP8_E5M2 = 23,
    MOE_FORMAT_NVFP4 = 24 ///< e2m1, e4m3fn per 16, f32 second-level scale (a multiplier)
};

/// Name as spelt on the command line ("mxfp4", "e4m3fn_block"); "unknown format" otherwise.
MOE_API const char *moe_format_name(moe_format format);

/// Looks a name up; MOE_FORMAT_UNSET when there is none.
MOE_API moe_format moe_format_from_name(const char *name);

#ifdef __cplusplus
}
#endif
#endif
