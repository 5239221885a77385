// SPDX-License-Identifier: Apache-2.0
/// @file io.h  libmoe_io: files. Strict safetensors reader, and the table from a model's
/// configuration to a layer descriptor. Link with -lmoe_io -lmoe.
#ifndef MOE_IO_H
#define MOE_IO_H

#include "moe/plan.h"
#include "moe/types.h"
#include "moe/weights.h"

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

/// A tensor to write, and a string of the header's __metadata__.
typedef struct moe_file_entry {
    const char *name;
    moe_tensor tensor;
} moe_file_entry;
typedef struct moe_file_pair {
    const char *key;
    const char *value;
} moe_file_pair;

/// Writes a safetensors file that moe_file_open reads: a new file beside `path`, forced to the disk
/// and then given that name, so that `path` is the old file or the whole new one whatever happens.
/// Tensors are stored compact, wider elements first, then by name; the same arguments give the same
/// bytes.
/// @param[in] entries   host memory; any strides but that elements of less than a byte must be
///                      compact
/// @param[in] metadata  may be NULL with count 0
/// Errors: ARGUMENT (a name twice, "__metadata__", text that is not UTF-8), SHAPE, DTYPE (a type
/// that the format lacks), OVERFLOW, LIMIT, IO, NO_MEMORY. After an error no new file is left.
/// Since 0.1.
MOE_API moe_status moe_file_write(const char *path, const moe_file_entry *entries, size_t count,
                                  const moe_file_pair *metadata, size_t metadata_count);

/// A checkpoint: one safetensors file, or a folder with model.safetensors.index.json or
/// model.safetensors. Shards that the index names but the folder lacks, or of the same set
/// ("<stem>-N-of-M.safetensors") that the folder has and the index does not name; tensors that the
/// index places in a shard that does not hold them, or does not place; and shard names that are not
/// plain file names are refused by name.
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

// -- One layer of a checkpoint --------------------------------------------------------------------

/// The Mixture-of-Experts layer of a checkpoint, in whichever of the public dialects it is stored:
/// names, packings, and whether a scale multiplies or divides are rows of src/io/dialects.def
/// (docs/checkpoints.md). Everything about its tensors is checked at open. Immutable; any number of
/// threads may use it. The checkpoint must outlive it.
///   moe_checkpoint_layer_open -> _desc -> moe_plan_create -> _wraps or _bytes, _load -> moe_run
typedef struct moe_checkpoint_layer moe_checkpoint_layer;

/// One past the largest number N of a tensor named ...layers.N...., 0 where there is none. Parts of
/// a model beside the language model (vision, audio, prediction heads) do not count. Since 0.1.
MOE_API int32_t moe_checkpoint_layers(const moe_checkpoint *checkpoint);

/// 1 where layer `layer` has tensors of routed experts, 0 where it has none (a dense layer).
/// Since 0.1.
MOE_API int moe_checkpoint_has_experts(const moe_checkpoint *checkpoint, int32_t layer);

/// Finds and checks a layer's tensors.
/// @param[in]  config  text of config.json; sizes and arrangement come from it, and its
///                     quantization_config must agree with the tensors (a checkpoint without one
///                     speaks for itself)
/// @param[in]  layer   0 the first
/// @param[out] out     untouched on failure
/// Errors: those of moe_layer_desc_from_config_layer; NOT_FOUND (the layer has no experts, or a
/// tensor is missing), MALFORMED (a tensor too many, or of another shape or dtype; two dialects at
/// once; configuration and tensors disagree), UNSUPPORTED (a variant that the library does not
/// compute), NO_MEMORY. Messages name the tensor and both values. Since 0.1.
MOE_API moe_status moe_checkpoint_layer_open(const moe_checkpoint *checkpoint, const char *config,
                                             size_t config_size, int32_t layer,
                                             moe_checkpoint_layer **out);

/// NULL is fine. Weights that were loaded in place must be gone. Since 0.1.
MOE_API void moe_checkpoint_layer_close(moe_checkpoint_layer *layer);

/// How the routed experts are stored ("gpt-oss MXFP4"), and the shared ones (NULL: none).
/// Since 0.1.
MOE_API const char *moe_checkpoint_layer_dialect(const moe_checkpoint_layer *layer);
MOE_API const char *moe_checkpoint_layer_shared_dialect(const moe_checkpoint_layer *layer);

/// The configuration's model_type. Since 0.1.
MOE_API const char *moe_checkpoint_layer_class(const moe_checkpoint_layer *layer);

/// Sets what the checkpoint determines: sizes, routing, activation, shared experts as
/// moe_layer_desc_from_config_layer, and formats, scale dtypes, groups, zero points, biases and
/// arrangement of both products, as load gives them. Others are kept: x_dtype, max_tokens,
/// determinism, the quantisers of activations.
/// Errors: ARGUMENT, VERSION. Since 0.1.
MOE_API moe_status moe_checkpoint_layer_desc(const moe_checkpoint_layer *layer,
                                             moe_layer_desc *desc);

/// Tensors of the router; absent where the layer has none.
typedef struct moe_router_tensors {
    moe_tensor weight;          ///< [R, H], R = E + zero experts + shared scores; as stored
    moe_tensor bias;            ///< [R], as stored
    moe_tensor correction_bias; ///< f32 [E + zero experts], widened where stored narrower
    moe_tensor scale_tensor;    ///< f32 [1]
    moe_tensor hash_table;      ///< I32 or I64 [vocabulary, k]
} moe_router_tensors;

/// Views that live as long as the layer. Errors: ARGUMENT. Since 0.1.
MOE_API moe_status moe_checkpoint_layer_router(const moe_checkpoint_layer *layer,
                                               moe_router_tensors *out);

/// What a tensor of a layer is for.
typedef int32_t moe_tensor_role;
enum {
    MOE_ROLE_UNSET = 0,
    MOE_ROLE_VALUES = 1,
    MOE_ROLE_SCALES = 2,
    MOE_ROLE_SCALE2 = 3,    ///< second-level scale
    MOE_ROLE_ACT_SCALE = 4, ///< static scale of the input
    MOE_ROLE_ZERO_POINTS = 5,
    MOE_ROLE_BIAS = 6,
    MOE_ROLE_SHAPE = 7,       ///< the unpacked shape of packed values
    MOE_ROLE_GROUP_INDEX = 8, ///< the group of each column
    MOE_ROLE_ROUTER = 9,      ///< any tensor of the router
    MOE_ROLE_LINEAR = 10      ///< latent transforms, the gate and bias of a whole layer
};

/// One tensor of a layer, as stored.
typedef struct moe_layer_tensor {
    const char *name;
    moe_tensor tensor;
    moe_tensor_role role;
    moe_dtype element; ///< what the codes are, where the tensor says only U8, I8 or I32
    int32_t shared;    ///< 1: of the shared experts
    int32_t gemm;      ///< 0 or 1: of which product; -1: of neither
} moe_layer_tensor;

/// Visits every tensor that the layer uses, until `visit` returns non-zero. Since 0.1.
MOE_API moe_status moe_checkpoint_layer_visit(const moe_checkpoint_layer *layer,
                                              int (*visit)(void *self, const moe_layer_tensor *t),
                                              void *self);

/// Memory of the layer's packed weights, for moe_checkpoint_layer_load: moe_weights_bytes of the
/// plan, once the plan has been found to be of this layer.
/// @param[in] plan  of this layer's descriptor
/// Errors: ARGUMENT, SHAPE (the plan is of another layer; both values), NOT_FOUND (the quantiser
/// needs a scale that the checkpoint lacks), VALUE, OVERFLOW. Since 0.1.
MOE_API moe_status moe_checkpoint_layer_bytes(const moe_checkpoint_layer *layer,
                                              const moe_plan *plan, size_t *bytes, size_t *align);

/// Whether the tensors can be used where they lie, without memory (moe_checkpoint_layer_load with
/// NULL): stacked experts in the library's own arrangement, a plan whose classes have rows that
/// read it, a device without memory of its own. Packed weights may be faster; the bits are the
/// same.
/// @param[out] wraps  1, or 0 with the reason in moe_last_error
/// Errors: those of moe_checkpoint_layer_bytes; VALUE (a scale that is not finite), NO_MEMORY.
/// Since 0.1.
MOE_API moe_status moe_checkpoint_layer_wraps(const moe_checkpoint_layer *layer,
                                              const moe_plan *plan, int *wraps);

/// Makes the layer's weights for moe_run. With `memory` (of the plan's device), packs expert by
/// expert on the threads of the plan's context (a device's memory: on one), each with scratch of at
/// most one expert; with NULL, wraps the tensors where they
/// lie, and the layer and its checkpoint must outlive the weights. Divisors become multipliers by
/// one f32 division. Activation quantisers with a given scale take it from the checkpoint: the
/// largest input scale of all experts (NVFP4: the least global).
/// @param[out] out  untouched on failure; release with moe_weights_destroy
/// Errors: those of _bytes, of moe_weights_create and moe_weights_pack (memory) or moe_weights_wrap
/// (none). Since 0.1.
MOE_API moe_status moe_checkpoint_layer_load(const moe_checkpoint_layer *layer,
                                             const moe_plan *plan, void *memory, size_t bytes,
                                             moe_weights **out);

// -- Packed files ---------------------------------------------------------------------------------

/// Weights of a checkpoint's layers as plans want them, packed once and mapped by every later start
/// (docs/packed-files.md has the format). A file names the layout of each layer
/// (moe_weights_layout) and the checkpoint's files that it was made from, and every byte of it is
/// under a checksum. Damage, truncation, another version, byte order, layout or checkpoint are
/// refused with both values. Immutable; any number of threads may use it.
///   moe_packed_write                                    once
///   moe_packed_open -> moe_packed_adopt -> moe_run      at every start
typedef struct moe_packed moe_packed;

#define MOE_PACKED_MAGIC "moe-pack" ///< the first bytes of such a file

/// A layer to write: of the checkpoint, and a plan of its descriptor.
typedef struct moe_packed_entry {
    int32_t layer;
    const moe_checkpoint_layer *source;
    const moe_plan *plan;
} moe_packed_entry;

/// Packs layers and writes them, as moe_file_write: `path` is the old file or the whole new one
/// whatever happens. Each layer is packed where it lies in the file, which is mapped: besides the
/// file's pages, which the system writes out as it likes, it takes the scratch of one expert a
/// thread, as moe_checkpoint_layer_load (on a device with memory of its own, also the layer there).
/// The same arguments give the same bytes.
/// @param[in] entries  in ascending order of layers; layers of `checkpoint`
/// @param[in] done     called after each entry with its index; may be NULL
/// Errors: ARGUMENT, those of moe_weights_layout and moe_checkpoint_layer_load; LIMIT, OVERFLOW, IO
/// (also no room on the disk), NO_MEMORY. After an error no new file is left. Since 0.1.
MOE_API moe_status moe_packed_write(const char *path, const moe_checkpoint *checkpoint,
                                    const moe_packed_entry *entries, size_t count,
                                    void (*done)(void *self, size_t i), void *self);

/// Opens a packed file and checks all but the layers' bytes, whose checksums moe_packed_adopt
/// checks.
/// @param[in]  checkpoint  what the file must have been made from: the same names, sizes, headers
///                         and samples of every file, else STATE. NULL, to look at it: nothing of
///                         it can be adopted
/// @param[in]  flags       MOE_FILE_*
/// @param[out] out         untouched on failure
/// Errors: ARGUMENT, IO, MALFORMED (what and where), VERSION, UNSUPPORTED (the other byte order),
/// STATE (another checkpoint, or an altered one), LIMIT, NO_MEMORY. Since 0.1.
MOE_API moe_status moe_packed_open(const char *path, const moe_checkpoint *checkpoint,
                                   uint32_t flags, moe_packed **out);

/// Opens the image of a packed file in memory, which must outlive it; `label` names it in messages.
/// Errors as moe_packed_open. Since 0.1.
MOE_API moe_status moe_packed_open_memory(const void *bytes, size_t size, const char *label,
                                          const moe_checkpoint *checkpoint, moe_packed **out);

/// Closes a file; weights adopted from it must be gone. NULL is fine. Since 0.1.
MOE_API void moe_packed_close(moe_packed *packed);

/// A layer of a packed file.
typedef struct moe_packed_part {
    int32_t layer;
    const char *layout; ///< of moe_weights_layout
    const void *data;   ///< in the file, at a multiple of 4096 bytes of it
    size_t bytes;
    uint64_t checksum; ///< XXH3, 64 bits, of the bytes and the zeros up to the next 4096
} moe_packed_part;

/// Number of layers, and layer i in ascending order. Errors: ARGUMENT. Since 0.1.
MOE_API size_t moe_packed_count(const moe_packed *packed);
MOE_API moe_status moe_packed_part_at(const moe_packed *packed, size_t i, moe_packed_part *out);

/// A file of the checkpoint that a packed file was made from.
typedef struct moe_packed_source {
    const char *name; ///< within its folder; "" where the checkpoint is one file
    uint64_t bytes;
    uint64_t identity; ///< XXH3, 64 bits, of its header and of samples of its data
} moe_packed_source;

/// Number of those files, and file i. Errors: ARGUMENT. Since 0.1.
MOE_API size_t moe_packed_sources(const moe_packed *packed);
MOE_API moe_status moe_packed_source_at(const moe_packed *packed, size_t i, moe_packed_source *out);

/// Reads a layer's bytes and compares their checksum. Errors: ARGUMENT, NOT_FOUND, MALFORMED (both
/// checksums). Since 0.1.
MOE_API moe_status moe_packed_verify(const moe_packed *packed, int32_t layer);

/// A layer's weights for moe_run: compares the layout, reads and verifies the bytes (which so are
/// in memory for the first run), and uses them where they lie. The file must outlive them.
/// @param[out] out  untouched on failure; release with moe_weights_destroy
/// Errors: those of moe_packed_verify and moe_weights_adopt; STATE (opened without its checkpoint),
/// UNSUPPORTED (a device with memory of its own: verify the layer, copy its bytes there and use
/// moe_weights_adopt). Since 0.1.
MOE_API moe_status moe_packed_adopt(const moe_packed *packed, int32_t layer, const moe_plan *plan,
                                    moe_weights **out);

/// What the numbers of a tensor are like.
typedef struct moe_tensor_stats {
    int64_t count, nan, infinite, negative;
    int64_t zero;    ///< also E8M0's 2^-127, which stands for it in blocks of zeros
    int64_t outside; ///< finite, not zero, and a magnitude below `low` or above `high`
} moe_tensor_stats;

/// Counts over a compact tensor of floating-point numbers; adds to *out.
/// @param[in] element  what the elements are (E8M0 in a tensor of U8); UNSET: the tensor's dtype
/// Errors: ARGUMENT, DTYPE (not f32, bf16, f16, an 8-bit float or e8m0). Since 0.1.
MOE_API moe_status moe_tensor_survey(const moe_tensor *tensor, moe_dtype element, float low,
                                     float high, moe_tensor_stats *out);

#ifdef __cplusplus
}
#endif
#endif
