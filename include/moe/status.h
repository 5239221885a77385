// SPDX-License-Identifier: Apache-2.0
/// @file status.h  Result codes of every call that can fail.
///
/// The library never prints, aborts or exits: a call returns a code, and the thread's last
/// message (moe_last_error) names the call, the field and both values.
#ifndef MOE_STATUS_H
#define MOE_STATUS_H

#include <stdint.h>

#include "moe/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/// 0 is success; 10-29 the caller's arguments, 30-39 support, 40-49 resources, 50-59 files,
/// 60-69 devices. Values below 100 are pinned from version 1.0 on.
typedef int32_t moe_status;
enum {
    MOE_OK = 0,
    MOE_E_ARGUMENT = 10,  ///< a pointer is NULL or a value lies outside its range
    MOE_E_UNSET = 11,     ///< a field without a default was left unset (value 0)
    MOE_E_SHAPE = 12,     ///< a tensor's rank, shape or stride does not fit
    MOE_E_DTYPE = 13,     ///< a tensor's dtype does not fit
    MOE_E_OVERLAP = 14,   ///< tensors that must be distinct share memory
    MOE_E_OVERFLOW = 15,  ///< a product of dimensions does not fit in 63 bits
    MOE_E_VERSION = 16,   ///< a struct_size or ABI number that this library does not know
    MOE_E_ALIGNMENT = 17, ///< memory is not aligned as the query said
    MOE_E_STATE = 18,     ///< an object is not ready for this call
    MOE_E_VALUE = 19,     ///< data hold a value that has no meaning here (a NaN scale code)

    MOE_E_UNSUPPORTED = 30, ///< no implementation computes exactly this; the message says why
    MOE_E_NO_KERNEL = 31,   ///< every kernel refused; the message holds the nearest refusal
    MOE_E_LEVEL = 32,       ///< the determinism level cannot be held by what was asked

    MOE_E_NO_MEMORY = 40, ///< the allocator returned NULL
    MOE_E_WORKSPACE = 41, ///< the workspace is smaller than moe_plan_workspace said
    MOE_E_THREAD = 42,    ///< a thread or lock could not be created

    MOE_E_IO = 50,        ///< the operating system refused; the message has errno's text
    MOE_E_MALFORMED = 51, ///< a file is not what its format demands
    MOE_E_NOT_FOUND = 52, ///< a name is not in a file, table or folder
    MOE_E_LIMIT = 53,     ///< a file exceeds a stated limit

    MOE_E_DEVICE = 60 ///< a device or its driver failed; vendor code and text in the message
};

/// Name of a code ("MOE_E_SHAPE"), or "unknown status"; static storage. Since 0.1.
MOE_API const char *moe_status_name(moe_status status);

/// Message of the last failing call on this thread: at most 511 bytes, "" if none failed yet,
/// valid until the next failing call on the same thread. Since 0.1.
MOE_API const char *moe_last_error(void);

/// Records the thread's message and returns `code`. For libraries that stand on libmoe (libmoe_io,
/// plugins), so that one moe_last_error serves all. `format` as printf. Since 0.1.
MOE_API moe_status moe_fail(moe_status code, const char *format, ...) MOE_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif
#endif
