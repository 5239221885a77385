// SPDX-License-Identifier: Apache-2.0
// moei_gpu_gather on the host: a product on the copy reads what the product on the list would have
// read, and nothing beyond the rows that there are is written.
#include <stdlib.h>
#include <string.h>

#include "backends/plugins.h"
#include "ops/ggemm_at.h"
#include "sim/sim.h"
#include "unit/test.h"

enum { MAX_TOKENS = 9, MAX_K = 400, TOP_K = 3, EXPERTS = 4, POISON = 0xA7 };

static int launches;

uint32_t moei_gpu_cluster_blocks(const moei_exec *exec)
{
    (void)exec;
    return 1;
}

moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args)
{
    char text[256];
    (void)exec;
    launches++;
    return CHECK(moei_sim_launch(&moei_sim_bodies[body], grid, args, 0, text, sizeof text), "%s",
                 text)
               ? MOE_OK
               : MOE_E_DEVICE;
}

static uint64_t state = 1;

static int64_t draw(int64_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((state >> 33) % (uint64_t)below);
}

// How the scales of x lie.
typedef struct form {
    const char *name;
    moe_dtype x, scale;
    int32_t group;
    bool packed, by_column, one_for_all;
} form;

static const form forms[] = {
    {"bf16", MOE_BF16, MOE_F32, 0, false, false, true},
    {"e4m3, one scale", MOE_E4M3FN, MOE_F32, 0, false, false, true},
    {"e4m3 per token", MOE_E4M3FN, MOE_F32, 0, false, false, false},
    {"e4m3 per 128", MOE_E4M3FN, MOE_F32, 128, false, false, false},
    {"e4m3 per 128 by columns", MOE_E4M3FN, MOE_F32, 128, false, true, false},
    {"e4m3 per 128 in bf16", MOE_E4M3FN, MOE_BF16, 128, false, false, false},
    {"e4m3 per 128 in e8m0", MOE_E4M3FN, MOE_E8M0, 128, false, false, false},
    {"e4m3 per 16 in e8m0 by columns", MOE_E4M3FN, MOE_E8M0, 16, false, true, false},
    {"e4m3 per 32 in packed e8m0", MOE_E4M3FN, MOE_E8M0, 32, true, true, false},
};

static void check(const form *f, int64_t tokens, int64_t k, int64_t extra)
{
    const moei_host *host = moei_host_table();
    static uint8_t x[MAX_TOKENS * (2 * MAX_K + 64) + 16];
    static uint8_t scales[4 * MAX_TOKENS * MAX_K];
    static int32_t index[MAX_TOKENS * TOP_K];
    const int64_t slots = tokens * TOP_K;
    int32_t ends[EXPERTS + 1] = {0};
    const int64_t row_bytes = k * host->dtype_bits(f->x) / 8;
    const int64_t columns = f->group == 0 ? 1 : (k + f->group - 1) / f->group;
    const int64_t words = f->packed ? (columns + 3) / 4 : columns;
    const bool has_scales = f->x != MOE_BF16;
    for (size_t i = 0; i < sizeof x; i++) {
        x[i] = (uint8_t)draw(256);
    }
    for (size_t i = 0; i < sizeof scales; i++) {
        scales[i] = (uint8_t)draw(256);
    }
    for (int64_t i = 0; i < slots; i++) {
        index[i] = (int32_t)draw(slots);
    }
    for (int e = 1; e <= EXPERTS; e++) { // some slots have no expert
        ends[e] = ends[e - 1] + (int32_t)draw(slots - ends[e - 1] + 1);
    }
    moek_ggemm_args from;
    memset(&from, 0, sizeof from);
    from.w.k = k;
    from.w.count = EXPERTS;
    from.offsets = ends;
    from.rows = slots;
    from.row_index = index;
    from.row_divisor = TOP_K;
    from.x.data = x + extra;
    from.x.dtype = f->x;
    from.x.row_stride = row_bytes + extra;
    from.x.group = f->group;
    from.x.packed = f->packed;
    if (has_scales) {
        from.x.scales = scales;
        from.x.scale_dtype = f->scale;
        from.x.scale_row_stride = f->one_for_all ? 0 : f->by_column ? 1 : words;
        from.x.scale_k_stride = f->by_column ? tokens : 1;
    }
    moe_layer_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.x_layout = MOE_X_TOKENS;
    desc.hidden = k;
    desc.top_k = TOP_K;
    const size_t bytes = moei_gpu_gather_bytes(&desc, tokens);
    uint8_t *memory = aligned_alloc(256, (bytes + 16 + 255) / 256 * 256);
    moek_ggemm_args to;
    moe_status status = MOE_E_DEVICE;
    const moei_exec exec = {0};
    if (!CHECK(memory != NULL, "no memory")) {
        return;
    }
    memset(memory, POISON, bytes + 16);
    if (CHECK(moei_gpu_gather(host, &exec, memory, &from, &to, &status) && status == MOE_OK,
              "%s, k %lld: not gathered", f->name, (long long)k)) {
        const size_t size = f->packed ? 4 : (size_t)host->dtype_bits(f->scale) / 8;
        CHECK(to.row_index == NULL && (uintptr_t)to.x.data % 16 == 0 && to.x.row_stride % 16 == 0,
              "%s: rows do not lie side by side", f->name);
        for (int64_t i = 0; i < slots; i++) {
            const bool there = i < ends[EXPERTS];
            const uint8_t *row = moei_x_at(&to, 0, i);
            const uint8_t *want = there ? moei_x_at(&from, 0, i) : NULL;
            bool same = true;
            for (int64_t b = 0; b < to.x.row_stride; b++) {
                same = same && row[b] == (there && b < row_bytes ? want[b] : POISON);
            }
            CHECK(same, "%s, k %lld: row %lld of %d", f->name, (long long)k, (long long)i,
                  (int)ends[EXPERTS]);
            for (int64_t c = 0; has_scales && there && c < columns; c++) {
                int64_t group;
                const int64_t a = moei_x_scale_at(&to, 0, i, c * f->group, &group);
                const int64_t b = moei_x_scale_at(&from, 0, i, c * f->group, &group);
                CHECK(memcmp((const uint8_t *)to.x.scales + (size_t)a * size,
                             scales + (size_t)b * size, size) == 0,
                      "%s, k %lld: scale %lld of row %lld", f->name, (long long)k, (long long)c,
                      (long long)i);
            }
        }
        bool whole = true;
        for (size_t b = bytes; b < bytes + 16; b++) {
            whole = whole && memory[b] == POISON;
        }
        CHECK(whole, "%s, k %lld: written beyond %zu bytes", f->name, (long long)k, bytes);
    }
    free(memory);
}

// What cannot be gathered is left alone: rows that lie side by side, batches.
static void check_refusals(void)
{
    const int32_t offsets[2] = {0, 1};
    const int32_t index[1] = {0};
    moek_ggemm_args from;
    moek_ggemm_args to;
    moe_status status = MOE_OK;
    const moei_exec exec = {0};
    static uint8_t memory[4096];
    memset(&from, 0, sizeof from);
    from.w.k = 64;
    from.w.count = 1;
    from.rows = 1;
    from.x.dtype = MOE_BF16;
    from.offsets = offsets;
    launches = 0;
    CHECK(!moei_gpu_gather(moei_host_table(), &exec, memory, &from, &to, &status), "no list");
    from.row_index = index;
    from.offsets = NULL;
    CHECK(!moei_gpu_gather(moei_host_table(), &exec, memory, &from, &to, &status), "batches");
    CHECK(launches == 0, "%d launches", launches);
    moe_layer_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.x_layout = MOE_X_BATCHED;
    desc.hidden = 64;
    CHECK(moei_gpu_gather_bytes(&desc, 5) == 0, "batches are not gathered");
    desc.x_layout = MOE_X_TOKENS;
    desc.top_k = 2;
    CHECK(moei_gpu_gather_bytes(&desc, INT64_MAX) == SIZE_MAX, "an overflow is not named");
}

int main(void)
{
    static const int64_t sizes[] = {1, 15, 16, 129, 256, MAX_K};
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            for (int64_t extra = 0; extra <= 16; extra += 8 + draw(8)) {
                check(&forms[f], 1 + draw(MAX_TOKENS), sizes[s], extra);
            }
        }
    }
    check_refusals();
    return test_summary();
}
