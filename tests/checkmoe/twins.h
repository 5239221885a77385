// SPDX-License-Identifier: Apache-2.0
// Twins: copies of host buffers in the memory of a context's device. The guarded host buffers of a
// case stay what checks read and write; a twin is what the device works on. All twins of a run lie
// in one block, each in the middle of poison, and come back in one copy, in which nothing but
// outputs may have changed; or each in memory of its own, so that whoever watches a device's memory
// sees an access beyond it. On a backend that works on host memory a buffer is its own twin.
#ifndef MOE_CHECKMOE_TWINS_H
#define MOE_CHECKMOE_TWINS_H

#include "checkmoe/checkmoe.h"

#define MOEC_TWINS 40

typedef struct moec_twin {
    unsigned char *data; // on the host
    size_t bytes;
    bool output;
    size_t offset; // of its first byte in the block
    void *alone;   // its own memory, which ends where it does
} moec_twin;

typedef struct moec_twins {
    const moe_context *ctx; // NULL: nothing was begun
    moec_twin item[MOEC_TWINS];
    int count;
    bool stray;    // a pointer lay in no buffer, or there were too many buffers
    bool apart;    // brought up, each in memory of its own
    void *memory;  // of the device; NULL on host memory, or apart
    size_t bytes;  // of the block in use
    size_t room;   // as allocated
    uint8_t *sent; // what was copied to the block; behind it room for what comes back. Apart: that
} moec_twins;

/// Whether twins that are brought up from now on lie apart, each in memory of its own.
void moec_twins_apart(bool apart);

/// Begins a list of buffers.
void moec_twins_begin(moec_twins *t, const moe_context *ctx);

/// Adds a buffer, which must stay where it is; one without memory is left out. Inputs must come
/// back unchanged.
void moec_twins_add(moec_twins *t, const moec_guard *guard, bool output);

/// Adds what the views of a run, or of weights, span: memory of the caller's without guards.
void moec_twins_add_run_args(moec_twins *t, const moe_run_args *args);
void moec_twins_add_source(moec_twins *t, const moe_weights_source *source);

/// Copies all buffers to the device. `red`: byte that fills the memory around them; a kernel whose
/// results depend on it reads beyond a buffer. A second call copies to the same memory.
moe_status moec_twins_up(moec_twins *t, unsigned char red);

/// Where the byte that `host` points to lies for the device. NULL gives NULL; an address outside of
/// all buffers sets `stray` and gives NULL.
void *moec_twins_at(moec_twins *t, const void *host);

/// The same for the data of n views, each within one buffer; of a run, of weights.
void moec_twins_views(moec_twins *t, moe_tensor *views, size_t n);
void moec_twins_run_args(moec_twins *t, moe_run_args *args);
void moec_twins_source(moec_twins *t, moe_weights_source *source);

/// Waits for the device and copies outputs back; may be called again after more work. False, with
/// the reason in `wrong`: the device failed, an input was written, or memory beyond a buffer.
bool moec_twins_down(moec_twins *t, char *wrong, size_t size);

/// Gives the memory back. A list that was not begun is fine.
void moec_twins_end(moec_twins *t);

/// Memory of devices is kept for the next twins, because allocating it is slow; this releases what
/// is kept of a context, before it is destroyed.
void moec_twins_release(const moe_context *ctx);

#endif
