// SPDX-License-Identifier: Apache-2.0
// A decoder's config.json: what is read must be usable, its rotary frequencies finite.
#include <math.h>
#include <stdlib.h>

#include "fuzz.h"
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static moem_config c;
    if (moem_config_parse((const char *)data, size, "config", &c) != MOE_OK) {
        FUZZ_REQUIRE(moe_last_error()[0] != '\0');
        return 0;
    }
    FUZZ_REQUIRE(c.layers >= 1 && c.layers <= MOEM_MAX_LAYERS && c.heads % c.kv_heads == 0);
    FUZZ_REQUIRE(c.num_eos >= 0 && c.num_eos <= MOEM_MAX_EOS && isfinite(c.rope_attention));
    if (c.head_dim <= 4096) {
        float *frequencies = malloc((size_t)c.head_dim / 2 * sizeof *frequencies);
        FUZZ_REQUIRE(frequencies != NULL);
        moem_rope_frequencies(&c, frequencies);
        for (int64_t i = 0; i < c.head_dim / 2; i++) {
            FUZZ_REQUIRE(isfinite(frequencies[i]) && frequencies[i] >= 0);
        }
        free(frequencies);
    }
    return 0;
}
