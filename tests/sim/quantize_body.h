// SPDX-License-Identifier: Apache-2.0
// gpu/quantize.cuh for the host, before any other body includes it. It takes an unsigned number of
// rows for an int where both hold it, of which clang warns; all other warnings, and those of all
// other bodies, stay.
#ifndef MOE_SIM_QUANTIZE_BODY_H
#define MOE_SIM_QUANTIZE_BODY_H

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wsign-conversion"
#endif
#include "backends/gpu/quantize.cuh"
#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#endif
