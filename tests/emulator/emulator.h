// SPDX-License-Identifier: Apache-2.0
// The emulator of gfx942 and gfx950 machine code: what its files share. docs/emulator.md says what
// is modelled; runtime.c begins with how the folder is organised.
#ifndef MOE_EMULATOR_H
#define MOE_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    EMU_LANES = 64,
    EMU_VGPRS = 512, // v0 .. v255, then a0 .. a255
    EMU_AGPR0 = 256,
    EMU_SGPRS = 128,
    EMU_VCC = 106,
    EMU_M0 = 124,
    EMU_EXEC = 126,
    EMU_MAX_OPERANDS = 6,
    EMU_MAX_WAVES = 16
};

typedef enum emu_arch { EMU_GFX942 = 1, EMU_GFX950 = 2, EMU_ANY = 3 } emu_arch;

typedef struct emu_wave emu_wave;
typedef struct emu_group emu_group;
typedef struct emu_inst emu_inst;
typedef struct emu_launch emu_launch;
typedef void (*emu_fn)(emu_wave *w, const emu_inst *in);

/// What the operands of a row are read as: it says how a constant in the text becomes bits and
/// which bit a minus sign or bars change.
typedef enum emu_type {
    EMU_TYPE_U32,
    EMU_TYPE_U16,
    EMU_TYPE_U64, // a literal has zeros above
    EMU_TYPE_I64, // a literal has its sign above
    EMU_TYPE_F32,
    EMU_TYPE_F16,
    EMU_TYPE_P16, // two of 16 bits; op_sel is the function's
    EMU_TYPE_F64,
    EMU_TYPE_TEXT // operands are not parsed
} emu_type;

/// One instruction that the emulator knows. Suffixes _e32, _e64, _sdwa and _dpp are not part of the
/// name.
typedef struct emu_row {
    const char *name;
    emu_fn run;
    uint8_t type;   // emu_type
    uint8_t archs;  // of emu_arch
    uint8_t detail; // whatever the function wants to know
} emu_row;

typedef enum emu_kind {
    EMU_NONE, // "off"
    EMU_VECTOR,
    EMU_SCALAR,
    EMU_CONST,
    EMU_SCC
} emu_kind;

/// An operand, resolved when the program is decoded.
typedef struct emu_operand {
    uint8_t kind;  // emu_kind
    uint8_t words; // registers
    uint8_t plain; // a vector register as it is: nothing to select or to change
    uint8_t sel;   // SDWA: emu_select
    uint8_t sext;  // SDWA
    uint8_t literal;
    uint16_t reg;
    uint32_t keep, flip; // of the last word, for |x| and -x
    uint32_t value[2];
} emu_operand;

typedef enum emu_select {
    EMU_DWORD,
    EMU_BYTE_0,
    EMU_BYTE_1,
    EMU_BYTE_2,
    EMU_BYTE_3,
    EMU_WORD_0,
    EMU_WORD_1
} emu_select;

typedef enum emu_unused { EMU_PAD, EMU_SEXT, EMU_PRESERVE } emu_unused;

struct emu_inst {
    emu_fn run;
    const emu_row *row;
    uint32_t address; // in the object
    uint32_t target;  // index of the instruction to branch to
    int32_t offset, offset0, offset1;
    uint8_t num;
    uint8_t special;           // SDWA or DPP
    uint8_t op_sel, op_sel_hi; // bit k: operand k of the sources; bit of the result last
    uint8_t neg_lo, neg_hi;
    uint8_t clamp, omod; // omod: 1 x 2, 2 x 4, 3 / 2
    uint8_t sdwa, dst_sel, dst_unused;
    uint8_t dpp, row_mask, bank_mask, bound_ctrl;
    uint8_t cbsz, blgp, abid, bitop3, sc0;
    uint8_t dpp_from[EMU_LANES]; // lane from which a lane reads; EMU_LANES: none
    emu_operand o[EMU_MAX_OPERANDS];
    const char *text; // as the disassembler wrote it
};

/// The instructions of a kernel.
typedef struct emu_code {
    emu_inst *inst;
    size_t num;
    uint32_t first, bytes; // addresses in the object
    uint32_t *index;       // of address first + 4 i; UINT32_MAX: no instruction begins there
    char *text;
} emu_code;

typedef struct emu_kernel {
    char name[96];
    uint32_t entry, bytes;
    uint32_t lds_bytes, private_bytes, kernarg_bytes, rsrc1, rsrc2, rsrc3;
    uint32_t properties, preload;
    struct emu_object *object;
    emu_code *code;          // decoded when first launched
    const emu_inst *unknown; // its first instruction that cannot run, else NULL
} emu_kernel;

/// A loaded code object.
typedef struct emu_object {
    uint8_t *file; // the ELF file
    size_t file_bytes;
    uint8_t *image; // as loaded; address 0 of the object is image[0]
    size_t image_bytes;
    emu_arch arch;
    emu_kernel *kernels;
    size_t num_kernels;
    emu_code *code; // of all kernels, where the object is small
} emu_object;

typedef enum emu_stop { EMU_RUNS, EMU_AT_BARRIER, EMU_YIELDS, EMU_ENDED, EMU_FAILED } emu_stop;

struct emu_wave {
    uint32_t v[EMU_VGPRS][EMU_LANES];
    uint32_t s[EMU_SGPRS];
    uint32_t mask[EMU_LANES]; // ~0 where mask_exec has a bit
    uint64_t mask_exec;
    emu_group *group;
    const emu_inst *code;
    size_t pc; // index of the next instruction
    int stop;  // emu_stop
    uint32_t scc;
    uint32_t index_mode; // s_set_gpr_idx_on: bits src0, src1, src2, dst
    uint32_t mode;       // the MODE register
    unsigned id;
    size_t last_range; // of the last access
    uint8_t *scratch;  // private bytes of lane 0, then of lane 1 ...
    const emu_inst *now;
};

/// Who touched four bytes of LDS since the last barrier.
typedef struct emu_tag {
    uint32_t write_epoch, read_epoch, atomic; // atomic: the epoch of the last atomic access
    uint8_t writer, reader;                   // wave + 1, EMU_BYTES or EMU_MANY
    uint8_t written;                          // bytes ever written
    uint8_t fresh, seen;                      // bytes written in write_epoch, read in read_epoch
} emu_tag;

// Several waves: to different bytes; to the same ones.
enum { EMU_BYTES = 254, EMU_MANY = 255 };

struct emu_group {
    emu_launch *launch;
    uint32_t at[3];
    unsigned num_waves;
    emu_wave *waves;
    uint8_t *scratch;
    uint8_t *lds;
    emu_tag *tags;
    uint32_t lds_bytes;
    uint32_t epoch;
    unsigned order[EMU_MAX_WAVES];
    uint64_t random;
};

/// Memory that a kernel may touch.
typedef struct emu_range {
    uint64_t begin, end;
    bool read_only;
    const char *what;
} emu_range;

/// What is wrong with the device.
typedef enum emu_fault {
    EMU_FAULT_NONE,
#define EMU_FAULT(id, name) EMU_FAULT_##id,
#include "emulator/faults.def"
#undef EMU_FAULT
    EMU_FAULT_UNKNOWN
} emu_fault;

struct emu_launch {
    const emu_kernel *kernel;
    emu_arch arch;
    uint32_t grid[3], block[3]; // in blocks; in threads
    emu_range *ranges;          // sorted
    size_t num_ranges;
    uint64_t steps, max_steps;
    uint64_t *runs;  // of each instruction of the code object; NULL: they are not counted
    uint64_t order;  // MOE_EMULATOR_ORDER
    int sum;         // MOE_EMULATOR_SUM
    int approx;      // MOE_EMULATOR_APPROX
    emu_fault fault; // MOE_EMULATOR_FAULT
    bool lds_races, lds_unwritten, strict_barriers;
    char *error;
    size_t error_bytes;
};

// ---- decode.c
/// Rows of the instruction set, for machines with and without AVX2 and FMA.
const emu_row *emu_find_row(const char *name, emu_arch arch);
size_t emu_num_rows(void);
const emu_row *emu_row_at(size_t i);
/// Parses the disassembler's text, which it keeps. NULL without memory.
emu_code *emu_decode(char *text, emu_arch arch);
void emu_code_free(emu_code *code);
/// The first instruction between two addresses that cannot run, or NULL.
const emu_inst *emu_find_unknown(const emu_code *code, uint32_t begin, uint32_t end);

// ---- object.c
/// Reads an ELF code object. NULL with a reason in `error`.
emu_object *emu_object_load(const void *data, size_t bytes, char *error, size_t error_bytes);
size_t emu_elf_bytes(const void *data); // from its headers; 0: not an ELF file of AMD's
emu_arch emu_elf_arch(const void *data);
/// Disassembles and decodes a kernel. False with a reason in `error`.
bool emu_kernel_decode(emu_kernel *k, char *error, size_t error_bytes);
void emu_object_free(emu_object *o);

// ---- machine.c
/// Runs a kernel to its end. False with a reason in l->error.
bool emu_run(emu_launch *l, unsigned dynamic_lds, const void *kernarg, const void *packet);
/// Ends the launch: the wave, the instruction, then the message.
void emu_fail(emu_wave *w, int lane, const char *format, ...) __attribute__((format(printf, 3, 4)));
/// The memory behind an address of a lane, or NULL after a failure.
void *emu_memory(emu_wave *w, int lane, uint64_t address, uint32_t bytes, bool write);
/// The same in LDS; atomic accesses do not race with one another.
typedef enum emu_access { EMU_READ, EMU_WRITE, EMU_ATOMIC } emu_access;
void *emu_lds(emu_wave *w, int lane, uint32_t address, uint32_t bytes, emu_access access,
              const void *data);
/// High halves of the flat addresses of LDS and of private memory.
enum { EMU_SHARED_APERTURE = 0x00010000, EMU_PRIVATE_APERTURE = 0x00020000 };

// ---- instruction files: each is built twice
#define EMU_JOIN_(a, b) a##b
#define EMU_JOIN(a, b)  EMU_JOIN_(a, b)
#ifndef EMU_BUILD
#define EMU_BUILD _base
#endif
typedef struct emu_rows {
    const emu_row *row;
    size_t num;
} emu_rows;
#define EMU_ROWS_OF(family) EMU_JOIN(emu_rows_##family, EMU_BUILD)
#define EMU_FAMILIES(X)     X(vector) X(compare) X(convert) X(scalar) X(global) X(shared) X(matrix)

#endif
