// SPDX-License-Identifier: Apache-2.0
// What a case says and holds: its verdict, its items, its tensors.
#include "checkmoe/oracle_case.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

void moec_case_fail(struct moec_case *c, const char *format, ...)
{
    if (!c->failed) {
        va_list args;
        va_start(args, format);
        (void)vsnprintf(c->reason, sizeof c->reason, format, args);
        va_end(args);
    }
    c->failed = 1;
}

int moec_case_ok(struct moec_case *c, moe_status status)
{
    if (status == MOE_OK) {
        return 1;
    }
    if (status == MOE_E_UNSUPPORTED) {
        (void)snprintf(c->reason, sizeof c->reason, "%s", moe_last_error());
        c->skipped = 1;
    } else {
        moec_case_fail(c, "%s: %s", moe_status_name(status), moe_last_error());
    }
    return 0;
}

void moec_case_note(struct moec_case *c, const char *text)
{
    const size_t used = strlen(c->notes);
    if (strstr(c->notes, text) != NULL) {
        return;
    }
    (void)snprintf(c->notes + used, sizeof c->notes - used, "; %s", text);
}

// -- Items and roles ----------------------------------------------------------------------------

const char *moec_json_string(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

// An item of the case, also where the file says that it equals another one.
static int find_item(const struct moec_case *c, const char *item, moe_tensor *out)
{
    const json_t *identical = json_object_get(c->json, "identical_to");
    for (int hops = 0; item != NULL && hops < 8; hops++) {
        char full[2 * MOEC_TEXT];
        (void)snprintf(full, sizeof full, "%s/%s", c->name, item);
        if (moe_file_tensor(c->file, full, out) == MOE_OK) {
            return 1;
        }
        item = moec_json_string(identical, item);
    }
    return 0;
}

int moec_case_item(const struct moec_case *c, const char *stem, int64_t tokens, moe_tensor *out)
{
    char item[MOEC_TEXT];
    (void)snprintf(item, sizeof item, "%s.T%" PRId64, stem, tokens);
    return find_item(c, item, out);
}

moe_status moec_case_weight(void *self, const char *name, moe_tensor *out)
{
    const struct moec_case *c = self;
    char full[2 * MOEC_TEXT];
    (void)snprintf(full, sizeof full, "%s/w.%s", c->name, name);
    return moe_file_tensor(c->file, full, out);
}

int moec_case_role(struct moec_case *c, const char *role, moe_tensor *out)
{
    const char *name = moec_json_string(c->tensors, role);
    memset(out, 0, sizeof *out);
    if (name == NULL) {
        return 0;
    }
    if (moec_case_weight(c, name, out) != MOE_OK) {
        moec_case_fail(c, "role %s: %s", role, moe_last_error());
        return 0;
    }
    return 1;
}
