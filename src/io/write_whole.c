// SPDX-License-Identifier: Apache-2.0
// A file that is the old one or the whole new one, whatever happens in between.
#define _POSIX_C_SOURCE 200809L
#include "io/write_whole.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/check.h"
#include "io/text.h"

#define MAX_TRIES 100 // names for the temporary file

static moe_status fail_errno(const char *call, const char *path, const char *what, int error)
{
    return moe_fail(MOE_E_IO, "%s: %s: %s: %s", call, moei_quote_tail(path, strlen(path)).text,
                    what, strerror(error));
}

// A new file beside `path`; its name goes to `name`, which has room.
static int open_beside(const char *path, char *name, size_t room)
{
    static const int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
    int fd = -1;
    for (int i = 0; i < MAX_TRIES && fd < 0; i++) {
        (void)snprintf(name, room, "%s.%ld-%d.tmp", path, (long)getpid(), i);
        fd = open(name, flags, 0666);
        if (fd < 0 && errno != EEXIST) {
            return -1;
        }
    }
    return fd;
}

// So that the new name survives a power cut too. Not every file system can; the file is whole
// either way.
static void sync_folder(const char *path, char *name)
{
    const char *slash = strrchr(path, '/');
    const size_t size = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    memcpy(name, path, size);
    memcpy(name + size, ".", 2);
    const int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
}

moe_status moei_write_whole(const char *call, const char *path, bool (*put)(FILE *file, void *arg),
                            void *arg)
{
    const size_t room = strlen(path) + 64;
    char *name = malloc(room);
    MOE_REQUIRE(name != NULL, MOE_E_NO_MEMORY, "%s: out of memory", call);
    const int fd = open_beside(path, name, room);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w+b");
    moe_status status = MOE_OK;
    if (file == NULL) {
        status = fail_errno(call, path, "opening a file beside it", errno);
        if (fd >= 0) {
            (void)close(fd);
            (void)unlink(name);
        }
        free(name);
        return status;
    }
    errno = 0;
    bool good = put(file, arg) && fflush(file) == 0 && fsync(fileno(file)) == 0;
    int error = errno;
    if (fclose(file) != 0 && good) {
        good = false;
        error = errno;
    }
    if (!good) {
        status = fail_errno(call, path, "writing", error);
    } else if (rename(name, path) != 0) {
        status = fail_errno(call, path, "renaming the new file", errno);
    }
    if (status != MOE_OK) {
        (void)unlink(name);
    } else {
        sync_folder(path, name);
    }
    free(name);
    return status;
}
