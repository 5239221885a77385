// SPDX-License-Identifier: Apache-2.0
// Configurations on any bytes: the layer that a config.json or an oracle's case describes, and what
// quantization_config says of its experts. The first byte chooses: bit 0 the vocabulary of oracle
// cases, bit 1 all layers at once, the rest the layer.
#include <math.h>
#include <string.h>

#include "fuzz.h"
#include "io/quant_config.h"
#include "moe/io.h"

static moe_status shape_of(void *self, const char *name, moe_tensor *out)
{
    (void)self;
    if (strlen(name) % 7 == 0) {
        return moe_fail(MOE_E_NOT_FOUND, "fuzz: no tensor of that name");
    }
    out->ndim = (int32_t)(strlen(name) % 4);
    for (int i = 0; i < out->ndim; i++) {
        out->shape[i] = 2 * (i + 1);
    }
    return MOE_OK;
}

// What a plan may rely on.
static void check_desc(const moe_layer_desc *d)
{
    FUZZ_REQUIRE(d->hidden >= 1 && d->hidden <= 1 << 20 && d->inter >= 1 && d->inter <= 1 << 20);
    FUZZ_REQUIRE(d->num_experts >= 1 && d->num_experts <= 4096);
    FUZZ_REQUIRE(d->top_k >= 1 && d->top_k <= d->num_experts + d->route.zero_experts);
    FUZZ_REQUIRE(d->latent >= 0 && d->latent <= 1 << 20 && d->shared.count >= 0);
    FUZZ_REQUIRE(isfinite(d->route.scale) && isfinite(d->alpha) && isfinite(d->limit));
    FUZZ_REQUIRE((moe_activation_gated(d->activation) != 0) == (d->gate_up != MOE_GATE_UP_UNSET));
    FUZZ_REQUIRE(d->max_tokens == 17 && d->x_dtype == MOE_F16);
}

static void check_quantization(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"model.layers.0.mlp.experts.0.gate_proj",
                                        "model.layers.0.mlp.experts"};
    struct moei_quant_says says;
    moei_json doc;
    if (moei_json_parse(&doc, "fuzz", "config", data, size, MOEI_JSON_PYTHON) != MOE_OK) {
        return;
    }
    const moe_status status = moei_quant_read(&doc, names, 2, &says);
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_MALFORMED || status == MOE_E_UNSUPPORTED);
    FUZZ_REQUIRE(status != MOE_OK || says.given || (!says.excluded && says.method[0] == '\0'));
    moei_json_free(&doc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    const char *text = (const char *)data + 1;
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = 17;
    d.x_dtype = MOE_F16;
    const moe_layer_desc before = d;
    moe_status status;
    if ((data[0] & 1) != 0) {
        status = moe_layer_desc_from_semantics(text, size - 1, shape_of, NULL, &d);
    } else if ((data[0] & 2) != 0) {
        status = moe_layer_desc_from_config(text, size - 1, &d);
    } else {
        status = moe_layer_desc_from_config_layer(text, size - 1, data[0] >> 2, &d);
    }
    if (status == MOE_OK) {
        check_desc(&d);
    } else {
        FUZZ_REQUIRE(memcmp(&d, &before, sizeof d) == 0 && moe_last_error()[0] != '\0');
        FUZZ_REQUIRE(status == MOE_E_MALFORMED || status == MOE_E_LIMIT ||
                     status == MOE_E_NOT_FOUND || status == MOE_E_UNSUPPORTED);
    }
    check_quantization(data + 1, size - 1);
    return 0;
}
