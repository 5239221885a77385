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

// ---- Twins --------------------------------------------------------------------------------------

void moec_twins_begin(moec_twins *t, const moe_context *ctx)
{
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
}

void moec_twins_add(moec_twins *t, const moec_guard *guard, bool output)
{
    if (guard->data == NULL) {
        return;
    }
    if (t->count == MOEC_TWINS) {
        t->stray = true;
        return;
    }
    const size_t place = (size_t)((uintptr_t)guard->data % ALIGN);
    const size_t free_at = (t->bytes + RED + ALIGN - 1) / ALIGN * ALIGN;
    t->item[t->count++] = (moec_twin){guard, output, free_at + place};
    t->bytes = free_at + place + guard->bytes + RED;
}

moe_status moec_twins_up(moec_twins *t, unsigned char red)
{
    if (t->ctx->backend->host_memory) {
        return MOE_OK;
    }
    t->sent = malloc(2 * t->bytes + 1);
    MOE_REQUIRE(t->sent != NULL, MOE_E_NO_MEMORY, "moe check: no memory for %zu bytes", t->bytes);
    MOE_TRY(take(t));
    memset(t->sent, red, t->bytes);
    for (int i = 0; i < t->count; i++) {
        memcpy(t->sent + t->item[i].offset, t->item[i].guard->data, t->item[i].guard->bytes);
    }
    return moe_memory_copy(t->ctx, t->memory, t->sent, t->bytes, MOE_COPY_TO_DEVICE, NULL);
}

void *moec_twins_at(moec_twins *t, const void *host)
{
    const unsigned char *at = host;
    for (int i = 0; i < t->count && at != NULL; i++) {
        const moec_guard *guard = t->item[i].guard;
        // Its end is an address of a buffer, too, because no two touch each other.
        if (at >= guard->data && at <= guard->data + guard->bytes) {
            const size_t into = (size_t)(at - guard->data);
            return t->memory != NULL ? (unsigned char *)t->memory + t->item[i].offset + into
                                     : guard->data + into;
        }
    }
    t->stray = t->stray || at != NULL;
    return NULL;
}

void moec_twins_views(moec_twins *t, moe_tensor *views, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        views[i].data = moec_twins_at(t, views[i].data);
    }
}

// Both structures end in a row of views.
#define VIEWS_FROM(type, member) ((sizeof(type) - offsetof(type, member)) / sizeof(moe_tensor))

void moec_twins_run_args(moec_twins *t, moe_run_args *args)
{
    void *first = (unsigned char *)args + offsetof(moe_run_args, x);
    moec_twins_views(t, first, VIEWS_FROM(moe_run_args, x));
}

void moec_twins_source(moec_twins *t, moe_weights_source *source)
{
    void *first = (unsigned char *)source + offsetof(moe_weights_source, gemm);
    moec_twins_views(t, first, VIEWS_FROM(moe_weights_source, gemm));
}

// Names the byte at `offset` of the block, where it changed.
static void name_byte(const moec_twins *t, size_t offset, char *wrong, size_t size)
{
    for (int i = 0; i < t->count; i++) {
        const moec_twin *twin = &t->item[i];
        const size_t end = twin->offset + twin->guard->bytes;
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
            memcpy(twin->guard->data, back + twin->offset, twin->guard->bytes);
            memcpy(t->sent + twin->offset, back + twin->offset, twin->guard->bytes);
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
        give(t);
        free(t->sent);
        memset(t, 0, sizeof *t);
    }
}
