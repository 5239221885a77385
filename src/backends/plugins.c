// SPDX-License-Identifier: Apache-2.0
// The search for plugins and their loader. What is loaded stays: kernels and tables of a plugin are
// pointed to by contexts, plans and reports.
#define _GNU_SOURCE // dladdr1, scandir
#include "backends/plugins.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/check.h"
#include "core/registry.h"

#define PREFIX "libmoe_"
#define OTHERS "backend_" // libmoe_backend_<name>.so
#define SUFFIX ".so"

// Known backends need no "backend_" in their files' names.
static const char *const known_names[] = {"cuda", "hip"};

typedef struct record {
    moei_plugin plugin;
    char *real; // path without links, the identity of a file; NULL: no file could be loaded
    struct record *next;
} record;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static record *records; // never freed

// ---- loading one file --------------------------------------------------------------------------

// "toy" for /x/libmoe_backend_toy.so, else the file's name.
static void name_of_file(const char *path, char *name, size_t capacity)
{
    const char *slash = strrchr(path, '/');
    const char *file = slash != NULL && slash[1] != '\0' ? slash + 1 : path;
    size_t length = strlen(file);
    if (strncmp(file, PREFIX, strlen(PREFIX)) == 0 && length > strlen(SUFFIX) &&
        strcmp(file + length - strlen(SUFFIX), SUFFIX) == 0) {
        file += strlen(PREFIX);
        file += strncmp(file, OTHERS, strlen(OTHERS)) == 0 ? strlen(OTHERS) : 0;
        length = strlen(file) - strlen(SUFFIX);
    }
    (void)snprintf(name, capacity, "%.*s", (int)(length < 64 ? length : 64), file);
}

static bool has_functions(const moei_backend *b)
{
    const bool memory = b->host_memory || (b->memory_alloc != NULL && b->memory_free != NULL &&
                                           b->memory_copy != NULL);
    return memory && b->probe != NULL && b->route != NULL && b->place != NULL && b->sort != NULL &&
           b->quantize != NULL && b->ggemm != NULL && b->glu != NULL && b->combine != NULL &&
           (b->open == NULL) == (b->close == NULL) &&
           (b->plan_prepare == NULL) == (b->plan_release == NULL) &&
           (b->graph_capture == NULL) == (b->graph_run == NULL) &&
           (b->graph_capture == NULL) == (b->graph_release == NULL);
}

// What the rest of the library relies on. Writes a reason and returns false otherwise.
static bool check_backend(const moei_backend *b, char *reason, size_t capacity)
{
    unsigned ops = 0;
    if (b->abi != MOE_BACKEND_ABI) {
        (void)snprintf(reason, capacity, "built for backend ABI %u, this library has %d",
                       (unsigned)b->abi, MOE_BACKEND_ABI);
        return false;
    }
    if (b->name == NULL || b->name[0] == '\0' || b->kernels == NULL || b->runs == NULL ||
        b->device <= 0 || !has_functions(b)) {
        (void)snprintf(reason, capacity,
                       "its moei_backend lacks a name, a device, a table or a "
                       "function that is not optional");
        return false;
    }
    for (size_t i = 0; i < b->num_kernels; i++) {
        const moei_kernel *k = &b->kernels[i];
        if (k->name == NULL || k->isa_name == NULL || (unsigned)k->op >= MOEI_NUM_OPS ||
            (unsigned)k->arith >= MOEI_NUM_ARITH) {
            (void)snprintf(reason, capacity,
                           "row %zu of its kernels lacks a name, or its op or "
                           "arith is out of range",
                           i);
            return false;
        }
        if (k->layout != MOEI_LAYOUT_ROW &&
            (b->packed_bytes == NULL || b->pack == NULL || b->unpack == NULL)) {
            (void)snprintf(reason, capacity,
                           "kernel %s reads a packed layout, the backend lacks packed_bytes, pack "
                           "or unpack",
                           k->name);
            return false;
        }
        ops |= 1u << k->op;
    }
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        if ((ops & 1u << op) == 0) {
            (void)snprintf(reason, capacity, "has no kernel of op %s", moei_op_name((moei_op)op));
            return false;
        }
    }
    return true;
}

// The backend of a file, or NULL and the reason.
static const moei_backend *load(const char *real, char *reason, size_t capacity)
{
    void *handle = dlopen(real, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        (void)snprintf(reason, capacity, "%s", dlerror());
        return NULL;
    }
    const moei_backend *(*entry)(const moei_host *, uint32_t) = NULL;
    void *symbol = dlsym(handle, "moe_backend_entry");
    memcpy(&entry, &symbol, sizeof entry); // ISO C has no cast from an object to a function
    const moei_backend *backend = NULL;
    if (entry == NULL) {
        (void)snprintf(reason, capacity, "has no symbol moe_backend_entry");
    } else {
        (void)moe_fail(MOE_E_DEVICE, "moe_backend_entry gave no reason");
        backend = entry(moei_host_table(), MOE_BACKEND_ABI);
        if (backend == NULL) {
            (void)snprintf(reason, capacity, "%s", moe_last_error());
        } else if (!check_backend(backend, reason, capacity)) {
            backend = NULL;
        }
    }
    if (backend == NULL) {
        (void)dlclose(handle);
    }
    return backend;
}

static void free_record(record *r)
{
    free(r->plugin.name);
    free(r->plugin.path);
    free(r->plugin.reason);
    free(r->real);
    free(r);
}

// `real` NULL: an entry of the search that is no file.
static const moei_plugin *keep(const char *path, const char *real, const moei_backend *backend,
                               const char *reason)
{
    char name[65];
    record *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return NULL;
    }
    name_of_file(path, name, sizeof name);
    r->plugin.name = strdup(backend != NULL ? backend->name : name);
    r->plugin.path = strdup(path);
    r->plugin.reason = strdup(reason);
    r->plugin.backend = backend;
    r->real = real != NULL ? strdup(real) : NULL;
    if (r->plugin.name == NULL || r->plugin.path == NULL || r->plugin.reason == NULL ||
        (real != NULL && r->real == NULL)) {
        free_record(r);
        return NULL;
    }
    r->next = records;
    records = r;
    return &r->plugin;
}

static const moei_plugin *find_file(const char *real)
{
    for (const record *r = records; r != NULL; r = r->next) {
        if (r->real != NULL && strcmp(r->real, real) == 0) {
            return &r->plugin;
        }
    }
    return NULL;
}

static const moei_plugin *find_refusal(const char *path, const char *reason)
{
    for (const record *r = records; r != NULL; r = r->next) {
        if (r->real == NULL && strcmp(r->plugin.path, path) == 0 &&
            strcmp(r->plugin.reason, reason) == 0) {
            return &r->plugin;
        }
    }
    return NULL;
}

// ---- the search --------------------------------------------------------------------------------

typedef struct search {
    const moei_plugin **found;
    size_t count;
} search;

static void add(search *s, const moei_plugin *plugin)
{
    for (size_t i = 0; i < s->count; i++) {
        if (s->found[i] == plugin) {
            return;
        }
    }
    if (plugin != NULL && s->count < MOEI_MAX_PLUGINS) {
        s->found[s->count++] = plugin;
    }
}

// Something that cannot even be opened.
static void add_refusal(search *s, const char *path, const char *reason)
{
    const moei_plugin *plugin = find_refusal(path, reason);
    add(s, plugin != NULL ? plugin : keep(path, NULL, NULL, reason));
}

static void add_file(search *s, const char *path)
{
    char real[PATH_MAX];
    if (realpath(path, real) == NULL) {
        add_refusal(s, path, strerror(errno));
        return;
    }
    const moei_plugin *plugin = find_file(real);
    if (plugin == NULL) {
        char reason[512] = "";
        const moei_backend *backend = load(real, reason, sizeof reason);
        plugin = keep(path, real, backend, reason);
    }
    add(s, plugin);
}

const char *moei_plugins_known(size_t i)
{
    return i < sizeof known_names / sizeof known_names[0] ? known_names[i] : NULL;
}

static bool is_plugin_name(const char *file)
{
    const size_t length = strlen(file);
    const size_t prefix = strlen(PREFIX);
    const size_t suffix = strlen(SUFFIX);
    if (length <= prefix + suffix || strncmp(file, PREFIX, prefix) != 0 ||
        strcmp(file + length - suffix, SUFFIX) != 0) {
        return false;
    }
    const size_t middle = length - prefix - suffix;
    const char *known;
    for (size_t i = 0; (known = moei_plugins_known(i)) != NULL; i++) {
        if (middle == strlen(known) && strncmp(file + prefix, known, middle) == 0) {
            return true;
        }
    }
    return middle > strlen(OTHERS) && strncmp(file + prefix, OTHERS, strlen(OTHERS)) == 0;
}

static int keep_plugins(const struct dirent *entry)
{
    return is_plugin_name(entry->d_name);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void add_folder(search *s, const char *folder, bool report)
{
    struct dirent **entries = NULL;
    const int n = scandir(folder, &entries, keep_plugins, by_name);
    if (n < 0 && report) {
        add_refusal(s, folder, strerror(errno));
    }
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        const int length = snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        if (length > 0 && (size_t)length < sizeof path) {
            add_file(s, path);
        }
        free(entries[i]);
    }
    free(entries);
}

static void add_entry(search *s, const char *path)
{
    struct stat info;
    if (path[0] != '/') {
        add_refusal(s, path, "a relative path: plugins are never taken from the working directory");
    } else if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        add_folder(s, path, true);
    } else {
        add_file(s, path);
    }
}

// The folder of the library. Linked into a program it has that of the program, and the one where
// this program's installation has its libraries.
static size_t own_folders(char folders[2][PATH_MAX])
{
    static const char here; // an address inside the library
    Dl_info info;
    struct link_map *map = NULL;
    char program[PATH_MAX];
    if (dladdr1(&here, &info, (void **)&map, RTLD_DL_LINKMAP) == 0) {
        return 0;
    }
    const char *path = info.dli_fname;
    const bool linked = map != NULL && map->l_name[0] == '\0';
    if (linked) { // the name of a program may be anything
        const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
        program[n > 0 ? n : 0] = '\0';
        path = program;
    }
    const char *slash = strrchr(path, '/');
    if (path[0] != '/') { // a relative one would mean the working directory
        return 0;
    }
    (void)snprintf(folders[0], PATH_MAX, "%.*s", slash > path ? (int)(slash - path) : 1, path);
    if (!linked) {
        return 1;
    }
    const int n =
        snprintf(folders[1], PATH_MAX, "%.*s/../%s", (int)(slash - path), path, MOE_INSTALL_LIBDIR);
    return n > 0 && n < PATH_MAX ? 2 : 1;
}

const char *moei_plugins_own_text(char *buffer, size_t capacity)
{
    char folders[2][PATH_MAX];
    char resolved[PATH_MAX];
    const size_t count = own_folders(folders);
    const bool second = count == 2 && realpath(folders[1], resolved) != NULL;
    (void)snprintf(buffer, capacity, "%s%s%s", count > 0 ? folders[0] : "libmoe's folder",
                   second ? " or " : "", second ? resolved : "");
    return buffer;
}

size_t moei_plugins_find(const char *path, const char *variable,
                         const moei_plugin *found[MOEI_MAX_PLUGINS])
{
    search s = {found, 0};
    char entry[PATH_MAX];
    (void)pthread_mutex_lock(&lock);
    if (path != NULL && path[0] != '\0') {
        add_entry(&s, path);
    }
    while (variable != NULL && variable[0] != '\0') {
        const size_t length = strcspn(variable, ":");
        if (length > 0 && length < sizeof entry) {
            memcpy(entry, variable, length);
            entry[length] = '\0';
            add_entry(&s, entry);
        }
        variable += length + (variable[length] == ':');
    }
    char folders[2][PATH_MAX];
    const size_t count = own_folders(folders);
    for (size_t i = 0; i < count; i++) {
        add_folder(&s, folders[i], false);
    }
    (void)pthread_mutex_unlock(&lock);
    return s.count;
}
