// SPDX-License-Identifier: Apache-2.0
// Seconds of what is enqueued, as the device sees it.
#include "backends/hip/runtime.h"

static moe_status time_once(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                            void *arg, const hipEvent_t events[2], double *seconds)
{
    const moei_hip_runtime *hip = moei_hip();
    const hipStream_t stream = (hipStream_t)exec->stream;
    float ms = 0.0f;
    moe_status status = moei_hip_status(hip->hipEventRecord(events[0], stream), "hipEventRecord");
    if (status == MOE_OK) {
        status = enqueue(arg, exec->stream);
    }
    if (status == MOE_OK) {
        status = moei_hip_status(hip->hipEventRecord(events[1], stream), "hipEventRecord");
    }
    if (status == MOE_OK) {
        status = moei_hip_status(hip->hipEventSynchronize(events[1]), "waiting for an event");
    }
    if (status == MOE_OK) {
        status = moei_hip_status(hip->hipEventElapsedTime(&ms, events[0], events[1]),
                                 "hipEventElapsedTime");
    }
    *seconds = 1e-3 * (double)ms;
    return status;
}

moe_status moei_hip_time(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                         void *arg, int32_t repeats, double *seconds)
{
    const moei_hip_runtime *hip = moei_hip();
    hipEvent_t events[2] = {NULL, NULL};
    moe_status status = moei_hip_status(hip->hipEventCreate(&events[0]), "hipEventCreate");
    if (status == MOE_OK) {
        status = moei_hip_status(hip->hipEventCreate(&events[1]), "hipEventCreate");
    }
    for (int32_t i = -1; i < repeats && status == MOE_OK; i++) { // the first is a warm-up
        double taken = 0;
        status = time_once(exec, enqueue, arg, events, &taken);
        if (i >= 0) {
            seconds[i] = taken;
        }
    }
    for (int i = 0; i < 2; i++) {
        if (events[i] != NULL) {
            (void)hip->hipEventDestroy(events[i]);
        }
    }
    return status;
}
