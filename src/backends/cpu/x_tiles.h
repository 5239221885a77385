// SPDX-License-Identifier: Apache-2.0
// x of a product as tiles of matrix units, for all calls of a product that read the same rows:
//
//   16 rows:  [records of 32 k][row][64 bytes], then a line that says what is in them
//
// An expert begins with tiles of its own. k is padded to a record with zeros, rows to a tile.
#ifndef MOEI_BACKENDS_CPU_X_TILES_H
#define MOEI_BACKENDS_CPU_X_TILES_H

#include <stdatomic.h>

#include "backends/cpu/cut.h"
#include "core/isa.h"

#define MOEI_CPU_TILE_ROWS  16
#define MOEI_CPU_TILE_BYTES 1024
#define MOEI_CPU_TILE_LINE  64

/// `x.row_stride` of arguments whose x.data are tiles, the first row of the call's first.
#define MOEI_CPU_TILED INT64_MIN

/// Exponents of bf16, as they are stored, which a class may need: those of operands that are not 0.
#define MOEI_CPU_TILED_LEAST (127 - 77)
#define MOEI_CPU_TILED_MOST  (127 + 60)

typedef struct moei_cpu_x_tiles {
    int64_t k;
    int64_t bytes; // of 16 rows
    uint8_t *at;   // 64 bytes aligned
} moei_cpu_x_tiles;

static inline int64_t moei_cpu_x_tiles_bytes(int64_t k)
{
    return moei_i64_ceil_div(k, MOEI_CPU_RECORD) * MOEI_CPU_TILE_BYTES + MOEI_CPU_TILE_LINE;
}

/// Not 0: some of 16 rows' elements are beyond the exponents above.
static inline uint32_t moei_cpu_x_tiles_beyond(const uint8_t *at, int64_t k)
{
    const uint8_t *line = at + moei_cpu_x_tiles_bytes(k) - MOEI_CPU_TILE_LINE;
    return atomic_load_explicit((const atomic_uint *)(const void *)line, memory_order_relaxed);
}

/// True where a kernel takes such an x.
static inline bool moei_cpu_takes_tiles(const moei_kernel *kernel)
{
    return (kernel->isa & MOEI_ISA_AMX_BF16) != 0 && kernel->layout == MOEI_LAYOUT_PACKED;
}

/// Where the tiles of each expert that has rows begin. Returns how many all are.
int64_t moei_cpu_x_tiles_first(const moei_cpu_cut *cut, int64_t first[MOEI_SORT_MAX_EXPERTS]);

/// What follows 16 rows says that nothing is beyond.
void moei_cpu_x_tiles_begin(const moei_cpu_x_tiles *to, int64_t tile);

/// Elements [k0, k1) of x rows [i0, i1), from tile `tile` on. Bands of k begin with records;
/// several threads may do bands of the same rows.
void moei_cpu_x_tiles_fill(const moei_cpu_x_tiles *to, int64_t tile, const moek_ggemm_args *from,
                           int32_t e, int64_t i0, int64_t i1, int64_t k0, int64_t k1);

#endif
