// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "core/cpus.h"

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/safemath.h"

// ---- small files -------------------------------------------------------------------------------

// A small file as text, without allocating; empty where it cannot be read.
static void read_text(const char *path, char *text, size_t room)
{
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t bytes = 0;
    if (file >= 0) {
        bytes = read(file, text, room - 1);
        (void)close(file);
    }
    text[bytes > 0 ? bytes : 0] = '\0';
}

// The first two whole numbers; what is no number ("max") reads as -1.
static void read_numbers(const char *path, long long *first, long long *second)
{
    char text[64];
    char *end = text;
    *first = -1;
    *second = -1;
    read_text(path, text, sizeof text);
    const long long number = strtoll(text, &end, 10);
    if (end != text) {
        *first = number;
        *second = strtoll(end, NULL, 10);
    }
}

// ---- CPUs --------------------------------------------------------------------------------------

// Whole CPUs that a cgroup quota allows (version 2, else 1), or `limit` if there is none.
static int quota_limit(int limit)
{
    long long quota;
    long long period;
    long long unused;
    read_numbers("/sys/fs/cgroup/cpu.max", &quota, &period);
    if (quota < 0) {
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota, &unused);
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, &unused);
    }
    if (quota <= 0 || period <= 0) {
        return limit;
    }
    const int64_t cpus = moei_i64_max(1, moei_i64_ceil_div(quota, period));
    return cpus < limit ? (int)cpus : limit;
}

// CPUs of the affinity mask; where there is none to be had, the first ones of those online.
static int list_mine(bool mine[MOEI_MOST_CPUS])
{
    cpu_set_t set;
    int count = 0;
    const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
    const long online = known ? 0 : sysconf(_SC_NPROCESSORS_ONLN);
    for (int cpu = 0; cpu < MOEI_MOST_CPUS; cpu++) {
        mine[cpu] = known ? CPU_ISSET((size_t)cpu, &set) : cpu < online;
        count += mine[cpu];
    }
    return count > 0 ? count : 1;
}

int moei_cpu_count(void)
{
    bool mine[MOEI_MOST_CPUS];
    return quota_limit(list_mine(mine));
}

// ---- cores -------------------------------------------------------------------------------------

// The first CPU of a list ("0,64" or "0-3,8") that is mine, or -1.
static int first_of(const char *list, const bool *mine, int most)
{
    for (;;) {
        char *end;
        const long from = strtol(list, &end, 10);
        if (end == list || from < 0) {
            return -1;
        }
        long to = from;
        if (*end == '-') {
            list = end + 1;
            to = strtol(list, &end, 10);
        }
        for (long cpu = from; cpu <= to && cpu < most; cpu++) {
            if (mine[cpu]) {
                return (int)cpu;
            }
        }
        if (*end != ',') {
            return -1;
        }
        list = end + 1;
    }
}

int moei_core_count_in(const char *folder, const bool *mine, int most)
{
    int cores = 0;
    for (int cpu = 0; cpu < most; cpu++) {
        if (mine[cpu]) {
            char path[256];
            char list[1024];
            (void)snprintf(path, sizeof path, "%s/cpu%d/topology/thread_siblings_list", folder,
                           cpu);
            read_text(path, list, sizeof list);
            const int first = first_of(list, mine, most);
            cores += first < 0 || first >= cpu; // counted with the first of its core
        }
    }
    return cores;
}

int moei_core_count(void)
{
    bool mine[MOEI_MOST_CPUS];
    (void)list_mine(mine);
    const int cores = moei_core_count_in("/sys/devices/system/cpu", mine, MOEI_MOST_CPUS);
    return quota_limit(cores > 0 ? cores : 1);
}
