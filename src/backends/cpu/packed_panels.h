// SPDX-License-Identifier: Apache-2.0
// A product over the panels of a packed expert: the walk that kernels have in common. On the right
// is what a kernel brings.
//
//   blocks of rows                                      begin
//     panels side by side, as many as have sums
//       some records, as many as prepared x has room    prepare   once, where that is all of k
//         each of these panels                          multiply
//       each of these panels                            end       sums to floats, if they are not
//       16 rows, each of these panels: results
//
// Static inline, as product.h is.
#ifndef MOEI_BACKENDS_CPU_PACKED_PANELS_H
#define MOEI_BACKENDS_CPU_PACKED_PANELS_H

#include "backends/cpu/packed_walk.h"
#include "backends/cpu/product.h"

#define MOEI_CPU_FINISH_ROWS 16 // whose results are written together

/// An expert and the outputs of it that are wanted; the block of rows under way.
typedef struct moei_cpu_panels {
    moek_ggemm_args args; // see moei_cpu_packed_args
    moei_cpu_packed packed;
    const uint8_t *expert;
    int32_t e;
    int64_t n0, n1;
    int64_t i0, i1;
    int64_t side;                 // panels side by side: `begin` sets it
    int64_t depth;                // records of x that are prepared at once: `begin` sets it
    float (*acc)[MOEI_CPU_PANEL]; // sums, [panel][row]: `begin` sets it; each begins as zeros
    int64_t first, last;          // strips of the panel at work that are wanted: first .. last - 1
    const uint8_t *next;          // what is read after this part of it; NULL: nothing is
    moei_cpu_columns columns;
} moei_cpu_panels;

/// What a kernel brings. All get its `job`.
typedef struct moei_cpu_panels_ops {
    int64_t rows; // of a block, at most
    void (*begin)(void *job);
    /// x of records r0 .. r1 - 1, of the rows of the block.
    void (*prepare)(void *job, int64_t r0, int64_t r1);
    /// These records of a panel into the sums of the rows, which begin at acc[at].
    void (*multiply)(void *job, int64_t panel, int64_t r0, int64_t r1, int64_t at);
    /// Sums that are complete, from acc[at], to floats; NULL: they are.
    void (*end)(void *job, int64_t at);
} moei_cpu_panels_ops;

/// Arguments that read the packed scales of outputs, which stand behind the panels of each expert,
/// as what they are: f32 of one channel each. So what follows a sum is that of canonical weights.
static inline moek_ggemm_args moei_cpu_packed_args(const moek_ggemm_args *args,
                                                   const moei_cpu_packed *p, int32_t e)
{
    moek_ggemm_args a = *args;
    a.w.scales = NULL;
    if (p->scales_at < p->bytes) {
        a.w.scales = args->w.values + (int64_t)e * args->w.value_e_stride + p->scales_at;
        a.w.scale_dtype = MOE_F32;
        a.w.block_n = 1;
        a.w.scale_parts = 1;
        a.w.scale_e_stride = 0;
        a.w.scale_n_stride = 1;
    }
    return a;
}

static inline void moei_cpu_panels_open(moei_cpu_panels *p, const moek_ggemm_args *args, int32_t e,
                                        int64_t n0, int64_t n1)
{
    p->packed = moei_cpu_packed_of(&args->w);
    p->args = moei_cpu_packed_args(args, &p->packed, e);
    p->expert = args->w.values + (int64_t)e * args->w.value_e_stride;
    p->e = e;
    p->n0 = n0;
    p->n1 = n1;
}

/// Outputs of a panel that are wanted: [*first, the result).
static inline int64_t moei_cpu_panel_outputs(const moei_cpu_panels *p, int64_t panel,
                                             int64_t *first)
{
    *first = moei_i64_max(panel * MOEI_CPU_PANEL, p->n0);
    return moei_i64_min((panel + 1) * MOEI_CPU_PANEL, p->n1);
}

/// The sums of a panel, of rows i0 .. i1 - 1, to their results.
static inline void moei_cpu_panel_finish(moei_cpu_panels *p, int64_t panel, int64_t i0, int64_t i1,
                                         float (*acc)[MOEI_CPU_PANEL])
{
    int64_t first;
    const int64_t end = moei_cpu_panel_outputs(p, panel, &first);
    moei_cpu_load_columns(&p->args.w, p->e, first, end, &p->columns);
    for (int64_t i = i0; i < i1; i++) {
        moei_cpu_finish(&p->args, &p->columns, p->e, i, first, end,
                        &acc[i - i0][first - panel * MOEI_CPU_PANEL]);
    }
}

/// The same of panels side by side. Some rows at a time, each of which is then written in one
/// stream, not in two lines here and there.
static inline void moei_cpu_panels_finish(moei_cpu_panels *p, int64_t begin, int64_t end)
{
    for (int64_t i0 = p->i0, i1; i0 < p->i1; i0 = i1) {
        i1 = moei_i64_min(i0 + MOEI_CPU_FINISH_ROWS, p->i1);
        for (int64_t panel = begin; panel < end; panel++) {
            const int64_t at = (panel - begin) * (p->i1 - p->i0) + i0 - p->i0;
            moei_cpu_panel_finish(p, panel, i0, i1, p->acc + at);
        }
    }
}

static inline void moei_cpu_panel_want(moei_cpu_panels *p, int64_t panel)
{
    int64_t first;
    const int64_t end = moei_cpu_panel_outputs(p, panel, &first);
    p->first = (first - panel * MOEI_CPU_PANEL) / MOEI_CPU_STRIP;
    p->last = moei_i64_ceil_div(end - panel * MOEI_CPU_PANEL, MOEI_CPU_STRIP);
}

static inline const uint8_t *moei_cpu_panel_record(const moei_cpu_panels *p, int64_t panel,
                                                   int64_t r)
{
    moei_cpu_walk walk;
    (void)moei_cpu_walk_to(&walk, &p->packed, p->expert, panel, r);
    return walk.at;
}

/// All records of panels that lie side by side, for the rows of the block. prepared: the record
/// from which x is; the result is that afterwards.
static inline int64_t moei_cpu_panels_sums(moei_cpu_panels *p, const moei_cpu_panels_ops *ops,
                                           void *job, int64_t begin, int64_t end, int64_t prepared)
{
    const int64_t rows = p->i1 - p->i0;
    const int64_t records = p->packed.records;
    const bool last = end * MOEI_CPU_PANEL >= p->n1;
    memset(p->acc, 0, (size_t)((end - begin) * rows) * sizeof p->acc[0]);
    for (int64_t r0 = 0; r0 < records; r0 += p->depth) {
        const int64_t r1 = moei_i64_min(r0 + p->depth, records);
        if (prepared != r0) {
            ops->prepare(job, r0, r1);
            prepared = r0;
        }
        for (int64_t panel = begin; panel < end; panel++) {
            moei_cpu_panel_want(p, panel);
            p->next = panel + 1 < end ? moei_cpu_panel_record(p, panel + 1, r0)
                      : r1 < records  ? moei_cpu_panel_record(p, begin, r1)
                      : !last         ? moei_cpu_panel_record(p, end, 0)
                                      : NULL;
            ops->multiply(job, panel, r0, r1, (panel - begin) * rows);
        }
    }
    return prepared;
}

/// The product of rows i0 .. i1 - 1.
static inline void moei_cpu_panels_run(moei_cpu_panels *p, const moei_cpu_panels_ops *ops,
                                       void *job, int64_t i0, int64_t i1)
{
    const int64_t blocks = moei_i64_ceil_div(i1 - i0, ops->rows);
    const int64_t last = moei_i64_ceil_div(p->n1, MOEI_CPU_PANEL);
    for (int64_t b = 0; b < blocks; b++) { // as many rows in each, but for one
        p->i0 = i0 + (i1 - i0) * b / blocks;
        p->i1 = i0 + (i1 - i0) * (b + 1) / blocks;
        ops->begin(job);
        int64_t prepared = -1;
        for (int64_t begin = p->n0 / MOEI_CPU_PANEL, end; begin < last; begin = end) {
            end = moei_i64_min(begin + p->side, last);
            prepared = moei_cpu_panels_sums(p, ops, job, begin, end, prepared);
            for (int64_t panel = begin; ops->end != NULL && panel < end; panel++) {
                ops->end(job, (panel - begin) * (p->i1 - p->i0));
            }
            moei_cpu_panels_finish(p, begin, end);
        }
    }
}

#endif
