// SPDX-License-Identifier: Apache-2.0
// Packed weights of the CPU: one layout for every instruction set and every arithmetic class.
//
// An expert is panels of 64 outputs (the last one is as wide as is left, in sixteens). A panel is
// one forward stream: groups of k that share a scale, each
//   [scales of the panel's outputs] [zero points, a byte each, where they are explicit] [records]
// and a record is 32 k of them, in strips of 16 outputs. In a strip, units of 2 or 4 bytes of k of
// one output lie beside those of the other 15, unit after unit:
//   bf16          k, k + 1                      the pairs of matrix and dot-product instructions
//   f16           k
//   8-bit floats  k, k + 1
//   8-bit ints    k .. k + 3
//   4-bit codes   k .. k + 7: k + 2 j in nibble j, k + 2 j + 1 in nibble j + 4, so that one shift
//                 leaves a pair in the low nibbles of both halves, and two masks four k in bytes
// Where scales change every 16 k, a group is a record with two sets of them. Scales keep their
// type; those of blocks of outputs are repeated for each output. Where no scale changes along k,
// the panel is one group without any, and f32 scales of all outputs follow the panels.
// k is padded to 32, outputs to 16. Padding of k holds the spare bits of a row's last byte, else 0;
// kernels must not let it meet a NaN or count its sign.
#ifndef MOEI_BACKENDS_CPU_PACKED_H
#define MOEI_BACKENDS_CPU_PACKED_H

#include "core/safemath.h"
#include "ops/ggemm.h"

#define MOEI_CPU_PANEL  64 // outputs
#define MOEI_CPU_STRIP  16 // outputs
#define MOEI_CPU_RECORD 32 // k

/// The geometry of an expert; sizes in bytes.
typedef struct moei_cpu_packed {
    int64_t outputs;       // padded
    int64_t records;       // of a panel
    int64_t group_records; // of a group; the last one may have fewer
    int64_t groups;        // of a panel
    int32_t unit;          // 2 or 4
    int32_t unit_k;        // elements of k of a unit
    int32_t record;        // of one output
    int32_t sets;          // of scales, and of zero points, in a group: 0, 1 or 2
    int32_t scale;         // of one scale along k
    int32_t head;          // of a group, of one output: scales and zero points
    int64_t output;        // of one output: all groups. Panel p begins at 64 * p * output
    int64_t scales_at;     // f32 [outputs]; equal to `bytes` where there are none
    int64_t bytes;
} moei_cpu_packed;

/// True where weights of a format have a packed form. block_k: elements of k per scale, 0: all.
bool moei_cpu_packed_takes(const moei_format_info *format, int64_t block_k);

/// `m` as packed_bytes and kernels have it; its format has a packed form.
moei_cpu_packed moei_cpu_packed_of(const moei_matrices *m);

/// Where group g of panel p begins, `width` outputs wide.
static inline int64_t moei_cpu_group_at(const moei_cpu_packed *p, int64_t panel, int64_t width,
                                        int64_t g)
{
    return MOEI_CPU_PANEL * panel * p->output +
           width * g * (p->head + p->group_records * p->record);
}

/// Outputs of a panel.
static inline int64_t moei_cpu_panel_width(const moei_cpu_packed *p, int64_t panel)
{
    return moei_i64_min(MOEI_CPU_PANEL, p->outputs - MOEI_CPU_PANEL * panel);
}

/// The explicit zero points of a group, [set][output], behind its scales. NULL: there are none.
static inline const uint8_t *moei_cpu_group_zeros(const moei_cpu_packed *p, const uint8_t *head,
                                                  int64_t width)
{
    const int64_t scales = p->sets * p->scale;
    return p->head > scales ? head + width * scales : NULL;
}

/// Members of the vtable.
size_t moei_cpu_packed_bytes(const moei_kernel *kernel, const moei_matrices *m);
moe_status moei_cpu_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to);
void moei_cpu_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to);

#endif
