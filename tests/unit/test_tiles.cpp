// SPDX-License-Identifier: Apache-2.0
// How a grouped product is cut into tiles (gpu/tiles.cuh): every row of every expert lies in one
// tile for each block of outputs, no tile is empty or longer than allowed, and there are no more of
// them than whole ones would be.
#include <stdlib.h>
#include <string.h>

#include "backends/gpu/tiles.cuh"
#include "sim/sim.h"
#include "unit/test.h"

moe_status moei_gpu_launch(const moei_exec *, moei_gpu_body, moei_gpu_grid, const void *)
{
    return MOE_E_DEVICE; // nothing here calls a driver
}

uint32_t moei_gpu_cluster_blocks(const moei_exec *)
{
    return 1;
}

enum { EXPERTS = 300, MOST = 3000 };

typedef struct cutting {
    moek_ggemm_args a;
    int32_t bn;
    int32_t prefix[EXPERTS + 1];
} cutting;

static void begin(const void *args)
{
    cutting *c = *(cutting *const *)args;
    moei_tiles_begin(&c->a, c->bn, c->prefix);
}

static uint32_t state = 1;

static int32_t draw(int32_t below)
{
    state = state * 1664525u + 1013904223u;
    return (int32_t)((state >> 8) % (uint32_t)below);
}

static void test_cut(const int32_t *rows, int32_t count, int32_t bn, int32_t step, bool batched)
{
    enum { M_BLOCKS = 3 };
    static cutting c;
    static int32_t offsets[EXPERTS + 1];
    cutting *const args = &c;
    memset(&c, 0, sizeof c);
    offsets[0] = 0;
    for (int32_t e = 0; e < count; e++) {
        offsets[e + 1] = offsets[e] + rows[e];
    }
    c.a.w.count = count;
    c.a.offsets = batched ? NULL : offsets;
    c.a.counts = batched ? rows : NULL;
    c.bn = bn;
    const moei_sim_body cut = {"cut", begin, sizeof args, 64};
    char text[256] = "";
    if (!CHECK(moei_sim_launch(&cut, {1, 64, 0, false}, &args, 0, text, sizeof text), "%s", text)) {
        return;
    }
    int64_t tile = 0;
    for (int32_t e = 0; e < count; e++) {
        const int32_t blocks = (rows[e] + bn - 1) / bn;
        const int64_t first = batched ? 0 : offsets[e];
        if (!CHECK(c.prefix[e + 1] - c.prefix[e] == blocks, "expert %d of %d rows: %d blocks", e,
                   rows[e], c.prefix[e + 1] - c.prefix[e])) {
            return;
        }
        for (int32_t m = 0; m < M_BLOCKS; m++) {
            int64_t next = first;
            int64_t longest = 0;
            for (int32_t b = 0; b < blocks; b++, tile++) {
                moei_tile t = {0, 0, 0, 0};
                const bool there = moei_tile_at(&c.a, c.prefix, bn, step, M_BLOCKS, tile, &t);
                if (!CHECK(there && t.e == e && t.m == m && t.i0 == next && t.i1 > t.i0 &&
                               t.i1 - t.i0 <= bn,
                           "%d rows by %d, %d: tile %d is rows %lld to %lld", rows[e], bn, step, b,
                           (long long)(t.i0 - first), (long long)(t.i1 - first))) {
                    return;
                }
                const bool last = b + 1 == blocks;
                const bool whole = (t.i1 - t.i0) % step == 0 || t.i1 - t.i0 == bn;
                CHECK(last ? t.i1 == first + rows[e] : whole,
                      "%d rows by %d, %d: tile %d ends at %lld", rows[e], bn, step, b,
                      (long long)(t.i1 - first));
                longest = t.i1 - t.i0 > longest ? t.i1 - t.i0 : longest;
                next = t.i1;
            }
            const int64_t even = blocks > 0 ? (rows[e] + blocks - 1) / blocks : 0;
            CHECK(step == bn || longest < even + step, "%d rows by %d, %d: a tile of %lld", rows[e],
                  bn, step, (long long)longest);
        }
    }
    moei_tile t;
    CHECK(!moei_tile_at(&c.a, c.prefix, bn, step, M_BLOCKS, tile, &t), "a tile past the last");
}

int main(void)
{
    // The last two are no multiples: a tile is never longer than bn.
    static const struct {
        int32_t bn, step;
    } cuts[] = {{8, 8},    {24, 24},   {128, 128}, {144, 144}, {192, 16},
                {256, 16}, {256, 256}, {24, 16},   {136, 16}};
    static int32_t rows[EXPERTS];
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        for (int32_t first = 0; first < MOST; first += EXPERTS) { // every number of rows once
            for (int32_t e = 0; e < EXPERTS; e++) {
                rows[e] = first + e;
            }
            test_cut(rows, EXPERTS, cuts[i].bn, cuts[i].step, first % (2 * EXPERTS) == 0);
        }
        for (int trial = 0; trial < 20; trial++) {
            const int32_t count = 1 + draw(EXPERTS);
            for (int32_t e = 0; e < count; e++) {
                rows[e] = draw(3) == 0 ? 0 : draw(4) == 0 ? draw(8 * cuts[i].bn) : draw(40);
            }
            test_cut(rows, count, cuts[i].bn, cuts[i].step, trial % 2 == 1);
        }
    }
    return test_summary();
}
