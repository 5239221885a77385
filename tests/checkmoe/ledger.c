// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/ledger.h"

#include <jansson.h>
#include <string.h>

#include "io/write_whole.h"
#include "ops/backend.h"

#define HASH_BYTES 65 // of SHA-256 as text

// The hash of a row's sources, out of lines "row hash".
static bool find_hash(const char *path, const char *row, char hash[HASH_BYTES])
{
    char line[512];
    const size_t length = strlen(row);
    FILE *file = fopen(path, "r");
    bool found = false;
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        found = strncmp(line, row, length) == 0 && sscanf(line + length, " %64s", hash) == 1 &&
                line[length] == ' ' && strlen(hash) == HASH_BYTES - 1;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return found;
}

static bool put(FILE *file, void *record)
{
    return json_dumpf(record, file, JSON_INDENT(2) | JSON_REAL_PRECISION(4)) == 0 &&
           fputc('\n', file) != EOF;
}

static json_t *record_of(const moec_run *run, const moei_kernel *kernel, unsigned long passed,
                         const char *hash)
{
    char device[256] = "";
    uint64_t isa = 0;
    (void)run->ctx->backend->probe(&isa, device, sizeof device);
    json_t *record = json_pack("{ss ss ss ss sI sI sI si}", "row", kernel->name, "arith",
                               moei_arith_get(kernel->arith)->name, "sources", hash, "device",
                               device, "seed", (json_int_t)run->options->seed, "cases",
                               (json_int_t)run->cases, "passed", (json_int_t)passed, "failed", 0);
    if (record != NULL && kernel->op == MOEI_OP_GGEMM) {
        (void)json_object_set_new(record, "worst_error_of_bound", json_real(run->worst));
    }
    return record;
}

void moec_ledger_write(moec_run *run, const moei_kernel *kernel, unsigned long passed)
{
    const moec_options *o = run->options;
    char hash[HASH_BYTES];
    char path[4096];
    if (!find_hash(o->hashes, kernel->name, hash)) {
        (void)fprintf(run->out, "not recorded: %s has no hash in %s\n", kernel->name, o->hashes);
        return;
    }
    const int length = snprintf(path, sizeof path, "%s/%s.json", o->ledger, kernel->name);
    json_t *record = record_of(run, kernel, passed, hash);
    const bool fits = length > 0 && (size_t)length < sizeof path;
    if (record == NULL || !fits) {
        moec_check(run, false, kernel->name, "%s: %s", kernel->name,
                   fits ? "memory is short" : "the ledger's path is too long");
    } else if (moei_write_whole("moe check", path, put, record) != MOE_OK) {
        moec_check(run, false, kernel->name, "%s: %s", kernel->name, moe_last_error());
    } else {
        (void)fprintf(run->out, "recorded %s\n", path);
    }
    json_decref(record);
}
