// SPDX-License-Identifier: Apache-2.0
// ggemm with AMX: bf16 times packed bf16, class amx_bf16.
//
// A strip of a packed record (16 outputs x 32 k, pairs of k side by side) is a tile as the second
// operand wants it; 16 rows of x x 32 k, as they lie, are the first. All else is in block.h.
#include "backends/cpu/amx/block.h"

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx;

static inline w_pair stored_pair(amx_block *b, int64_t panel, int64_t s, int64_t r0)
{
    const int64_t width = moei_cpu_panel_width(&b->p.packed, panel);
    const uint8_t *from = record_at(b, panel, r0);
    const int64_t last = width / MOEI_CPU_STRIP - 1;
    return (w_pair){.first = from + s * TILE_BYTES,
                    .second = from + moei_i64_min(s + 1, last) * TILE_BYTES,
                    .step = record_bytes(b, width)};
}

static void stored_group(amx_block *b, int64_t i0, int64_t i1, int64_t panel, int64_t panels)
{
    static const block_ops ops = {.pair = stored_pair};
    block_sums(b, &ops, i0, i1, panel, panels);
    block_finish(b, i0, i1, panel, panels);
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__amx;
void moek_ggemm_any_bf16_packed__amx(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                                     int64_t n0, int64_t n1)
{
    if (i1 - i0 <= FEW && args->x.row_stride != MOEI_CPU_TILED) {
        moek_ggemm_any_bf16_packed__avx512_amx(args, e, i0, i1, n0, n1);
        return;
    }
    amx_block b;
    each_group(&b, args, e, i0, i1, n0, n1, stored_group);
}
