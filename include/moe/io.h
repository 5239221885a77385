// SPDX-License-Identifier: Apache-2.0
/// @file io.h  libmoe_io: files. Strict safetensors reader, and the table from a model's
/// configuration to a layer descriptor. Link with -lmoe_io -lmoe.
#ifndef MOE_IO_H
#define MOE_IO_H

#include "moe/plan.h"
#include "moe/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/// An open safetensors file, checked whole at open: header at most 100 MB, unique keys at every
/// depth, UTF-8, known dtypes, offsets ascending without hole or overlap, sizes that match the
/// shapes, data that end where the file ends. Immutable; any number of threads may read it.
/// Source: the safetensors format description (README and tensor.rs of the project).
typedef struct moe_file moe_file;

enum {
    MOE_FILE_DEFAULT = 0,
    MOE_FILE_NO_MMAP = 1 ///< read the file into memory instead of mapping it
};

/// Opens and checks one file.
/// @param[in]  path   a file
/// @param[in]  flags  MOE_FILE_*
/// @param[out] out    untouched on failure
/// Errors: ARGUMENT, IO, MALFORMED (what and where), LIMIT, NO_MEMORY. Since 0.1.
MOE_API moe_status moe_file_open(const char *path, uint32_t flags, moe_file **out);

/// Opens a file image in memory, which must outlive the moe_file. `label` names it in messages.
/// Errors as moe_file_open. Since 0.1.
MOE_API moe_status moe_file_open_memory(const void *bytes, size_t size, const char *label,
                                        moe_file **out);

/// Closes a file; views into it end. NULL is fine. Since 0.1.
MOE_API void moe_file_close(moe_file *file);

/// Number of tensors. Since 0.1.
MOE_API size_t moe_file_count(const moe_file *file);

/// Name of tensor i in file order (ascending data offset, then name), NULL past the end. Since 0.1.
MOE_API const char *moe_file_name(const moe_file *file, size_t i);

/// View of a tensor by name; its data lie in the file and must not be written. Tensors with more
/// than MOE_MAX_DIMS dimensions come with their leading ones merged into shape[0].
/// Errors: NOT_FOUND, DTYPE (C64 and the like have no moe_dtype). Since 0.1.
MOE_API moe_status moe_file_tensor(const moe_file *file, const char *name, moe_tensor *out);

/// Value of a key of the header's __metadata__, NULL when absent. Since 0.1.
MOE_API const char *moe_file_metadata(const moe_file *file, const char *key);

/// A checkpoint: one safetensors file, or a folder with model.safetensors.index.json or
/// model.safetensors. Shards that the index names but the folder lacks, tensors that the index
/// places in a shard that does not hold them, and shard names that are not plain file names are
/// refused by name.
typedef struct moe_checkpoint moe_checkpoint;

/// Errors: as moe_file_open, NOT_FOUND. Since 0.1.
MOE_API moe_status moe_checkpoint_open(const char *path, uint32_t flags, moe_checkpoint **out);
MOE_API void moe_checkpoint_close(moe_checkpoint *checkpoint);

/// Number of tensors in all shards, and their names in shard and file order. Since 0.1.
MOE_API size_t moe_checkpoint_count(const moe_checkpoint *checkpoint);
MOE_API const char *moe_checkpoint_name(const moe_checkpoint *checkpoint, size_t i);

/// As moe_file_tensor, over all shards. Since 0.1.
MOE_API moe_status moe_checkpoint_tensor(const moe_checkpoint *checkpoint, const char *name,
                                         moe_tensor *out);

// -- Configuration ------------------------------------------------------------------------------

/// Fills the sizes, the routing, activation, shared-expert and arrangement fields of a descriptor
/// from a model's config.json, through one table keyed by model class (src/io/config_table.def).
/// Formats, dtypes, max_tokens and the determinism level are the caller's. Arrangement (gate_up,
/// transposed) is that of the class's own fused tensors; in an MXFP4 checkpoint nothing is
/// transposed. Of a multimodal configuration the language model counts.
/// @param[in]     json  text of config.json; Python's NaN and Infinity are admitted
/// @param[in]     size  its bytes
/// @param[in,out] desc  fields that the configuration determines are set, others kept; untouched
///                      on failure
/// Errors: ARGUMENT, VERSION, MALFORMED, LIMIT, NOT_FOUND (a model class that the table lacks; the
/// message lists the nearest that it has, moe_config_class all), UNSUPPORTED (a value whose meaning
/// is not known, or one that differs by layer), NO_MEMORY. Thread safety: reentrant. Since 0.1.
MOE_API moe_status moe_layer_desc_from_config(const char *json, size_t size, moe_layer_desc *desc);

/// The same for one layer, 0 the first: takes the layer's entries of lists, and knows which layers
/// of a class route by token id. Since 0.1.
MOE_API moe_status moe_layer_desc_from_config_layer(const char *json, size_t size, int32_t layer,
                                                    moe_layer_desc *desc);

/// The i-th model class of the table (a value of model_type), NULL past the end. Since 0.1.
MOE_API const char *moe_config_class(size_t i);

/// Looks a tensor of an oracle case up by its checkpoint name; of *out only ndim and shape are
/// read. A status other than MOE_OK is forwarded.
typedef moe_status (*moe_shape_fn)(void *self, const char *name, moe_tensor *out);

/// As moe_layer_desc_from_config, from a case of an oracle file: a JSON object with H, I, E, k and
/// "semantics" (tests/oracles/README.md has the vocabulary). Weights of shared experts: gate rows
/// first, then up rows. A case without routed experts ("scoring": "none") becomes a layer with ids
/// given, and one expert of inner size 1 that no token is to choose.
/// @param[in] shape_of  gives the sizes of shared experts; may be NULL where there are none
/// Errors: those of moe_layer_desc_from_config; UNSUPPORTED names a key or value that the
/// vocabulary lacks. Thread safety: reentrant. Since 0.1.
MOE_API moe_status moe_layer_desc_from_semantics(const char *json, size_t size,
                                                 moe_shape_fn shape_of, void *self,
                                                 moe_layer_desc *desc);

#ifdef __cplusplus
}
#endif
#endif
