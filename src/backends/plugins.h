// SPDX-License-Identifier: Apache-2.0
// Backends from shared libraries: where they are looked for, and how one is loaded.
#ifndef MOEI_BACKENDS_PLUGINS_H
#define MOEI_BACKENDS_PLUGINS_H

#include "moe/backend.h"

#define MOEI_MAX_PLUGINS 64 // that one search looks at

/// What a search finds. Lives as long as the process.
typedef struct moei_plugin {
    char *name;                  // the backend's, else what the file's name says
    char *path;                  // as found
    const moei_backend *backend; // NULL: not usable
    char *reason;                // why not; "" where usable
} moei_plugin;

/// Looks in `path` (may be NULL), then in each entry of the colon-separated `variable` (may be
/// NULL), then in the library's own folder, and loads what it finds, once per process and file.
/// Fills `found` in that order, each file once; returns how many. Thread safety: locked.
size_t moei_plugins_find(const char *path, const char *variable,
                         const moei_plugin *found[MOEI_MAX_PLUGINS]);

/// Backend i that is expected as a plugin, libmoe_<name>.so; NULL past the end.
const char *moei_plugins_known(size_t i);

/// The library's own folders as a line of text, into buffer; returns it.
const char *moei_plugins_own_text(char *buffer, size_t capacity);

/// The table that plugins get.
const moei_host *moei_host_table(void);

#endif
