// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/graph.h"

/// A graph and the stream on which it was captured and runs.
typedef struct cuda_graph {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t runs;
} cuda_graph;

static void release(cuda_graph *g)
{
    if (g->runs != NULL) {
        (void)cudaGraphExecDestroy(g->runs);
    }
    if (g->graph != NULL) {
        (void)cudaGraphDestroy(g->graph);
    }
    if (g->stream != NULL) {
        (void)cudaStreamDestroy(g->stream);
    }
}

static moe_status capture(cuda_graph *g, moe_status (*enqueue)(void *arg, void *stream), void *arg)
{
    moe_status status =
        moei_cuda_status(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking), "a stream");
    if (status != MOE_OK) {
        return status;
    }
    status = moei_cuda_status(cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal),
                              "a capture");
    if (status != MOE_OK) {
        return status;
    }
    status = enqueue(arg, g->stream);
    const cudaError_t ended = cudaStreamEndCapture(g->stream, &g->graph);
    if (status != MOE_OK) {
        (void)cudaGetLastError(); // what failed has said so
        return status;
    }
    status = moei_cuda_status(ended, "the end of a capture");
    return status == MOE_OK
               ? moei_cuda_status(cudaGraphInstantiate(&g->runs, g->graph, 0), "a graph")
               : status;
}

moe_status moei_cuda_graph_capture(const moei_exec *exec,
                                   moe_status (*enqueue)(void *arg, void *stream), void *arg,
                                   void **graph)
{
    cuda_graph g = {NULL, NULL, NULL};
    cuda_graph *kept = moei_cuda_host->alloc(exec->ctx, sizeof *kept, 64);
    int before = 0;
    if (kept == NULL) {
        return moei_cuda_host->fail(MOE_E_NO_MEMORY, "cuda: no memory for %zu bytes", sizeof *kept);
    }
    (void)cudaGetDevice(&before);
    moe_status status = moei_cuda_status(cudaSetDevice(exec->device_id), "cudaSetDevice");
    if (status == MOE_OK) {
        status = capture(&g, enqueue, arg);
    }
    if (status == MOE_OK) {
        *kept = g;
        *graph = kept;
    } else {
        release(&g);
        moei_cuda_host->free(exec->ctx, kept, sizeof *kept);
    }
    (void)cudaSetDevice(before);
    return status;
}

moe_status moei_cuda_graph_run(const moei_exec *exec, void *graph)
{
    const cuda_graph *g = graph;
    (void)exec; // a graph knows its device
    const moe_status status =
        moei_cuda_status(cudaGraphLaunch(g->runs, g->stream), "a graph launch");
    return status == MOE_OK ? moei_cuda_status(cudaStreamSynchronize(g->stream), "a graph")
                            : status;
}

void moei_cuda_graph_release(const moei_exec *exec, void *graph)
{
    release(graph);
    moei_cuda_host->free(exec->ctx, graph, sizeof(cuda_graph));
}
