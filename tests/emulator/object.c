// SPDX-License-Identifier: Apache-2.0
// Code objects: ELF files as clang and lld write them for amdgcn-amd-amdhsa.
#include <elf.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "emulator/emulator.h"

extern char **environ;

enum {
    MACHINE_AMDGPU = 224,
    FLAGS_MACH = 0xFF,
    MACH_GFX942 = 0x4C,
    MACH_GFX950 = 0x4F,
    DESCRIPTOR = 64
};

emu_arch emu_elf_arch(const void *data)
{
    Elf64_Ehdr h;
    memcpy(&h, data, sizeof h);
    const unsigned mach = h.e_flags & FLAGS_MACH;
    return mach == MACH_GFX942 ? EMU_GFX942 : mach == MACH_GFX950 ? EMU_GFX950 : (emu_arch)0;
}

size_t emu_elf_bytes(const void *data)
{
    Elf64_Ehdr h;
    memcpy(&h, data, sizeof h);
    if (memcmp(h.e_ident, ELFMAG, SELFMAG) != 0 || h.e_ident[EI_CLASS] != ELFCLASS64 ||
        h.e_machine != MACHINE_AMDGPU || h.e_shentsize != sizeof(Elf64_Shdr)) {
        return 0;
    }
    // The section headers are what lld writes last.
    return (size_t)h.e_shoff + (size_t)h.e_shnum * h.e_shentsize;
}

static bool load_segments(emu_object *o)
{
    Elf64_Ehdr h;
    memcpy(&h, o->file, sizeof h);
    for (unsigned i = 0; i < h.e_phnum; i++) {
        Elf64_Phdr p;
        memcpy(&p, o->file + h.e_phoff + i * sizeof p, sizeof p);
        if (p.p_type == PT_LOAD && p.p_vaddr + p.p_memsz > o->image_bytes) {
            o->image_bytes = (size_t)(p.p_vaddr + p.p_memsz);
        }
    }
    o->image = calloc(1, o->image_bytes + 64);
    if (o->image == NULL) {
        return false;
    }
    for (unsigned i = 0; i < h.e_phnum; i++) {
        Elf64_Phdr p;
        memcpy(&p, o->file + h.e_phoff + i * sizeof p, sizeof p);
        if (p.p_type == PT_LOAD && p.p_offset + p.p_filesz <= o->file_bytes) {
            memcpy(o->image + p.p_vaddr, o->file + p.p_offset, (size_t)p.p_filesz);
        }
    }
    return true;
}

/// Calls `visit` for each symbol of the dynamic table. Returns how many there are.
static size_t each_symbol(const emu_object *o,
                          void (*visit)(emu_object *, const char *, const Elf64_Sym *),
                          emu_object *to)
{
    Elf64_Ehdr h;
    size_t n = 0;
    memcpy(&h, o->file, sizeof h);
    for (unsigned i = 0; i < h.e_shnum; i++) {
        Elf64_Shdr s;
        Elf64_Shdr strings;
        memcpy(&s, o->file + h.e_shoff + i * sizeof s, sizeof s);
        if (s.sh_type != SHT_DYNSYM || s.sh_link >= h.e_shnum) {
            continue;
        }
        memcpy(&strings, o->file + h.e_shoff + s.sh_link * sizeof strings, sizeof strings);
        for (size_t j = 0; j < s.sh_size / sizeof(Elf64_Sym); j++) {
            Elf64_Sym sym;
            memcpy(&sym, o->file + s.sh_offset + j * sizeof sym, sizeof sym);
            if (visit != NULL) {
                visit(to, (const char *)o->file + strings.sh_offset + sym.st_name, &sym);
            }
            n++;
        }
    }
    return n;
}

static uint32_t word_at(const uint8_t *p, unsigned offset)
{
    uint32_t v;
    memcpy(&v, p + offset, sizeof v);
    return v;
}

/// name.kd: a kernel descriptor.
static void visit_descriptor(emu_object *o, const char *name, const Elf64_Sym *sym)
{
    const size_t n = strlen(name);
    if (n < 4 || strcmp(name + n - 3, ".kd") != 0 || sym->st_value + DESCRIPTOR > o->image_bytes) {
        return;
    }
    emu_kernel *k = &o->kernels[o->num_kernels++];
    const uint8_t *d = o->image + sym->st_value;
    int64_t entry;
    (void)snprintf(k->name, sizeof k->name, "%.*s", (int)(n - 3), name);
    k->lds_bytes = word_at(d, 0);
    k->private_bytes = word_at(d, 4);
    k->kernarg_bytes = word_at(d, 8);
    memcpy(&entry, d + 16, sizeof entry);
    k->entry = (uint32_t)((int64_t)sym->st_value + entry);
    k->rsrc3 = word_at(d, 44);
    k->rsrc1 = word_at(d, 48);
    k->rsrc2 = word_at(d, 52);
    k->properties = word_at(d, 56) & 0xFFFFu;
    k->preload = word_at(d, 56) >> 16;
    k->object = o;
}

static void visit_function(emu_object *o, const char *name, const Elf64_Sym *sym)
{
    for (size_t i = 0; i < o->num_kernels; i++) {
        if (strcmp(o->kernels[i].name, name) == 0) {
            o->kernels[i].bytes = (uint32_t)sym->st_size;
        }
    }
}

emu_object *emu_object_load(const void *data, size_t bytes, char *error, size_t error_bytes)
{
    emu_object *o = calloc(1, sizeof *o);
    if (bytes < sizeof(Elf64_Ehdr) || emu_elf_bytes(data) == 0 || emu_elf_bytes(data) > bytes) {
        (void)snprintf(error, error_bytes, "not a code object of AMD's");
        free(o);
        return NULL;
    }
    if (o == NULL || (o->file = malloc(bytes)) == NULL) {
        goto no_memory;
    }
    memcpy(o->file, data, bytes);
    o->file_bytes = bytes;
    o->arch = emu_elf_arch(data);
    o->kernels = calloc(each_symbol(o, NULL, NULL) + 1, sizeof *o->kernels);
    if (!load_segments(o) || o->kernels == NULL) {
        goto no_memory;
    }
    (void)each_symbol(o, visit_descriptor, o);
    (void)each_symbol(o, visit_function, o);
    return o;
no_memory:
    (void)snprintf(error, error_bytes, "out of memory");
    emu_object_free(o);
    return NULL;
}

/// What a program prints, as a string; NULL where it failed.
static char *output_of(const char *const argv[], char *error, size_t error_bytes)
{
    int ends[2];
    posix_spawn_file_actions_t actions;
    pid_t child;
    if (pipe(ends) != 0) {
        (void)snprintf(error, error_bytes, "no pipe");
        return NULL;
    }
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    (void)posix_spawn_file_actions_addclose(&actions, ends[0]);
    (void)posix_spawn_file_actions_addclose(&actions, ends[1]);
    const int failed =
        posix_spawnp(&child, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    (void)close(ends[1]);
    size_t size = 0;
    size_t room = 1 << 16;
    char *text = malloc(room);
    while (!failed && text != NULL) {
        const ssize_t n = read(ends[0], text + size, room - size - 1);
        if (n <= 0) {
            break;
        }
        size += (size_t)n;
        if (room - size < 2) {
            char *more = realloc(text, room *= 2);
            if (more == NULL) {
                free(text);
            }
            text = more;
        }
    }
    (void)close(ends[0]);
    int status = 0;
    if (failed || waitpid(child, &status, 0) != child || status != 0 || text == NULL) {
        (void)snprintf(error, error_bytes, "%s failed", argv[0]);
        free(text);
        return NULL;
    }
    text[size] = 0;
    return text;
}

/// The disassembled text of a symbol, or of all with NULL.
static char *disassembled(const emu_object *o, const char *name, char *error, size_t error_bytes)
{
    const int file = memfd_create("code-object", 0); // inherited by the disassembler
    if (file < 0 || write(file, o->file, o->file_bytes) != (ssize_t)o->file_bytes) {
        (void)snprintf(error, error_bytes, "no file in memory");
        if (file >= 0) {
            (void)close(file);
        }
        return NULL;
    }
    char path[48];
    char symbol[160];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    (void)snprintf(symbol, sizeof symbol, "--disassemble-symbols=%s", name != NULL ? name : "");
    const char *cpu = o->arch == EMU_GFX942 ? "--mcpu=gfx942" : "--mcpu=gfx950";
    const char *argv[] = {EMU_OBJDUMP, "-d", cpu, path, name != NULL ? symbol : NULL, NULL};
    char *text = output_of(argv, error, error_bytes);
    (void)close(file);
    return text;
}

// Kernels are decoded one by one, but all at once where the object is small or they are many.
enum { SMALL_OBJECT = 1 << 18, MANY_KERNELS = 100 };

bool emu_kernel_decode(emu_kernel *k, char *error, size_t error_bytes)
{
    emu_object *o = k->object;
    const bool small = o->file_bytes <= SMALL_OBJECT || o->num_kernels >= MANY_KERNELS;
    if (k->code != NULL) {
        return true;
    }
    emu_code *code = o->code;
    if (code == NULL) {
        char *text = disassembled(o, small ? NULL : k->name, error, error_bytes);
        if (text == NULL) {
            return false;
        }
        code = emu_decode(text, o->arch);
        if (code == NULL) {
            (void)snprintf(error, error_bytes, "out of memory");
            return false;
        }
        o->code = small ? code : NULL;
    }
    k->code = code;
    k->unknown = emu_find_unknown(code, k->entry, k->bytes ? k->entry + k->bytes : UINT32_MAX);
    return true;
}

void emu_object_free(emu_object *o)
{
    if (o == NULL) {
        return;
    }
    for (size_t i = 0; o->kernels != NULL && i < o->num_kernels; i++) {
        if (o->kernels[i].code != o->code) {
            emu_code_free(o->kernels[i].code);
        }
    }
    emu_code_free(o->code);
    free(o->kernels);
    free(o->image);
    free(o->file);
    free(o);
}
