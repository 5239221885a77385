// SPDX-License-Identifier: Apache-2.0
// checkmoe: every kernel row x instruction set x cases, against float64, with guard pages, poison
// and bit equality. The same library is `moe check` in the program that users have.
#ifndef MOE_CHECKMOE_H
#define MOE_CHECKMOE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "checkmoe/report.h"
#include "moe/moe.h"

struct moei_kernel;
struct moec_run;

typedef struct moec_options {
    const char *kernel;     // glob over row names; NULL: all
    const char *isa;        // ceiling; NULL: all of the machine
    moe_device_type device; // 0: the CPU
    moe_format format;      // weight format of products, which are then all that is checked; 0: all
    uint64_t seed;          // 0: 1
    int32_t threads;        // 0: all
    const char *program;    // name in repro lines
    bool verbose;           // a report for what passes, too
    bool list;              // names what would run, and runs nothing
    bool quick; // of a whole model, prompts alone: no long text, no variations; no large products
    const char *ledger; // folder that gets a record of every row that passes; NULL: none
    const char *hashes; // with it: the file of hashes of their sources (tools/source_hash.py)
    /// Told of every row that passed `passed` checks: moec_ledger_write; NULL: nobody.
    void (*record)(struct moec_run *run, const struct moei_kernel *kernel, unsigned long passed);
    FILE *bits;     // gets a line of every case whose bits all machines must give; NULL: none
    uint64_t delay; // seed: every case runs `delay_runs` more times, each with delays of another
                    // seed in its kernels (moei_exec.delay), and must give the same bits; 0: no
    int32_t delay_runs;
    bool apart;    // on a device every buffer is an allocation of its own
    int32_t every; // one case in so many of each kernel row, which ones says the seed; 0: all
    /// For tests of the checks: called on every new context that kernel rows and layers run in.
    void (*spoil)(moe_context *ctx);
} moec_options;

typedef struct moec_counts {
    unsigned long passed, failed, skipped;
    unsigned long selected; // rows and cases that the options name
} moec_counts;

/// The bits that the first row of a kind gave for a case: all others must give the same.
typedef struct moec_seen {
    const struct moei_kernel *kernel;
    uint64_t hash;
} moec_seen;

/// Where checks report. Every failure prints a block: a line that begins with FAIL, then indented
/// lines, the last of which repeats it.
typedef struct moec_run {
    const moec_options *options;
    FILE *out;
    moec_counts *counts;
    const moe_context *ctx;
    const char *isa;        // ceiling that repeats the row in hand; NULL: that of the options
    moec_seen *seen;        // NULL: rows are not compared with each other
    const moe_context *cpu; // reference for the rows of another backend; NULL: they are the CPU's
    unsigned long cases;    // of the row in hand
    double worst;           // largest error / bound of its products
} moec_run;

/// Counts a result; prints the message and the repro line where it is a failure. Returns `ok`.
/// `repro`: the row or case (a glob) that repeats it.
bool moec_check(moec_run *run, bool ok, const char *repro, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/// Counts a failure that a quick look found in a comparison, and prints the comparison's report
/// under a label. `compare` needs neither label, repro nor out.
void moec_fail_compare(moec_run *run, const moec_compare *compare, const char *repro,
                       const char *format, ...) __attribute__((format(printf, 4, 5)));

/// Compares two blocks of memory byte for byte, both as rows of a shape and dtype, and counts the
/// result; a failure prints the report of the tensors.
bool moec_check_same(moec_run *run, moe_dtype dtype, int64_t rows, int64_t columns,
                     const void *actual, const void *expected, const char *repro,
                     const char *format, ...) __attribute__((format(printf, 8, 9)));

/// Whether the options want case `number` of a kernel row.
bool moec_wants_case(const moec_run *run, int number);

/// The command that repeats a row or case.
void moec_repro(const moec_run *run, const char *name, char *text, size_t size);

/// Begins to keep the bits of cases; to be freed with free(run->seen). False: memory is short.
bool moec_seen_begin(moec_run *run);

/// Case `number` of all rows that must agree with this one; NULL: not kept.
moec_seen *moec_seen_at(const moec_run *run, const struct moei_kernel *kernel, int number);

/// Writes a line to options.bits, where there is one: the name of a case, a hash of its results,
/// text.
void moec_list_bits(const moec_run *run, const char *name, uint64_t hash, const char *text);

/// Keeps the bits that a row gave for a case, which are those of the rows before it. The first time
/// they are listed as "<op or class>-<number>".
void moec_seen_keep(moec_run *run, const struct moei_kernel *kernel, int number, uint64_t hash,
                    const char *text);

/// A glob that both names match.
void moec_pair_glob(const char *a, const char *b, char *glob, size_t size);

/// Counts and prints a skip with its reason.
void moec_skip(moec_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

/// " --device NAME" as the options say, or nothing.
const char *moec_device_option(const moec_options *options, char *text, size_t size);

/// moei_exec.delay of the `run`th delayed run; not 0.
uint32_t moec_delay(const moec_options *options, int32_t run);

/// The context that the options ask for.
moe_status moec_context(const moec_options *options, moe_context **out);

/// A context of the CPU beside that of another backend, for reference and for what works on host
/// memory; NULL where ctx is the CPU's.
moe_status moec_cpu_beside(const moe_context *ctx, moe_context **out);

/// Walks all kernel rows. Returns 0, or -1 if the context could not be made.
int moec_kernels_run(const moec_options *options, FILE *out, moec_counts *counts);

/// Layer checks: invariance over batch split, permutation, companions and threads; padding; edges;
/// through the public API.
int moec_layer_run(const moec_options *options, FILE *out, moec_counts *counts);

/// Runs in device graphs, replayed with other inputs. The first capture is the first run of its
/// process where nothing ran before.
int moec_graph_run(const moec_options *options, FILE *out, moec_counts *counts);

/// Cases of a device as a whole (check_device.c): memory, big, fault. The last one leaves a process
/// without its device.
int moec_device_run(const moec_options *options, FILE *out, moec_counts *counts);

/// Glob with * and ?.
bool moec_glob(const char *pattern, const char *text);

// ---- random numbers ----------------------------------------------------------------------------

typedef struct moec_rng {
    uint64_t state;
} moec_rng;

static inline uint64_t moec_next(moec_rng *rng)
{
    uint64_t z = (rng->state += 0x9E3779B97F4A7C15u); // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/// Uniform in [0, n).
static inline int64_t moec_below(moec_rng *rng, int64_t n)
{
    return (int64_t)(moec_next(rng) % (uint64_t)n);
}

/// Roughly normal, mean 0, deviation 1.
static inline double moec_normal(moec_rng *rng)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++) {
        sum += (double)(moec_next(rng) >> 11) * 0x1p-53;
    }
    return sum;
}

// ---- memory with guard pages -------------------------------------------------------------------

/// A buffer whose first or last byte touches a page that may not be read or written.
typedef struct moec_guard {
    unsigned char *data;
    size_t bytes;
    void *map;
    size_t map_bytes;
} moec_guard;

/// at_end: data + bytes is the guard page; else data is the first byte after one. Returns false
/// when the system refuses.
bool moec_guard_alloc(moec_guard *guard, size_t bytes, bool at_end);
void moec_guard_free(moec_guard *guard);

/// FNV-1a over bytes: inputs are hashed before and after.
uint64_t moec_hash(const void *bytes, size_t size);

#endif
