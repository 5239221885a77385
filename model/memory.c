// SPDX-License-Identifier: Apache-2.0
// How much memory there is left, as Linux tells.
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "model/device.h"

#define LINE 512

// The number after `key` and blanks in a file of such lines; `unit` multiplies it.
static bool read_field(const char *path, const char *key, uint64_t unit, uint64_t *out)
{
    char line[LINE];
    bool found = false;
    const size_t length = strlen(key);
    FILE *file = fopen(path, "r");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        uint64_t value = 0;
        found = strncmp(line, key, length) == 0 && sscanf(line + length, "%" SCNu64, &value) == 1;
        *out = found ? value * unit : *out;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return found;
}

// The folder of the process's cgroup, version 2.
static bool find_cgroup(char folder[LINE])
{
    char line[LINE];
    bool found = false;
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        found = strncmp(line, "0::", 3) == 0;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    line[strcspn(line, "\n")] = '\0';
    return found && snprintf(folder, LINE, "/sys/fs/cgroup%s", line + 3) < LINE;
}

// What one cgroup has left; "max" is no number, and no limit.
static void limit_by(const char *folder, uint64_t *available)
{
    char path[LINE + 32];
    uint64_t most = 0;
    uint64_t used = 0;
    uint64_t files = 0;
    (void)snprintf(path, sizeof path, "%s/memory.max", folder);
    if (!read_field(path, "", 1, &most)) {
        return;
    }
    (void)snprintf(path, sizeof path, "%s/memory.current", folder);
    (void)read_field(path, "", 1, &used);
    (void)snprintf(path, sizeof path, "%s/memory.stat", folder);
    (void)read_field(path, "file ", 1, &files);
    const uint64_t taken = used > files ? used - files : 0;
    const uint64_t left = most > taken ? most - taken : 0;
    *available = left < *available ? left : *available;
}

uint64_t moem_memory_available(void)
{
    char folder[LINE];
    uint64_t available = UINT64_MAX;
    (void)read_field("/proc/meminfo", "MemAvailable:", 1024, &available);
    if (!find_cgroup(folder)) {
        return available;
    }
    // The limits of the folders above hold, too; the root has none.
    for (char *slash = folder; strlen(folder) > strlen("/sys/fs/cgroup"); *slash = '\0') {
        limit_by(folder, &available);
        slash = strrchr(folder, '/');
    }
    limit_by("/sys/fs/cgroup", &available); // a container's own root
    return available;
}
