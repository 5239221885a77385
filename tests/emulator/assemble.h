// SPDX-License-Identifier: Apache-2.0
// Kernels in assembly, for tests of the emulator.
#ifndef MOE_EMULATOR_ASSEMBLE_H
#define MOE_EMULATOR_ASSEMBLE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator/emulator.h"

static inline const char *cpu_of(emu_arch arch)
{
    return arch == EMU_GFX942 ? "gfx942" : "gfx950";
}

/// Where kernels are written to; NULL with a message.
static inline FILE *assembly_open(const char *folder, const char *name, emu_arch arch)
{
    char source[512];
    (void)snprintf(source, sizeof source, "%s/%s_%s.s", folder, name, cpu_of(arch));
    FILE *f = fopen(source, "w");
    if (f == NULL) {
        (void)fprintf(stderr, "cannot write %s\n", source);
    }
    return f;
}

/// The code object of what was written; NULL with a message.
static inline emu_object *assembly_close(FILE *f, const char *folder, const char *name,
                                         emu_arch arch)
{
    char command[1600];
    char object[512];
    char error[256] = "";
    if (f == NULL || fclose(f) != 0) {
        return NULL;
    }
    (void)snprintf(object, sizeof object, "%s/%s_%s.hsaco", folder, name, cpu_of(arch));
    (void)snprintf(
        command, sizeof command,
        "%s -target amdgcn-amd-amdhsa -mcpu=%s -nostdlib -x assembler '%s/%s_%s.s' -o '%s'",
        EMU_CLANG, cpu_of(arch), folder, name, cpu_of(arch), object);
    if (system(command) != 0) {
        (void)fprintf(stderr, "failed: %s\n", command);
        return NULL;
    }
    f = fopen(object, "rb");
    const size_t room = (size_t)16 << 20;
    uint8_t *bytes = f != NULL ? malloc(room) : NULL;
    emu_object *o = NULL;
    if (bytes != NULL) {
        o = emu_object_load(bytes, fread(bytes, 1, room, f), error, sizeof error);
    }
    if (o == NULL) {
        (void)fprintf(stderr, "%s: %s\n", object, error);
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    free(bytes);
    return o;
}

static inline emu_kernel *assembly_kernel(emu_object *o, const char *name)
{
    for (size_t i = 0; i < o->num_kernels; i++) {
        if (strcmp(o->kernels[i].name, name) == 0) {
            return &o->kernels[i];
        }
    }
    return NULL;
}

static inline void sort_ranges(emu_range *r, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++) {
        for (size_t j = 0; j + 1 < n; j++) {
            if (r[j].begin > r[j + 1].begin) {
                const emu_range other = r[j];
                r[j] = r[j + 1];
                r[j + 1] = other;
            }
        }
    }
}

/// The begin of a kernel, up to its first instruction, and what follows its last.
static inline void kernel_begins(FILE *f, const char *name)
{
    (void)fprintf(f, ".text\n.p2align 8\n.globl %s\n.type %s,@function\n%s:\n", name, name, name);
}

static inline void kernel_ends(FILE *f, const char *name, const char *more)
{
    (void)fprintf(f,
                  ".size %s, .-%s\n.section .rodata,\"a\"\n.p2align 6\n.amdhsa_kernel %s\n"
                  ".amdhsa_user_sgpr_kernarg_segment_ptr 1\n.amdhsa_user_sgpr_count 2\n"
                  ".amdhsa_system_sgpr_workgroup_id_x 1\n.amdhsa_kernarg_size 16\n"
                  ".amdhsa_next_free_vgpr 128\n.amdhsa_accum_offset 64\n"
                  ".amdhsa_next_free_sgpr 96\n%s.end_amdhsa_kernel\n",
                  name, name, name, more);
}

#endif
