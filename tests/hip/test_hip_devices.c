// SPDX-License-Identifier: Apache-2.0
// test_hip_devices FAULT: two devices, one with a fault of the emulator's (name@device). Rows are
// chosen by what the first answers: a second that answers no worse works, another is refused; what
// is off is a warning of the context.
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "moe/moe.h"
#include "unit/test.h"

typedef struct said {
    int warnings;
    char last[256];
} said;

static void keep(void *self, int level, const char *line)
{
    said *s = self;
    if (level == 1) {
        s->warnings++;
        (void)snprintf(s->last, sizeof s->last, "%s", line);
    }
}

static moe_status open_device(int32_t device, said *s)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    *s = (said){0, ""};
    desc.device = MOE_DEVICE_HIP;
    desc.device_id = device;
    desc.num_threads = 1;
    desc.log = keep;
    desc.log_self = s;
    const moe_status status = moe_context_create(&desc, &ctx);
    moe_context_destroy(ctx);
    return status;
}

static void works(int32_t device, int warnings, const char *words)
{
    said s;
    for (int again = 0; again < 2; again++) { // what was found is kept
        const moe_status status = open_device(device, &s);
        CHECK(status == MOE_OK, "device %d: %s", (int)device, moe_last_error());
        CHECK(s.warnings == warnings && strstr(s.last, words) != NULL, "device %d: %d warnings: %s",
              (int)device, s.warnings, s.last);
    }
}

static void is_refused(int32_t device, const char *words)
{
    said s;
    for (int again = 0; again < 2; again++) {
        const moe_status status = open_device(device, &s);
        CHECK(status == MOE_E_DEVICE && strstr(moe_last_error(), words) != NULL &&
                  strchr(moe_last_error(), '\n') == NULL,
              "device %d: %d: %s", (int)device, (int)status, moe_last_error());
    }
}

int main(int argc, char **argv)
{
    const char *fault = argc > 1 ? argv[1] : "";
    if (strcmp(fault, "mfma-rows@1") == 0) {
        works(0, 0, "");
        is_refused(1,
                   "device 1 lacks what device 0 has: gfx950 (bf16 matrix units off: bf16, layout");
        works(0, 0, "");
    } else if (strcmp(fault, "mfma-rows@0") == 0) {
        works(0, 3, "scaled matrix units off: mx_");
        works(1, 0, "");
    } else if (strcmp(fault, "div@1") == 0) {
        works(0, 0, "");
        is_refused(1, "device 1 does not compute as the kernels need: sqrt(a): of");
    } else {
        CHECK(false, "no such fault: \"%s\"", fault);
    }
    return test_summary();
}
