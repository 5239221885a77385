// SPDX-License-Identifier: Apache-2.0
// Lists of modules in quantisation configurations: which entries speak of a module.
#ifndef MOEI_IO_PATTERN_H
#define MOEI_IO_PATTERN_H

#include "moe/status.h"

#define MOEI_MODULE_BYTES 512 ///< of a module's name, with its NUL

/// Whether an entry of a list ("ignore", "targets", "modules_to_not_convert") means a module:
///   re:EXPRESSION   a Python regular expression that matches from the start of the name: literals,
///                   . [] \\d \\w ( | ) * + ? ^ $
///   with * or ?     a shell pattern over the whole name, whose * also spans dots
///   else            whole components of the name: "mlp.experts" means "layers.1.mlp.experts.0"
/// @param[out] matches  0 or 1
/// Errors: UNSUPPORTED (an expression beyond that, or one that takes too long; UNSUPPORTED names it
/// and the module).
moe_status moei_pattern_match(const char *call, const char *entry, const char *module,
                              int *matches);

#endif
