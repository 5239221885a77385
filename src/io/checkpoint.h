// SPDX-License-Identifier: Apache-2.0
// Inside libmoe_io: the tensors of a checkpoint in ascending order of their names, for who looks
// for families of names.
#ifndef MOEI_IO_CHECKPOINT_H
#define MOEI_IO_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "moe/io.h"

/// Name i of all, ascending by bytes; i < moe_checkpoint_count.
const char *moei_checkpoint_sorted(const moe_checkpoint *checkpoint, size_t i);

/// View of tensor i in that order. Errors: DTYPE.
moe_status moei_checkpoint_view(const char *call, const moe_checkpoint *checkpoint, size_t i,
                                moe_tensor *out);

/// The first i whose name is not below `prefix`: names that begin with it follow one another there.
size_t moei_checkpoint_lower(const moe_checkpoint *checkpoint, const char *prefix);

/// What tells one of the checkpoint's files from another: a hash of its header, and of data all
/// over it. Not of all its data: a change of few bytes can be missed.
struct moei_identity {
    const char *name; ///< "" where the checkpoint is one file
    uint64_t bytes, hash;
};
size_t moei_checkpoint_files(const moe_checkpoint *checkpoint);
struct moei_identity moei_checkpoint_identity(const moe_checkpoint *checkpoint, size_t i);

/// What messages call the checkpoint.
const char *moei_checkpoint_label(const moe_checkpoint *checkpoint);

#endif
