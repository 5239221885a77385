// SPDX-License-Identifier: Apache-2.0
// How many cores the CPUs of a process have, from lists of siblings as systems write them, and from
// damaged ones.
#define _DEFAULT_SOURCE // mkdtemp
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cpus.h"
#include "unit/st_image.h"
#include "unit/test.h"

#define CPUS 8

typedef struct machine {
    const char *name;
    const char *lists[CPUS]; // NULL: no file
    const char *mine;        // of each CPU, whether the process may use it
    int cores;
} machine;

static const machine machines[] = {
    {"no lists", {NULL}, "11111111", 8},
    {"one thread a core", {"0", "1", "2", "3", "4", "5", "6", "7"}, "11111111", 8},
    {"neighbours share", {"0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"}, "11111111", 4},
    {"far ones share", {"0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"}, "11111111", 4},
    {"one of each", {"0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"}, "00001111", 4},
    {"whole and half cores",
     {"0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"},
     "11001100",
     2},
    {"some of some", {"0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"}, "10101110", 3},
    {"four threads a core",
     {"0-1,4-5", "0-1,4-5", "2-3,6-7", "2-3,6-7", "0-1,4-5", "0-1,4-5", "2-3,6-7", "2-3,6-7"},
     "11111111",
     2},
    {"one CPU", {"0-1", "0-1"}, "01000000", 1},
    {"lists are missing", {"0-1", NULL, "2-3", "2-3"}, "11110000", 3},
    {"damaged lists",
     {"", "x", "-3", "9-12", "7-", "99999999999999999999", "6,", ","},
     "11111111",
     8},
    {"none", {NULL}, "00000000", 0},
};

static void write_list(int cpu, const char *list)
{
    char path[600];
    (void)snprintf(path, sizeof path, "%s/cpu%d", folder, cpu);
    (void)mkdir(path, 0700);
    (void)snprintf(path, sizeof path, "%s/cpu%d/topology", folder, cpu);
    (void)mkdir(path, 0700);
    (void)snprintf(path, sizeof path, "%s/cpu%d/topology/thread_siblings_list", folder, cpu);
    FILE *file = fopen(path, "w");
    if (CHECK(file != NULL, "%s", path)) {
        (void)fprintf(file, "%s\n", list);
        (void)fclose(file);
    }
}

static void remove_list(int cpu)
{
    char path[600];
    (void)snprintf(path, sizeof path, "%s/cpu%d/topology/thread_siblings_list", folder, cpu);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/cpu%d/topology", folder, cpu);
    (void)rmdir(path);
    (void)snprintf(path, sizeof path, "%s/cpu%d", folder, cpu);
    (void)rmdir(path);
}

static void test_machine(const machine *m)
{
    bool mine[CPUS];
    for (int cpu = 0; cpu < CPUS; cpu++) {
        if (m->lists[cpu] != NULL) {
            write_list(cpu, m->lists[cpu]);
        }
        mine[cpu] = m->mine[cpu] == '1';
    }
    const int cores = moei_core_count_in(folder, mine, CPUS);
    for (int cpu = 0; cpu < CPUS; cpu++) {
        remove_list(cpu);
    }
    CHECK(cores == m->cores, "%s: %d cores, want %d", m->name, cores, m->cores);
}

int main(void)
{
    folder_make();
    for (size_t m = 0; m < sizeof machines / sizeof machines[0]; m++) {
        test_machine(&machines[m]);
    }
    folder_remove();
    const int cpus = moei_cpu_count();
    const int cores = moei_core_count();
    CHECK(cores >= 1 && cores <= cpus, "this machine: %d cores, %d CPUs", cores, cpus);
    return test_summary();
}
