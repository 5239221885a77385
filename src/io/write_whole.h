// SPDX-License-Identifier: Apache-2.0
// Files that are written whole or not at all.
#ifndef MOEI_IO_WRITE_WHOLE_H
#define MOEI_IO_WRITE_WHOLE_H

#include <stdbool.h>
#include <stdio.h>

#include "moe/status.h"

/// Lets `put` write a new file beside `path`, forces it to the disk and gives it that name. After
/// an error (`put` returned false: errno says why) no new file is left. The file may also be
/// mapped, shared. `call` heads the message. Errors: IO, NO_MEMORY.
moe_status moei_write_whole(const char *call, const char *path, bool (*put)(FILE *file, void *arg),
                            void *arg);

#endif
