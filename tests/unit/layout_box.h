// SPDX-License-Identifier: Apache-2.0
// Views with memory of their own, for tests of layout converters: filled with poison or with random
// bytes, at any offset, with gaps between rows.
#ifndef MOE_TESTS_UNIT_LAYOUT_BOX_H
#define MOE_TESTS_UNIT_LAYOUT_BOX_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moe/layouts.h"
#include "unit/test.h"

#define POISON 0xA5

// A view with memory that ends where the view ends, so that sanitizers see every step beyond it.
typedef struct box {
    moe_tensor t;
    uint8_t *memory;
    size_t bytes;
} box;

static uint8_t *kept[256];
static int num_kept;

static inline uint8_t *keep(size_t bytes)
{
    if (num_kept == (int)(sizeof kept / sizeof kept[0])) {
        (void)printf("a case needs more than %d allocations\n", num_kept);
        exit(1);
    }
    uint8_t *p = malloc(bytes);
    if (p == NULL) {
        (void)printf("no memory for %zu bytes\n", bytes);
        exit(1);
    }
    kept[num_kept++] = p;
    return p;
}

static inline void release_all(void)
{
    while (num_kept > 0) {
        free(kept[--num_kept]);
    }
}

static uint64_t random_state = 0x9E3779B97F4A7C15u;

static inline uint32_t random32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static inline int64_t up(int64_t a, int64_t multiple)
{
    return (a + multiple - 1) / multiple * multiple;
}

// How the memory of a case lies: bytes before the base, elements between rows.
typedef struct spread {
    int offset;
    int gap; // a multiple of 12: whole bytes for 4 and 6 bits
} spread;

static const spread spreads[] = {{0, 0}, {1, 12}};

static inline box make_box(moe_dtype dtype, int ndim, const int64_t *shape, spread sp)
{
    box b;
    const int bits = moe_dtype_bits(dtype);
    const int64_t step = bits == 4 ? 2 : bits == 6 ? 4 : 1;
    int64_t last = 0;
    b.t = moe_tensor_make(NULL, dtype, ndim, shape);
    for (int i = ndim - 2; i >= 0; i--) {
        const int64_t inner =
            i == ndim - 2 ? up(shape[i + 1], step) : b.t.stride[i + 1] * shape[i + 1];
        b.t.stride[i] = inner + sp.gap;
    }
    if (ndim == 4) {
        b.t.stride[2] = shape[3]; // blocks are compact
        b.t.stride[1] = shape[2] * shape[3] + sp.gap;
        b.t.stride[0] = shape[1] * b.t.stride[1] + sp.gap;
    }
    for (int i = 0; i < ndim; i++) {
        last += (shape[i] > 0 ? shape[i] - 1 : 0) * b.t.stride[i];
    }
    b.bytes = (size_t)(sp.offset + ((last + 1) * bits + 7) / 8);
    b.memory = keep(b.bytes);
    memset(b.memory, POISON, b.bytes);
    b.t.data = b.memory;
    b.t.byte_offset = (uint64_t)sp.offset;
    return b;
}

static inline void fill_random(box *b)
{
    for (size_t i = 0; i < b->bytes; i++) {
        b->memory[i] = (uint8_t)random32();
    }
}

// The same view of other memory, poisoned.
static inline box twin(const box *b)
{
    box r = *b;
    r.memory = keep(b->bytes);
    memset(r.memory, POISON, r.bytes);
    r.t.data = r.memory;
    return r;
}

static inline box copy_of(const box *b)
{
    box r = twin(b);
    memcpy(r.memory, b->memory, b->bytes);
    return r;
}

static inline bool equal(const box *a, const box *b)
{
    return a->bytes == b->bytes && memcmp(a->memory, b->memory, a->bytes) == 0;
}

// First byte of row [i0, i1] of a view of three dimensions (or [i0] of two).
static inline uint8_t *row_at(const moe_tensor *t, int64_t i0, int64_t i1)
{
    const int64_t elems = i0 * t->stride[0] + (t->ndim > 2 ? i1 * t->stride[1] : 0);
    return (uint8_t *)t->data + t->byte_offset + elems * moe_dtype_bits(t->dtype) / 8;
}

// Element c of `bits` bits of a row, lowest bits first.
static inline uint64_t get_bits(const uint8_t *row, int bits, int64_t c)
{
    uint64_t v = 0;
    if (bits % 8 == 0) {
        memcpy(&v, row + c * bits / 8, (size_t)bits / 8);
        return v;
    }
    const int64_t at = c * bits;
    const int shift = (int)(at % 8);
    v = (uint64_t)row[at / 8] >> shift;
    if (shift + bits > 8) {
        v |= (uint64_t)row[at / 8 + 1] << (8 - shift);
    }
    return v & ((1u << bits) - 1u);
}

static inline void put_bits(uint8_t *row, int bits, int64_t c, uint64_t v)
{
    if (bits % 8 == 0) {
        memcpy(row + c * bits / 8, &v, (size_t)bits / 8);
        return;
    }
    for (int i = 0; i < bits; i++) {
        const int64_t at = c * bits + i;
        const unsigned mask = 1u << (at % 8);
        row[at / 8] = (uint8_t)((row[at / 8] & ~mask) | ((v >> i & 1) != 0 ? mask : 0u));
    }
}

static inline uint64_t get3(const moe_tensor *t, int64_t i, int64_t j, int64_t k)
{
    return get_bits(row_at(t, i, j), moe_dtype_bits(t->dtype), k);
}

static inline void put3(const moe_tensor *t, int64_t i, int64_t j, int64_t k, uint64_t v)
{
    put_bits(row_at(t, i, j), moe_dtype_bits(t->dtype), k, v);
}

static inline bool message_has(const char *a, const char *b)
{
    return strstr(moe_last_error(), a) != NULL && strstr(moe_last_error(), b) != NULL;
}

/// CHECK of a call that must fail with a status and a message that holds both texts.
#define REFUSED(call, status, a, b)                                                                \
    do {                                                                                           \
        const moe_status got = (call);                                                             \
        CHECK(got == (status) && message_has(a, b), "%s, wanted %s: '%s' lacks '%s' or '%s'",      \
              moe_status_name(got), moe_status_name(status), moe_last_error(), a, b);              \
    } while (0)

#endif
