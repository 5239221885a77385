// SPDX-License-Identifier: Apache-2.0
// What a configuration's quantization_config says of the experts, to be held against the tensors.
#ifndef MOEI_IO_QUANT_CONFIG_H
#define MOEI_IO_QUANT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/json.h"
#include "io/text.h"

/// Zero is "not said".
struct moei_quant_says {
    bool given;              ///< there is a quantization_config
    bool excluded;           ///< it leaves the module as it is
    struct moei_quote entry; ///< ... by this entry of a list
    char method[40];         ///< quant_method
    char format[40];         ///< which of the method's formats; "" where it has one or mixes them
    int64_t bits, group;     ///< of the weights
    int64_t block[2];        ///< rows and columns that share a scale
};

/// Reads it for a module that goes by any of `names`.
/// Errors: MALFORMED, UNSUPPORTED (an expression in a list that is not understood).
moe_status moei_quant_read(const moei_json *doc, const char *const names[], size_t count,
                           struct moei_quant_says *out);

#endif
