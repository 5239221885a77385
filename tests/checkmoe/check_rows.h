// SPDX-License-Identifier: Apache-2.0
// Checks of the ops that work row by row or on ids: route, place, sort, quantize, glu, combine; and
// what these share: guarded buffers, repeated runs, equality over rows of an op.
#ifndef MOE_CHECKMOE_CHECK_ROWS_H
#define MOE_CHECKMOE_CHECK_ROWS_H

#include "checkmoe/checkmoe.h"
#include "core/registry.h"
#include "ops/backend.h"

void moec_check_route(moec_run *run, const struct moei_kernel *kernel);
void moec_check_place(moec_run *run, const struct moei_kernel *kernel);
void moec_check_sort(moec_run *run, const struct moei_kernel *kernel);
void moec_check_glu(moec_run *run, const struct moei_kernel *kernel);
void moec_check_combine(moec_run *run, const struct moei_kernel *kernel);
void moec_check_quantize(moec_run *run, const struct moei_kernel *kernel);

#define MOEC_POISON 0xA5

/// The buffers of a case, each beside a guard page: the first at its end, the next at its
/// beginning, and so on; `flip` exchanges the two.
typedef struct moec_buffers {
    struct {
        moec_guard guard;
        bool output;
    } item[24];
    int count;
    bool flip;
    bool failed; // the system refused memory, or there are more buffers than items
} moec_buffers;

/// Zeroed inputs; NULL and `failed` where there is no memory.
void *moec_input(moec_buffers *buffers, int64_t count, size_t size);

/// Outputs hold poison until they are written.
void *moec_output(moec_buffers *buffers, int64_t count, size_t size);

/// In half of the cases num_valid, from below 0 to beyond `tokens`; else NULL.
const int32_t *moec_draw_valid(moec_rng *rng, moec_buffers *buffers, int64_t tokens);

void moec_buffers_free(moec_buffers *buffers);

/// Poisons all outputs.
void moec_buffers_poison(moec_buffers *buffers);

/// Hash of all inputs, or of all outputs.
uint64_t moec_buffers_hash(const moec_buffers *buffers, bool outputs);

/// Contexts of 1, 2 and 7 threads on the backend of a run, for every check of a row. A device has
/// no threads: all three are the run's context.
typedef struct moec_teams {
    const moe_context *ctx[3];
    moe_context *made[3];
    moe_context copy[3];
} moec_teams;

bool moec_teams_make(const moec_run *run, moec_teams *teams);
void moec_teams_free(moec_teams *teams);

/// A case of an op, as its check runs it.
typedef struct moec_launch {
    const moei_kernel *kernel;
    const void *args;                  // moek_<op>_args
    const void *canonical;             // the same for rows of layout ROW; NULL: args
    int64_t count;                     // that many of them in a row, run one after another; 0: 1
    void (*reset)(const void *args);   // values that outputs begin with; NULL: none
    const moei_ggemm_problem *problem; // of a product
    moec_buffers *buffers;
    moec_buffers *also; // buffers that the arguments read besides; NULL: none
    moe_tensor result;  // 2-D: the output that reports of differences show; no data: none
    const char *text;   // names the case
} moec_launch;

/// The arguments of a case for another row.
const void *moec_args_for(const moec_launch *launch, const moei_kernel *kernel);

/// Runs a case once, from its outputs as they are. An access beyond a buffer is a failure; on host
/// memory it ends the program, with the case and the line that repeats it.
void moec_launch_on(moec_run *run, const moe_context *ctx, const moec_launch *launch);

/// Runs a case four times from poisoned outputs: on 1, 1, 2 and 7 threads, or, on a device, with
/// other poison around the buffers each time. The bytes of all outputs must be the same, and those
/// that the CPU's row of the same op and arithmetic class gives where the backend is another; those
/// of all inputs stay as before. Then once more for every delayed run of the options. Returns the
/// hash of the outputs, which hold the last result.
uint64_t moec_run_all(moec_run *run, const moec_teams *teams, const moec_launch *launch);

/// Case `number` of an op must give the same bytes with every row of the op.
void moec_rows_agree(moec_run *run, const moei_kernel *kernel, int number, uint64_t hash,
                     const char *text);

/// True if n results are as expected; else `where` says which is not.
bool moec_same_i32(const char *name, const int32_t *have, const int32_t *want, int64_t n,
                   char *where, size_t size);

/// A loader of ids, as public tensors hold them.
static inline int64_t moec_id_at(moe_dtype dtype, const void *base, int64_t i)
{
    return dtype == MOE_I64 ? ((const int64_t *)base)[i] : ((const int32_t *)base)[i];
}

static inline void moec_id_put(moe_dtype dtype, void *base, int64_t i, int64_t id)
{
    if (dtype == MOE_I64) {
        ((int64_t *)base)[i] = id;
    } else {
        ((int32_t *)base)[i] = (int32_t)id;
    }
}

#endif
