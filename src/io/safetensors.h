// SPDX-License-Identifier: Apache-2.0
// Inside libmoe_io: the parsed header (safetensors_header.c), and what checkpoint.c needs of an
// open file beyond include/moe/io.h (safetensors.c).
#ifndef MOEI_IO_SAFETENSORS_H
#define MOEI_IO_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "moe/io.h"

/// A dtype of the format. One without a moe_dtype is known, so that its file opens, but its tensors
/// have no view.
struct moei_st_dtype {
    const char *name;
    uint8_t bits;
    uint8_t dtype;
};
extern const struct moei_st_dtype moei_st_dtypes[]; ///< ends with a NULL name

struct moei_st_tensor {
    const char *name;
    uint64_t begin; ///< of its bytes, from the start of the file's data
    uint64_t end;
    int64_t shape[MOE_MAX_DIMS]; ///< leading dimensions merged
    uint8_t dtype;               ///< index into moei_st_dtypes
    uint8_t ndim;                ///< 0..MOE_MAX_DIMS
};

struct moei_st_pair {
    const char *key;
    const char *value;
};

struct moei_st_header {
    char *names; ///< all strings, each ended by a NUL
    struct moei_st_tensor *tensors;
    size_t count;
    struct moei_st_pair *metadata;
    size_t metadata_count;
};

/// Parses a header, in its order: each tensor is checked by itself and against the data's size, but
/// not yet against the others.
/// @param[in]     call, label  prefix of messages
/// @param[in,out] out          zeroed by the caller, who frees it whether this fails or not
/// Errors: MALFORMED, LIMIT, NO_MEMORY.
moe_status moei_st_header_read(const char *call, const char *label, const unsigned char *text,
                               size_t size, uint64_t data_size, struct moei_st_header *out);

/// Releases and zeroes a header.
void moei_st_header_free(struct moei_st_header *header);

/// moe_file_open for a caller who names another function in messages.
moe_status moei_file_open(const char *call, const char *path, uint32_t flags, moe_file **out);

/// Tensor i < moe_file_count in file order.
const struct moei_st_tensor *moei_file_at(const moe_file *file, size_t i);

/// Tensor by name, NULL when the file has none of that name.
const struct moei_st_tensor *moei_file_find(const moe_file *file, const char *name);

/// Hash of a file's header and of samples of its data (of all, where these are few), and its size;
/// the file was opened by its name.
uint64_t moei_file_identity(const moe_file *file, uint64_t *bytes);

/// View of one of the file's tensors. Errors: DTYPE.
moe_status moei_file_view(const char *call, const moe_file *file,
                          const struct moei_st_tensor *tensor, moe_tensor *out);

#endif
