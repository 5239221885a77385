// SPDX-License-Identifier: Apache-2.0
// The device bodies, compiled for the host.
#include <type_traits>

#include "backends/gpu/args.h"
#include "backends/gpu/place.cuh"
#include "backends/gpu/prologue.cuh"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"
#include "sim/sim.h"
#if __has_include("backends/gpu/quantize.cuh")
#include "backends/gpu/quantize.cuh"
#endif
#if __has_include("backends/gpu/glu.cuh")
#include "backends/gpu/glu.cuh"
#endif
#if __has_include("backends/gpu/combine.cuh")
#include "backends/gpu/combine.cuh"
#endif
#if __has_include("backends/gpu/ggemm.cuh")
#include "backends/gpu/ggemm.cuh"
#endif

// A body that does not exist is a template here, and a row without a function.
struct no_body {
};
#define MOE_GPU_BODY(name, args, threads)                                                          \
    template <typename A> no_body moei_gpu_##name(const A *);                                      \
    template <typename A> static void run_##name(const void *a)                                    \
    {                                                                                              \
        (void)moei_gpu_##name((const A *)a);                                                       \
    }                                                                                              \
    template <typename A, typename R> static constexpr auto pick_##name()                          \
    {                                                                                              \
        if constexpr (std::is_void<R>::value) {                                                    \
            return &run_##name<A>;                                                                 \
        } else {                                                                                   \
            return nullptr;                                                                        \
        }                                                                                          \
    }
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY

const moei_sim_body moei_sim_bodies[MOEI_GPU_NUM_BODIES] = {
#define MOE_GPU_BODY(name, args, threads)                                                          \
    {#name, pick_##name<args, decltype(moei_gpu_##name((const args *)nullptr))>(), sizeof(args),   \
     threads},
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
};
