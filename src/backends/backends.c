// SPDX-License-Identifier: Apache-2.0
#include "backends/backends.h"

#include "backends/cpu/cpu.h"
#include "backends/cpu/packed.h"

#define MOE_BACKEND(name) extern const moei_backend moei_backend_##name;
#include "backends/backends.def"
#undef MOE_BACKEND

static const moei_backend *const backends[] = {
#define MOE_BACKEND(name) &moei_backend_##name,
#include "backends/backends.def"
#undef MOE_BACKEND
};

const moei_backend *moei_backend_at(size_t i)
{
    return i < sizeof backends / sizeof backends[0] ? backends[i] : NULL;
}

const moei_backend *moei_backend_for(moe_device_type device)
{
    const moei_backend *backend;
    for (size_t i = 0; (backend = moei_backend_at(i)) != NULL; i++) {
        if (backend->device == device) {
            return backend;
        }
    }
    return NULL;
}

moei_pack_part_fn *moei_backend_pack_part(const moei_backend *backend)
{
    return backend->pack == moei_cpu_pack ? moei_cpu_pack_part : NULL;
}
