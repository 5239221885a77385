// SPDX-License-Identifier: Apache-2.0
// A whole model with its tokenizer, as the commands that write or read text open it.
#ifndef MOE_CLI_DECODER_H
#define MOE_CLI_DECODER_H

#include "cli.h"
#include "model/model.h"
#include "model/tokenizer.h"

/// What such commands share on their command lines; NULL: not given.
typedef struct cli_decoder_options {
    const char *device, *threads, *activation, *weights, *packed;
    bool no_mmap;
} cli_decoder_options;

typedef struct cli_decoder {
    moem_model *model;
    moem_tokenizer *tokenizer;
} cli_decoder;

/// How such commands open a model, from what they share. Returns an exit code, CLI_OK or CLI_USAGE
/// after one line on stderr.
int cli_decoder_settle(const cli_decoder_options *options, moem_options *out);

/// Returns an exit code, CLI_OK when open; one line on stderr otherwise.
int cli_decoder_open(const char *dir, const cli_decoder_options *options, cli_decoder *out);
void cli_decoder_close(cli_decoder *m);

/// How the experts' inputs are quantised, as --activation has it: without that option, on a CPU,
/// i16b32 for weights of 4 bits.
const char *cli_decoder_activation(const cli_decoder *m);

/// One line on stderr about what the model is and how it runs.
void cli_decoder_describe(const char *dir, const cli_decoder_options *options,
                          const cli_decoder *m);

/// Appends the ids of text, or of a file ("-": standard input). Returns an exit code.
int cli_encode(const cli_decoder *m, const char *label, const char *text, size_t size,
               moem_ids *out);
int cli_encode_file(const cli_decoder *m, const char *path, moem_ids *out);

#endif
