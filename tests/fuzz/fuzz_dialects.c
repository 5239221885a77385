// SPDX-License-Identifier: Apache-2.0
// A checkpoint on any bytes: which layer of experts its tensors are. The first byte chooses the
// configuration, the rest is a safetensors file. A layer that opens must load.
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "moe/io.h"
#include "moe/moe.h"

#define CONFIG(type, h, i, e, more)                                                                \
    "{\"model_type\":\"" type "\",\"hidden_size\":" #h ",\"moe_intermediate_size\":" #i            \
    ",\"intermediate_size\":" #i ",\"num_experts\":" #e ",\"num_local_experts\":" #e               \
    ",\"num_experts_per_tok\":1,\"hidden_act\":\"silu\"" more "}"

static const char *const configs[] = {
    CONFIG("qwen3_moe", 4, 2, 2, ""),
    CONFIG("qwen3_moe", 32, 32, 1, ""),
    CONFIG("gpt_oss", 32, 32, 1, ""),
    CONFIG("qwen2_moe", 4, 2, 1, ",\"shared_expert_intermediate_size\":2"),
};
#define NUM_CONFIGS (sizeof configs / sizeof configs[0])

static int count(void *self, const moe_layer_tensor *t)
{
    FUZZ_REQUIRE(t->name != NULL && t->role != MOE_ROLE_UNSET);
    ++*(size_t *)self;
    return 0;
}

// A value of a scale, or the lack of a kernel, may refuse it; never a shape or a type.
static void load(const moe_checkpoint_layer *layer)
{
    static moe_context *ctx;
    moe_layer_desc d = moe_layer_desc_default();
    moe_plan *plan = NULL;
    moe_weights *weights = NULL;
    size_t bytes = 0;
    size_t align = 0;
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    FUZZ_REQUIRE(ctx != NULL || moe_context_create(&desc, &ctx) == MOE_OK);
    d.x_dtype = MOE_F32;
    d.max_tokens = 1;
    FUZZ_REQUIRE(moe_checkpoint_layer_desc(layer, &d) == MOE_OK);
    if (moe_plan_create(ctx, &d, &plan) != MOE_OK) {
        return;
    }
    int wraps = 0;
    moe_status status = moe_checkpoint_layer_wraps(layer, plan, &wraps);
    FUZZ_REQUIRE(moe_checkpoint_layer_bytes(layer, plan, &bytes, &align) == MOE_OK);
    if (status == MOE_OK) {
        void *memory = wraps == 0 ? aligned_alloc(4096, (bytes + 4095) / 4096 * 4096) : NULL;
        status = moe_checkpoint_layer_load(layer, plan, memory, bytes, &weights);
        moe_weights_destroy(weights);
        free(memory);
    }
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_VALUE);
    moe_plan_destroy(plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    moe_checkpoint *checkpoint = NULL;
    moe_checkpoint_layer *layer = NULL;
    if (size == 0) {
        return 0;
    }
    if (fd < 0) {
        fd = memfd_create("checkpoint", MFD_CLOEXEC);
        FUZZ_REQUIRE(fd >= 0);
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    FUZZ_REQUIRE(ftruncate(fd, 0) == 0);
    FUZZ_REQUIRE(pwrite(fd, data + 1, size - 1, 0) == (ssize_t)(size - 1));
    const char *config = configs[data[0] % NUM_CONFIGS];
    if (moe_checkpoint_open(path, MOE_FILE_NO_MMAP, &checkpoint) == MOE_OK) {
        const moe_status status =
            moe_checkpoint_layer_open(checkpoint, config, strlen(config), 0, &layer);
        FUZZ_REQUIRE((status == MOE_OK) == (layer != NULL));
        if (layer != NULL) {
            size_t visited = 0;
            FUZZ_REQUIRE(moe_checkpoint_layer_visit(layer, count, &visited) == MOE_OK);
            FUZZ_REQUIRE(visited > 0 && visited <= moe_checkpoint_count(checkpoint));
            load(layer);
        }
        moe_checkpoint_layer_close(layer);
    }
    moe_checkpoint_close(checkpoint);
    return 0;
}
