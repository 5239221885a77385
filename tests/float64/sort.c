// SPDX-License-Identifier: Apache-2.0
#include "float64/sort.h"

void plain_sort_run(plain_sort *s)
{
    int64_t at = 0;
    int64_t block = 0;
    for (int64_t i = 0; i < s->padded; i++) {
        s->slots[i] = (int32_t)s->num_slots;
    }
    for (int64_t i = 0; i < s->num_slots; i++) {
        s->positions[i] = -1;
    }
    for (int32_t e = 0; e < s->num_experts; e++) {
        const int64_t first = at;
        for (int64_t i = 0; i < s->num_slots; i++) {
            if (s->experts[i] == e) {
                s->slots[at] = (int32_t)i;
                s->positions[i] = (int32_t)at;
                at++;
            }
        }
        s->counts[e] = (int32_t)(at - first);
        if (s->block == 0) {
            s->offsets[e] = (int32_t)first;
            continue;
        }
        while (at % s->block != 0) {
            at++;
        }
        for (; block < at / s->block; block++) {
            s->block_experts[block] = e;
        }
    }
    s->num_padded = (int32_t)at;
    if (s->block == 0) {
        s->offsets[s->num_experts] = (int32_t)at;
        return;
    }
    for (; block * s->block < s->padded; block++) {
        s->block_experts[block] = -1;
    }
}
