// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/twins.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ops/backend.h"

#define ALIGN 256 // of device memory; a twin keeps the place of its buffer within this
#define RED   256 // poison before and after a twin, at least

// ---- Memory that is kept ------------------------------------------------------------------------

#define MAX_KEPT 32

static struct {
    const moe_context *ctx; // NULL: free
    void *memory;
    size_t room;
} kept[MAX_KEPT];
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

static moe_status take(moec_twins *t)
{
    t->room = (size_t)1 << 16;
    while (t->room < t->bytes) {
        t->room *= 2;
    }
    (void)pthread_mutex_lock(&kept_lock);
    for (int i = 0; i < MAX_KEPT && t->memory == NULL; i++) {
        if (kept[i].ctx == t->ctx && kept[i].room == t->room) {
            t->memory = kept[i].memory;
            kept[i].ctx = NULL;
        }
    }
    (void)pthread_mutex_unlock(&kept_lock);
    return t->memory != NULL ? MOE_OK : moe_memory_alloc(t->ctx, t->room, &t->memory);
}

static void give(moec_twins *t)
{
    (void)pthread_mutex_lock(&kept_lock);
    for (int i = 0; i < MAX_KEPT && t->memory != NULL; i++) {
        if (kept[i].ctx == NULL) {
            kept[i].ctx = t->ctx;
            kept[i].memory = t->memory;
            kept[i].room = t->room;
            t->memory = NULL;
        }
    }
    (void)pthread_mutex_unlock(&kept_lock);
    moe_memory_free(t->ctx, t->memory, t->room);
    t->memory = NULL;
}

void moec_twins_release(const moe_context *ctx)
{
    (void)pthread_mutex_lock(&kept_lock);
    for (int i = 0; i < MAX_KEPT; i++) {
        if (ctx != NULL && kept[i].ctx == ctx) {
            moe_memory_free(ctx, kept[i].memory, kept[i].room);
            kept[i].ctx = NULL;
        }
    }
    (void)pthread_mutex_unlock(&kept_lock);
}

// ---- Memory apart -------------------------------------------------------------------------------

static bool want_apart;

void moec_twins_apart(bool apart)
{
    want_apart = apart;
}

// Bytes before a twin, so that it lies within ALIGN as its buffer does.
static size_t before(const moec_twin *twin)
{
    return twin->offset % ALIGN;
}

static size_t room_alone(const moec_twin *twin)
{
    return before(twin) + twin->bytes > 0 ? before(twin) + twin->bytes : 1;
}

static void *alone(const moec_twin *twin)
{
    return (unsigned char *)twin->alone + before(twin);
}

static moe_status up_apart(moec_twins *t)
{
    t->apart = true;
    for (int i = 0; i < t->count; i++) {
        moec_twin *twin = &t->item[i];
        if (twin->alone == NULL) {
            MOE_TRY(moe_memory_alloc(t->ctx, room_alone(twin), &twin->alone));
        }
        if (twin->bytes > 0) {
            MOE_TRY(moe_memory_copy(t->ctx, alone(twin), twin->data, twin->bytes,
                                    MOE_COPY_TO_DEVICE, NULL));
        }
    }
    return MOE_OK;
}

static bool down_apart(moec_twins *t, char *wrong, size_t size)
{
    for (int i = 0; i < t->count; i++) {
        const moec_twin *twin = &t->item[i];
        uint8_t *back = twin->output ? twin->data : t->sent;
        if (twin->bytes > 0 && moe_memory_copy(t->ctx, back, alone(twin), twin->bytes,
                                               MOE_COPY_FROM_DEVICE, NULL) != MOE_OK) {
            (void)snprintf(wrong, size, "%s", moe_last_error());
            return false;
        }
        if (!twin->output && memcmp(back, twin->data, twin->bytes) != 0) {
            (void)snprintf(wrong, size, "input %d was written", i);
            return false;
        }
    }
    return true;
}

static void end_apart(moec_twins *t)
{
    for (int i = 0; i < t->count; i++) {
        moe_memory_free(t->ctx, t->item[i].alone, room_alone(&t->item[i]));
    }
}

// ---- Twins --------------------------------------------------------------------------------------

void moec_twins_begin(moec_twins *t, const moe_context *ctx)
{
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
}

static void add(moec_twins *t, void *data, size_t bytes, bool output)
{
    if (data == NULL) {
        return;
    }
    if (t->count == MOEC_TWINS) {
        t->stray = true;
        return;
    }
    const size_t place = (size_t)((uintptr_t)data % ALIGN);
    const size_t free_at = (t->bytes + RED + ALIGN - 1) / ALIGN * ALIGN;
    t->item[t->count++] = (moec_twin){data, bytes, output, free_at + place, NULL};
    t->bytes = free_at + place + bytes + RED;
}

void moec_twins_add(moec_twins *t, const moec_guard *guard, bool output)
{
    add(t, guard->data, guard->bytes, output);
}

// Bytes from a view's data to the end of its last element.
static size_t span(const moe_tensor *v)
{
    int64_t elements = 1;
    for (int i = 0; i < v->ndim; i++) {
        if (v->shape[i] == 0) {
            return (size_t)v->byte_offset;
        }
        elements += (v->shape[i] - 1) * v->stride[i];
    }
    return (size_t)v->byte_offset + ((size_t)elements * (size_t)moe_dtype_bits(v->dtype) + 7) / 8;
}

// Both structures end in a row of views.
#define VIEWS(type, member) ((sizeof(type) - offsetof(type, member)) / sizeof(moe_tensor))
#define RUN_VIEWS           VIEWS(moe_run_args, x)
#define RUN_INPUTS          (RUN_VIEWS - VIEWS(moe_run_args, out))
#define SOURCE_VIEWS        VIEWS(moe_weights_source, gemm)

static moe_tensor *run_views(moe_run_args *args)
{
    return (void *)((unsigned char *)args + offsetof(moe_run_args, x));
}

static moe_tensor *source_views(moe_weights_source *source)
{
    return (void *)((unsigned char *)source + offsetof(moe_weights_source, gemm));
}

void moec_twins_add_run_args(moec_twins *t, const moe_run_args *args)
{
    moe_run_args a = *args;
    for (size_t i = 0; i < RUN_VIEWS; i++) {
        const moe_tensor *v = run_views(&a) + i;
        add(t, v->data, span(v), i >= RUN_INPUTS);
    }
}

void moec_twins_add_source(moec_twins *t, const moe_weights_source *source)
{
    moe_weights_source s = *source;
    for (size_t i = 0; i < SOURCE_VIEWS; i++) {
        const moe_tensor *v = source_views(&s) + i;
        add(t, v->data, span(v), false);
    }
}

moe_status moec_twins_up(moec_twins *t, unsigned char red)
{
    if (t->ctx->backend->host_memory) {
        return MOE_OK;
    }
    if (t->sent == NULL) {
        t->sent = malloc(2 * t->bytes + 1);
        MOE_REQUIRE(t->sent != NULL, MOE_E_NO_MEMORY, "moe check: no memory for %zu bytes",
                    t->bytes);
    }
    if (t->apart || (want_apart && t->memory == NULL)) {
        return up_apart(t);
    }
    if (t->memory == NULL) {
        MOE_TRY(take(t));
    }
    memset(t->sent, red, t->bytes);
    for (int i = 0; i < t->count; i++) {
        memcpy(t->sent + t->item[i].offset, t->item[i].data, t->item[i].bytes);
    }
    return moe_memory_copy(t->ctx, t->memory, t->sent, t->bytes, MOE_COPY_TO_DEVICE, NULL);
}

// The twin that holds all of [at, at + bytes); of an empty range the first that holds its place, or
// ends there.
static const moec_twin *holder(const moec_twins *t, const unsigned char *at, size_t bytes)
{
    const moec_twin *ends = NULL;
    for (int i = 0; i < t->count; i++) {
        const moec_twin *twin = &t->item[i];
        const unsigned char *end = twin->data + twin->bytes;
        if (at >= twin->data && at < end && bytes <= (size_t)(end - at)) {
            return twin;
        }
        ends = ends == NULL && at == end && bytes == 0 ? twin : ends;
    }
    return ends;
}

static void *twin_of(moec_twins *t, const void *host, size_t bytes)
{
    const moec_twin *twin = host != NULL ? holder(t, host, bytes) : NULL;
    t->stray = t->stray || (host != NULL && twin == NULL);
    if (twin == NULL) {
        return NULL;
    }
    const size_t into = (size_t)((const unsigned char *)host - twin->data);
    if (t->apart) {
        return (unsigned char *)alone(twin) + into;
    }
    return t->memory != NULL ? (unsigned char *)t->memory + twin->offset + into : twin->data + into;
}

void *moec_twins_at(moec_twins *t, const void *host)
{
    return twin_of(t, host, 0);
}

void moec_twins_views(moec_twins *t, moe_tensor *views, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        views[i].data = twin_of(t, views[i].data, views[i].data != NULL ? span(&views[i]) : 0);
        if (t->memory != NULL || t->apart) { // a tensor of a file says that it lies on the CPU
            views[i].device = MOE_DEVICE_UNSET;
        }
    }
}

void moec_twins_run_args(moec_twins *t, moe_run_args *args)
{
    moec_twins_views(t, run_views(args), RUN_VIEWS);
}

void moec_twins_source(moec_twins *t, moe_weights_source *source)
{
    moec_twins_views(t, source_views(source), SOURCE_VIEWS);
}

// Names the byte at `offset` of the block, where it changed.
static void name_byte(const moec_twins *t, size_t offset, char *wrong, size_t size)
{
    for (int i = 0; i < t->count; i++) {
        const moec_twin *twin = &t->item[i];
        const size_t end = twin->offset + twin->bytes;
        if (offset >= twin->offset && offset < end) {
            (void)snprintf(wrong, size, "byte %zu of input %d was written", offset - twin->offset,
                           i);
            return;
        }
        if (offset < twin->offset) {
            (void)snprintf(wrong, size, "memory was written %zu bytes before %s %d",
                           twin->offset - offset, twin->output ? "output" : "input", i);
            return;
        }
        if (offset >= end && offset - end < RED) {
            (void)snprintf(wrong, size, "memory was written %zu bytes after the end of %s %d",
                           offset - end, twin->output ? "output" : "input", i);
            return;
        }
    }
}

bool moec_twins_down(moec_twins *t, char *wrong, size_t size)
{
    if (t->apart) {
        return down_apart(t, wrong, size);
    }
    if (t->memory == NULL) {
        return true;
    }
    uint8_t *back = t->sent + t->bytes;
    if (moe_memory_copy(t->ctx, back, t->memory, t->bytes, MOE_COPY_FROM_DEVICE, NULL) != MOE_OK) {
        (void)snprintf(wrong, size, "%s", moe_last_error());
        return false;
    }
    for (int i = 0; i < t->count; i++) {
        const moec_twin *twin = &t->item[i];
        if (twin->output) {
            memcpy(twin->data, back + twin->offset, twin->bytes);
            memcpy(t->sent + twin->offset, back + twin->offset, twin->bytes);
        }
    }
    if (memcmp(t->sent, back, t->bytes) == 0) {
        return true;
    }
    size_t at = 0;
    while (t->sent[at] == back[at]) {
        at++;
    }
    name_byte(t, at, wrong, size);
    return false;
}

void moec_twins_end(moec_twins *t)
{
    if (t->ctx != NULL) {
        end_apart(t);
        give(t);
        free(t->sent);
        memset(t, 0, sizeof *t);
    }
}
