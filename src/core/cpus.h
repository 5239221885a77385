// SPDX-License-Identifier: Apache-2.0
// How many CPUs and cores this process may use.
#ifndef MOEI_CORE_CPUS_H
#define MOEI_CORE_CPUS_H

#include <stdbool.h>

/// Threads of a pool, at most.
#define MOEI_MOST_CPUS 1024

/// CPUs: affinity mask, limited by the cgroup's quota.
int moei_cpu_count(void);

/// Cores that have these CPUs: no more than moei_cpu_count, and as many where the system does not
/// say which CPUs share one.
int moei_core_count(void);

/// Cores that have the CPUs 0 .. most - 1 for which `mine`, by the lists of siblings in `folder`,
/// the system's /sys/devices/system/cpu. A CPU without a list that can be read has a core of its
/// own.
int moei_core_count_in(const char *folder, const bool *mine, int most);

#endif
