// SPDX-License-Identifier: Apache-2.0
// `moe check` on a backend with memory of its own, far_device.h's: the walks pass on it as it is,
// and notice every mistake that it is told to make.
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkmoe/check_big.h"
#include "checkmoe/check_layer.h"
#include "checkmoe/checkmoe.h"
#include "checkmoe/ledger.h"
#include "checkmoe/op_run.h"
#include "unit/far_device.h"
#include "unit/packed_rows.h"
#include "unit/test.h"

static far_device *far;

// ---- mistakes ----------------------------------------------------------------------------------

typedef enum mistake {
    NO_MISTAKE,
    WRITES_BEFORE, // a byte before what sort and the second product write
    WRITES_AFTER,  // a byte after what glu and combine write
    WRITES_INPUT,  // a byte of the input of combine and of a product
    WRONG_BIT,     // the lowest bit of the first output of route, glu and combine
    UNSTEADY,      // the same, in every other run
    UNSYNCED,      // the same, where warp roles wait
    WRONG_STEPS,   // the first output of a layer whose steps are run at once
    WRONG_REPLAY,  // the first output of a layer in a graph
    STALE_REPLAY,  // a graph runs once, then never
    EAGER_CAPTURE, // what is captured runs, too
    WRONG_REFUSAL, // no memory is a failure of the device
    UNCLEAN,       // the first output of a layer, once memory was refused
    RECOVERS,      // from a fault, of which it says nothing more
    WRAPS,         // offsets of experts are too small
    FAILS          // every op
} mistake;

static mistake told;
static _Thread_local bool in_steps; // of a run
static bool in_graph;
static bool refused; // memory
static bool lost;    // a kernel has read what it may not

static void touch(const void *at)
{
    *(unsigned char *)(uintptr_t)at ^= 1;
}

static bool wrong_now(void)
{
    return told == WRONG_BIT || (told == UNSTEADY && far->calls % 2 == 1) ||
           (told == UNSYNCED && far->delay >> 4 & 1);
}

static void spoil_route(const moek_route_args *a)
{
    if (wrong_now() && a->tokens > 0) {
        touch(a->weights);
    }
}

static void spoil_sort(const moek_sort_args *a)
{
    if (told == WRITES_BEFORE) {
        touch((const unsigned char *)a->slots - 1);
    }
}

static void spoil_ggemm(const moek_ggemm_args *a)
{
    if (told == WRITES_BEFORE) {
        touch(a->y - 1);
    } else if (told == WRITES_INPUT) {
        touch(a->x.data);
    }
}

static void spoil_glu(const moek_glu_args *a)
{
    if (told == WRITES_AFTER) {
        touch(a->y + a->batches * a->rows * a->y_row_stride);
    } else if (wrong_now() && a->rows > 0) {
        touch(a->y);
    }
}

static void spoil_combine(const moek_combine_args *a)
{
    if (a->tokens == 0) {
        return;
    }
    if (told == WRITES_AFTER) {
        touch(a->out + a->tokens * a->out_token_stride);
    } else if (told == WRITES_INPUT && a->slots != NULL) {
        touch(a->slots);
    } else if (wrong_now() || (told == WRONG_STEPS && in_steps) ||
               (told == WRONG_REPLAY && in_graph) || (told == UNCLEAN && refused)) {
        touch(a->out);
    }
}

static moe_status spoil(moei_op op, const void *args)
{
    MOE_REQUIRE(told != FAILS, MOE_E_DEVICE, "device: a launch failed");
    switch (op) {
    case MOEI_OP_ROUTE:
        spoil_route(args);
        break;
    case MOEI_OP_SORT:
        spoil_sort(args);
        break;
    case MOEI_OP_GGEMM:
        spoil_ggemm(args);
        break;
    case MOEI_OP_GLU:
        spoil_glu(args);
        break;
    case MOEI_OP_COMBINE:
        spoil_combine(args);
        break;
    default:
        break;
    }
    return MOE_OK;
}

static moe_status run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    moe_status status = MOE_OK;
    in_steps = true;
    for (int32_t i = 0; i < count && status == MOE_OK; i++) {
        status = moec_op_call(exec, steps[i].kernel, &steps[i].args);
    }
    in_steps = false;
    return status;
}

static moei_backend sound; // as the device was made
static unsigned long replays;

static moe_status graph_capture(const moei_exec *exec,
                                moe_status (*enqueue)(void *arg, void *stream), void *arg,
                                void **graph)
{
    if (told == EAGER_CAPTURE) {
        MOE_TRY(enqueue(arg, NULL));
    }
    replays = 0;
    return sound.graph_capture(exec, enqueue, arg, graph);
}

static moe_status graph_run(const moei_exec *exec, void *graph)
{
    if (told == STALE_REPLAY && replays++ > 0) {
        return MOE_OK;
    }
    in_graph = true;
    const moe_status status = sound.graph_run(exec, graph);
    in_graph = false;
    return status;
}

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    MOE_REQUIRE(!lost || told == RECOVERS, MOE_E_DEVICE, "device: a kernel faulted");
    const moe_status status = sound.memory_alloc(exec, bytes, out);
    refused = refused || status != MOE_OK;
    return status != MOE_OK && told == WRONG_REFUSAL ? MOE_E_DEVICE : status;
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    MOE_REQUIRE(!lost || told == RECOVERS, MOE_E_DEVICE, "device: a kernel faulted");
    return sound.memory_copy(exec, to, from, bytes, direction);
}

// A launch that faults, as devices notice it: later.
static bool faults(const void *x)
{
    lost = lost || (uintptr_t)x == MOEC_FAULT_ADDRESS;
    return lost;
}

static moe_status quantize(const moei_exec *exec, const moei_kernel *kernel,
                           const moek_quantize_args *args)
{
    MOE_REQUIRE(!lost || told == RECOVERS, MOE_E_DEVICE, "device: a kernel faulted");
    return faults(args->x) ? MOE_OK : sound.quantize(exec, kernel, args);
}

static moe_status ggemm(const moei_exec *exec, const moei_kernel *kernel,
                        const moek_ggemm_args *args)
{
    moek_ggemm_args a = *args;
    MOE_REQUIRE(!lost || told == RECOVERS, MOE_E_DEVICE, "device: a kernel faulted");
    a.w.value_e_stride /= told == WRAPS ? 2 : 1;
    return faults(args->x.data) ? MOE_OK : sound.ggemm(exec, kernel, &a);
}

static moe_status route(const moei_exec *exec, const moei_kernel *kernel,
                        const moek_route_args *args)
{
    MOE_REQUIRE(!lost || told == RECOVERS, MOE_E_DEVICE, "device: a kernel faulted");
    return sound.route(exec, kernel, args);
}

// ---- checks ------------------------------------------------------------------------------------

static void move(moe_context *ctx)
{
    ctx->backend = &far->backend;
}

static const char *ledger, *hashes; // NULL: no records
static int32_t delay_runs;

// Of rows one case in so many, since the checks themselves are what is looked at here: no divisor
// of the number of fills, so that each is among them. All where there are few, or where a record
// counts them.
static int32_t every_of(const char *kernel)
{
    return ledger != NULL || strstr(kernel, "_i32") != NULL ? 1 : 5;
}

// Runs rows and layer cases; returns what was printed, to be freed.
static char *check(const char *kernel, void (*spoil_ctx)(moe_context *), moec_counts *counts)
{
    const moec_options o = {.kernel = kernel,
                            .threads = 2,
                            .program = "moe",
                            .quick = true,
                            .ledger = ledger,
                            .hashes = hashes,
                            .record = ledger != NULL ? moec_ledger_write : NULL,
                            .delay = 5,
                            .delay_runs = delay_runs,
                            .every = every_of(kernel),
                            .spoil = spoil_ctx};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    memset(counts, 0, sizeof *counts);
    if (out == NULL) {
        abort();
    }
    CHECK(moec_graph_run(&o, out, counts) == 0 && moec_kernels_run(&o, out, counts) == 0 &&
              moec_layer_run(&o, out, counts) == 0 && moec_device_run(&o, out, counts) == 0,
          "%s: %s", kernel, moe_last_error());
    (void)fclose(out);
    return text;
}

static void test_sound(void)
{
    static const char *const rows[] = {"moek_route_*__ref",
                                       "moek_place_*__ref",
                                       "moek_sort_*__ref",
                                       "moek_quantize_*__ref",
                                       "moek_glu_*__ref",
                                       "moek_combine_*__ref",
                                       "*__ref_fma_b32",
                                       "*__ref_fma_b128",
                                       "*__ref_fma_i32",
                                       "layer-*6",
                                       "graph-*"};
    moec_counts counts;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const unsigned long calls = far->calls;
        char *text = check(rows[i], move, &counts);
        CHECK(counts.failed == 0 && counts.skipped == 0 && counts.passed > 100 &&
                  far->calls > calls,
              "%s: %s", rows[i], text);
        free(text);
    }
    CHECK(far->live == 0, "%zu bytes of the device are lost", far->live);
}

static void test_mistakes(void)
{
    static const struct {
        mistake mistake;
        const char *kernel, *text;
    } cases[] = {
        {WRITES_BEFORE, "moek_sort_*__ref", "memory was written 1 bytes before output"},
        {WRITES_BEFORE, "*__ref_i32", "memory was written 1 bytes before output"},
        {WRITES_AFTER, "moek_glu_*__ref", "memory was written 0 bytes after the end of output"},
        {WRITES_AFTER, "moek_combine_*__ref", "after the end of output"},
        {WRITES_INPUT, "moek_combine_*__ref", "byte 0 of input 0 was written"},
        {WRITES_INPUT, "*__ref_i32", "was written"},
        {WRONG_BIT, "moek_route_*__ref", "bits differ from moek_route_"},
        {WRONG_BIT, "moek_glu_*__ref", "bits differ from moek_glu_"},
        {UNSTEADY, "moek_glu_*__ref", "two runs differ"},
        {UNSTEADY, "moek_combine_*__ref", "two runs differ"},
        {WRITES_AFTER, "layer-1?", "layer-1"},
        {WRITES_INPUT, "layer-1?", "of input 0 was written"},
        {WRONG_BIT, "layer-1?", "the CPU gives another result in the same class"},
        {UNSTEADY, "layer-1?", "two runs differ"},
        {WRONG_STEPS, "layer-1?", "running the steps at once changes the result"},
        {WRONG_REPLAY, "graph-1?", "a replayed graph differs from a run, the first tokens: out"},
        {STALE_REPLAY, "graph-1?", "a replayed graph differs from a run, other tokens: out"},
        {WRONG_REFUSAL, "memory", "17592186044416 bytes of memory: MOE_E_DEVICE: far: no memory"},
        {UNCLEAN, "memory", "memory that was refused changes the next run"},
        {EAGER_CAPTURE, "graph-1?", "capturing a run ran it"},
        {WRITES_AFTER, "graph-1?", "graph-1"},
        {FAILS, "graph-1?", "device: a launch failed"},
        {FAILS, "layer-1?", "device: a launch failed"},
        {FAILS, "moek_quantize_*__ref", "device: a launch failed"},
        {FAILS, "moek_place_*__ref", "device: a launch failed"},
    };
    moec_counts counts;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        told = cases[i].mistake;
        refused = false;
        char *text = check(cases[i].kernel, move, &counts);
        CHECK(counts.failed > 0 && strstr(text, cases[i].text) != NULL,
              "mistake %d, %s: no \"%s\" in %s", (int)cases[i].mistake, cases[i].kernel,
              cases[i].text, text);
        free(text);
    }
    told = NO_MISTAKE;
}

static moec_counts big(mistake what, moe_context *ctx, char **text)
{
    static const moec_big_sizes small = {3, 256, 264, 4099, 8};
    const moec_options options = {.seed = 1};
    moec_counts counts = {0};
    size_t size = 0;
    moec_run run = {.options = &options, .counts = &counts, .out = open_memstream(text, &size)};
    if (run.out == NULL) {
        abort();
    }
    told = what;
    CHECK(moec_big_check(&run, ctx, &small) == MOE_OK, "%s", moe_last_error());
    told = NO_MISTAKE;
    (void)fclose(run.out);
    return counts;
}

// The layer of large weights, with small ones: on the host, on the device, and where offsets wrap.
static void test_big(moe_context *host)
{
    moe_context device = *host;
    char *text = NULL;
    moec_counts counts = big(NO_MISTAKE, host, &text);
    CHECK(counts.failed == 0 && counts.passed == 5, "%lu passed: %s", counts.passed, text);
    free(text);
    move(&device);
    counts = big(NO_MISTAKE, &device, &text);
    CHECK(counts.failed == 0 && counts.passed == 5, "%lu passed: %s", counts.passed, text);
    free(text);
    counts = big(WRAPS, &device, &text);
    CHECK(counts.failed == 2 && strstr(text, "big: rows of level KERNEL: offsets") != NULL, "%s",
          text);
    free(text);
    CHECK(far->live == 0, "%zu bytes of the device are lost", far->live);
}

static void test_memory(void)
{
    moec_counts counts;
    char *text = check("memory", move, &counts);
    CHECK(counts.failed == 0 && counts.skipped == 0 && counts.passed > 10, "%s", text);
    free(text);
}

// A fault is the end of the device; one that goes on as if nothing had been is found.
static void test_fault(void)
{
    moec_counts counts;
    char *text = check("fault", move, &counts);
    CHECK(counts.failed == 0 && counts.passed > 5, "%s", text);
    free(text);
    lost = false;
    told = RECOVERS;
    text = check("fault", move, &counts);
    CHECK(counts.failed > 3 && strstr(text, "after a fault, a run: MOE_OK") != NULL, "%s", text);
    free(text);
    told = NO_MISTAKE;
    lost = false;
    CHECK(far->live == 0, "%zu bytes of the device are lost", far->live);
}

// A mistake that needs a delay is found by those runs alone, and the line that repeats it has them.
static void test_delays(void)
{
    static const struct {
        mistake mistake;
        int32_t runs;
        const char *kernel, *text;
    } cases[] = {{NO_MISTAKE, 6, "layer-1", "passed, 0 failed"},
                 {UNSYNCED, 0, "layer-1", "passed, 0 failed"},
                 {UNSYNCED, 6, "layer-1", "delays in the kernels change the result (run "},
                 {UNSYNCED, 6, "layer-1", "--delay 5 --runs 6 --seed 1"},
                 {UNSYNCED, 0, "moek_glu_*__ref", "passed, 0 failed"},
                 {UNSYNCED, 6, "moek_glu_*__ref", "delays in the kernel change the bits (run "}};
    moec_counts counts;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        told = cases[i].mistake;
        delay_runs = cases[i].runs;
        char *text = check(cases[i].kernel, move, &counts);
        CHECK((counts.failed > 0) == (told == UNSYNCED && delay_runs > 0) &&
                  strstr(text, cases[i].text) != NULL,
              "%s: no \"%s\" in %s", cases[i].kernel, cases[i].text, text);
        free(text);
    }
    told = NO_MISTAKE;
    delay_runs = 0;
}

// Rows of a packed layout: on host memory, and on the device. Where pack, unpack or the kernel is
// wrong, it shows.
static packed_rows *rows;

static void move_to_rows(moe_context *ctx)
{
    packed_rows_move(ctx, &rows->backend);
}

static void move_to_device(moe_context *ctx)
{
    packed_rows_move(ctx, &far->backend);
}

static void wrong_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    rows->backend.unpack(kernel, from, to);
    if (to->scales != NULL) {
        *(uint8_t *)(uintptr_t)to->scales ^= 1;
    }
}

static void test_packed(const moei_backend *cpu)
{
    static const struct {
        const char *kernel;
        void (*move)(moe_context *);
    } cases[] = {{"*__ref_fma_b32_packed", move_to_rows},
                 {"*__ref_fma_b128_packed", move_to_device},
                 {"*__ref_fma_i32_packed", move_to_device}};
    moec_counts counts;
    rows = packed_rows_make(cpu);
    far_device_free();
    far = far_device_make(&rows->backend, (size_t)1 << 30);
    if (!CHECK(far != NULL, "no memory for a device")) {
        return;
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const unsigned long before = rows->packed;
        char *text = check(cases[i].kernel, cases[i].move, &counts);
        CHECK(counts.failed == 0 && counts.skipped == 0 && counts.passed > 100 &&
                  rows->packed > before + 20,
              "%s: %lu experts packed: %s", cases[i].kernel, rows->packed - before, text);
        free(text);
    }
    far->backend.unpack = wrong_unpack;
    char *text = check(cases[1].kernel, move_to_device, &counts);
    CHECK(counts.failed > 0 && strstr(text, "pack and unpack change scales") != NULL, "%s", text);
    free(text);
    far->backend.unpack = rows->backend.unpack;
    rows->refuse_after = 20;
    text = check(cases[2].kernel, move_to_device, &counts);
    CHECK(counts.failed > 0 && strstr(text, "packed: told to refuse") != NULL, "%s", text);
    free(text);
    rows->refuse_after = -1;
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0, "%s cannot be written",
          path);
}

static void read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    text[file != NULL ? fread(text, 1, size - 1, file) : 0] = '\0';
    if (file != NULL) {
        (void)fclose(file);
    }
}

// Rows that pass are recorded, others are not.
static void test_ledger(void)
{
    static const char hash[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    static const char *const parts[] = {"\"row\": \"moek_ggemm_any_any_any__ref_i32\"",
                                        "\"arith\": \"i32\"",
                                        "\"seed\": 1,",
                                        "\"cases\": 24,",
                                        "\"failed\": 0,",
                                        "\"device\": \"",
                                        "\"worst_error_of_bound\": "};
    char folder[] = "/tmp/moe-ledger-XXXXXX";
    char list[64];
    char record[128];
    char text[2048];
    moec_counts counts;
    if (!CHECK(mkdtemp(folder) != NULL, "no folder")) {
        return;
    }
    (void)snprintf(list, sizeof list, "%s/hashes", folder);
    (void)snprintf(record, sizeof record, "%s/moek_ggemm_any_any_any__ref_i32.json", folder);
    (void)snprintf(text, sizeof text, "moek_ggemm_any_any_any__ref_i32b %s\n%s %s\n", "other",
                   "moek_ggemm_any_any_any__ref_i32", hash);
    write_text(list, text);
    ledger = folder;
    hashes = list;
    told = WRITES_INPUT;
    free(check("*__ref_i32", move, &counts));
    CHECK(counts.failed > 0 && access(record, F_OK) != 0, "a row that fails is recorded");
    told = NO_MISTAKE;
    char *printed = check("*__ref_i32", move, &counts);
    CHECK(counts.failed == 0 && strstr(printed, "recorded /tmp/") != NULL, "%s", printed);
    free(printed);
    read_text(record, text, sizeof text);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        CHECK(strstr(text, parts[i]) != NULL, "no %s in %s", parts[i], text);
    }
    CHECK(strstr(text, hash) != NULL, "no hash of the sources: %s", text);
    printed = check("moek_place_*__ref", move, &counts);
    CHECK(counts.failed == 0 && strstr(printed, "not recorded: moek_place_") != NULL, "%s",
          printed);
    free(printed);
    (void)remove(record);
    ledger = list; // no folder: a record cannot be written
    printed = check("*__ref_i32", move, &counts);
    CHECK(counts.failed == 1, "%s", printed);
    free(printed);
    ledger = NULL;
    hashes = NULL;
    (void)remove(list);
    (void)remove(folder);
}

int main(void)
{
    moe_context *host = NULL;
    if (!CHECK(moe_context_create(NULL, &host) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    far = far_device_make(host->backend, (size_t)1 << 30);
    if (CHECK(far != NULL, "no address space for a device")) {
        far->after = spoil;
        sound = far->backend;
        far->backend.run_steps = run_steps;
        far->backend.graph_capture = graph_capture;
        far->backend.graph_run = graph_run;
        far->backend.memory_alloc = memory_alloc;
        far->backend.memory_copy = memory_copy;
        far->backend.route = route;
        far->backend.quantize = quantize;
        far->backend.ggemm = ggemm;
        test_sound();
        test_mistakes();
        test_delays();
        test_big(host);
        test_memory();
        test_fault();
        test_ledger();
        test_packed(host->backend); // on another device
        far_device_free();
    }
    moe_context_destroy(host);
    return test_summary();
}
