// SPDX-License-Identifier: Apache-2.0
// Device graphs for checks (graph.c).
#ifndef MOEI_CUDA_GRAPH_H
#define MOEI_CUDA_GRAPH_H

#include "backends/cuda/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// As the functions of moei_backend.
moe_status moei_cuda_graph_capture(const moei_exec *exec,
                                   moe_status (*enqueue)(void *arg, void *stream), void *arg,
                                   void **graph);
moe_status moei_cuda_graph_run(const moei_exec *exec, void *graph);
void moei_cuda_graph_release(const moei_exec *exec, void *graph);

#ifdef __cplusplus
}
#endif
#endif
