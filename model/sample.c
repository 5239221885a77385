// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include "model/model.h"

#define LANES 16

size_t moem_sample_scratch(int64_t vocab)
{
    return (size_t)vocab * (sizeof(float) + sizeof(int32_t));
}

// A number in [0, 1) from three integers: splitmix64 (Steele et al., OOPSLA 2014) over each in
// turn.
static double uniform(uint64_t seed, uint64_t stream, uint64_t position)
{
    const uint64_t parts[] = {seed, stream, position};
    uint64_t state = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t z = (state ^ parts[i]) + 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        state = z ^ (z >> 31);
    }
    return (double)(state >> 11) * 0x1p-53;
}

static int32_t largest(const float *logits, int64_t vocab)
{
    float most[LANES];
    int64_t i = 0;
    int32_t best = 0;
    for (int l = 0; l < LANES; l++) {
        most[l] = -HUGE_VALF;
    }
    for (; i + LANES <= vocab;
         i += LANES) { // without a branch, so that compilers make vectors of it
        for (int l = 0; l < LANES; l++) {
            most[l] = logits[i + l] > most[l] ? logits[i + l] : most[l];
        }
    }
    for (; i < vocab; i++) {
        most[0] = logits[i] > most[0] ? logits[i] : most[0];
    }
    for (int l = 1; l < LANES; l++) {
        most[0] = most[l] > most[0] ? most[l] : most[0];
    }
    while (best < vocab && logits[best] != most[0]) {
        best++;
    }
    return best < vocab ? best : 0; // not found: all are NaN
}

// A heap with the likeliest token on top, ties to the lower id.
static bool before(const float *share, int32_t a, int32_t b)
{
    return share[a] > share[b] || (share[a] == share[b] && a < b);
}

static void sift(const float *share, int32_t *heap, int64_t count, int64_t at)
{
    const int32_t moving = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && before(share, heap[child + 1], heap[child]);
        if (before(share, moving, heap[child])) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

int32_t moem_sample(const moem_sampling *sampling, const float *logits, int64_t vocab,
                    uint64_t stream, uint64_t position, void *scratch)
{
    const int32_t best = largest(logits, vocab);
    if (!(sampling->temperature > 0)) {
        return best;
    }
    float *share = scratch;
    int32_t *heap = (int32_t *)(void *)(share + vocab);
    double total = 0;
    for (int64_t i = 0; i < vocab; i++) {
        share[i] = (float)exp(((double)logits[i] - (double)logits[best]) / sampling->temperature);
        total += (double)share[i];
        heap[i] = (int32_t)i;
    }
    for (int64_t i = vocab / 2; i-- > 0;) {
        sift(share, heap, vocab, i);
    }
    // Takes the likeliest tokens to the end of the heap until they reach top_p.
    const double enough = sampling->top_p * total;
    double kept = 0;
    int64_t left = vocab;
    while (left > 0 && (kept < enough || left == vocab)) {
        const int32_t id = heap[0];
        heap[0] = heap[--left];
        sift(share, heap, left, 0);
        heap[left] = id;
        kept += (double)share[id];
    }
    const double drawn = uniform(sampling->seed, stream, position) * kept;
    double sum = 0;
    for (int64_t i = vocab; i-- > left;) {
        sum += (double)share[heap[i]];
        if (drawn < sum) {
            return heap[i];
        }
    }
    return heap[left];
}
