// SPDX-License-Identifier: Apache-2.0
// One case of an oracle file while it is replayed: shared by oracle.c, which builds its layer, and
// oracle_batch.c, which runs and compares it.
#ifndef MOEC_ORACLE_CASE_H
#define MOEC_ORACLE_CASE_H

#include <jansson.h>

#include "checkmoe/checkmoe.h"
#include "checkmoe/replay.h"
#include "moe/io.h"

#define MOEC_TEXT 256

/// What the comparisons of one kind found over a case.
struct moec_tally {
    int done, failed;
    double ratio; ///< largest error / bound
};

struct moec_case {
    const moec_options *options;
    FILE *out;
    const char *path, *name;
    moe_context *ctx;
    const moe_context *host; // for single ops: ctx, or the CPU beside a device
    const moe_file *file;
    const json_t *json, *tensors, *semantics;
    moec_heap heap;

    moe_layer_desc desc;
    moe_weights_source source;
    moe_tensor correction_bias, scale_tensor; // f32, absent where there is none
    int routed;                               // 0: shared experts only
    moec_replay packed, wrapped;
    int has_wrapped;

    char reason[512]; // first failure, or why the case is skipped
    int failed, skipped;
    char notes[MOEC_TEXT];
    char repro[1024];
    struct moec_tally logits, ids, weights, y, hooks;
};

/// Records the first failure of a case.
void moec_case_fail(struct moec_case *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/// 1 on MOE_OK. What the library does not support is skipped with its message, all else fails.
int moec_case_ok(struct moec_case *c, moe_status status);

/// Adds a remark to the case's line, once.
void moec_case_note(struct moec_case *c, const char *text);

/// Member of an object as a string, NULL where it is none.
const char *moec_json_string(const json_t *object, const char *key);

/// The item "<stem>.T<tokens>" of a case, also where the file says that it equals another one.
int moec_case_item(const struct moec_case *c, const char *stem, int64_t tokens, moe_tensor *out);

/// The tensor with a checkpoint name; `self` is the case (a moe_shape_fn).
moe_status moec_case_weight(void *self, const char *name, moe_tensor *out);

/// The tensor of a role; absent (and 0) where the case has no such role.
int moec_case_role(struct moec_case *c, const char *role, moe_tensor *out);

/// Runs the layer on the inputs with this number of tokens and compares everything.
void moec_case_run(struct moec_case *c, int64_t tokens);

#endif
