// SPDX-License-Identifier: Apache-2.0
// The program moe: commands, options and exit codes.
#ifndef MOE_CLI_H
#define MOE_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe/io.h"
#include "moe/moe.h"

enum {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_UNSUPPORTED = 3,
    CLI_INTERRUPTED = 130 // as shells report SIGINT
};

/// One option of a command: `--name value`, or `--name` alone where value is NULL.
typedef struct cli_option {
    const char *name;
    const char **value; // receives the argument
    bool *flag;         // or is set
} cli_option;

/// Reads options; what does not begin with -- goes to positional (at most max). Returns false after
/// one line on stderr about what is wrong.
bool cli_parse(int argc, char **argv, const cli_option *options, const char **positional, int max,
               int *count);

/// A whole number in [low, high]; false after one line on stderr that names the option.
bool cli_number(const char *name, const char *text, int64_t low, int64_t high, int64_t *out);

/// A finite number in [low, high], likewise.
bool cli_real(const char *name, const char *text, double low, double high, double *out);

/// H,I,E,k, or the name of a model of bench/shapes.def; likewise.
bool cli_shape(const char *text, moe_layer_desc *d);

/// The activation of a named shape in the format of its public checkpoint; plain SwiGLU in others.
moe_activation cli_shape_activation(const char *name, moe_format format);

/// What a shape leaves open: softmax over all experts, renormalised; SwiGLU, gate rows first.
void cli_plain_layer(moe_layer_desc *d);

/// The level of a --det argument; false after one line on stderr. And its name.
bool cli_level(const char *text, moe_determinism *out);
const char *cli_level_name(moe_determinism level);

/// A format by name; a quantiser, "NAME" or "NAME:ELEMENT", or "none". False after one line on
/// stderr.
bool cli_format(const char *option, const char *text, moe_format *out);
bool cli_quantiser(const char *option, const char *text, moe_quant_desc *out);

/// The device of a --device argument; false after one line on stderr.
bool cli_device(const char *text, moe_device_type *out);

/// A context for the options that all commands share (--threads, --device); NULL after one line on
/// stderr, with *code the exit code.
moe_context *cli_context(const char *threads, const char *device, int *code);

/// Prints the last message on stderr; the exit code of a status.
int cli_failed(moe_status status);

/// "12.34 MB", of a number of bytes.
const char *cli_size_text(uint64_t bytes, char text[32]);

/// Prints a string as JSON, quotes included, or with what is not printable ASCII escaped.
void cli_json_text(const char *bytes, size_t size);
void cli_json_string(const char *text);
void cli_plain_string(const char *text);

#define CLI_PATH_BYTES 4096

/// "DIR:3" to DIR and 3; without a colon, 0. False after one line on stderr.
bool cli_split(const char *where, char dir[CLI_PATH_BYTES], int64_t *layer);

/// A folder with a checkpoint and its config.json.
typedef struct cli_model {
    moe_checkpoint *checkpoint;
    char *config;
    size_t config_size;
} cli_model;

/// False after one line on stderr.
bool cli_model_open(const char *dir, uint32_t flags, cli_model *out);
void cli_model_close(cli_model *model);

/// The bytes of a file ("-": standard input) of at most `most` bytes, with a NUL after them, to be
/// freed; NULL after one line on stderr.
char *cli_read_file(const char *path, size_t most, size_t *size);

/// Whether colours may go to this stream: a terminal, and NO_COLOR is not set.
bool cli_colour(FILE *stream);

/// Whether a file begins as packed ones do; what `moe inspect` says of one.
bool cli_is_packed(const char *path);
int cli_inspect_packed(const char *path, uint32_t flags, bool json);

int cmd_info(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_pack(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_stats(int argc, char **argv);

#endif
