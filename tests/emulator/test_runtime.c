// SPDX-License-Identifier: Apache-2.0
// The emulated libamdhip64.so through HIP's functions: memory, modules, launches and what they
// refuse.
//
//   test_runtime gfx942|gfx950 FOLDER [far]
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/hip/hip_api.h"
#include "emulator/assemble.h"

const char *moe_emulator_error(void);

static int failures;
static char files[32]; // what they are called: tests run beside each other

static void expect(bool holds, const char *what)
{
    if (!holds) {
        failures++;
        (void)fprintf(stderr, "FAILED: %s; last error: %s\n", what, moe_emulator_error());
    }
}
#define EXPECT(holds) expect(holds, #holds)

static void *read_file(const char *folder, emu_arch arch)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s_%s.hsaco", folder, files, cpu_of(arch));
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = calloc(1, 1 << 20);
    if (f != NULL && bytes != NULL) {
        (void)!fread(bytes, 1, 1 << 20, f);
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return bytes;
}

/// An object of two kernels: one adds 1 to 64 words, one reads a word behind the end.
static void *object_of(const char *folder, emu_arch arch)
{
    FILE *f = assembly_open(folder, files, arch);
    for (int i = 0; f != NULL && i < 2; i++) {
        const char *name = i ? "bad" : "good";
        kernel_begins(f, name);
        (void)fprintf(f,
                      "s_load_dwordx4 s[4:7], s[0:1], 0x0\nv_and_b32 v0, 0x3ff, v0\n"
                      "v_lshlrev_b32 v1, 2, v0\ns_waitcnt lgkmcnt(0)\n"
                      "global_load_dword v2, v1, s[4:5] offset:%d\ns_waitcnt vmcnt(0)\n"
                      "v_add_u32 v2, 1, v2\nglobal_store_dword v1, v2, s[6:7]\ns_endpgm\n",
                      4 * i);
        kernel_ends(f, name, "");
    }
    emu_object *o = assembly_close(f, folder, files, arch);
    const bool ok = o != NULL;
    emu_object_free(o);
    return ok ? read_file(folder, arch) : NULL;
}

static hipError_t launch(hipFunction_t function, void *const arguments[2], size_t bytes)
{
    void *extra[] = {HIP_LAUNCH_PARAM_BUFFER_POINTER, (void *)(uintptr_t)arguments,
                     HIP_LAUNCH_PARAM_BUFFER_SIZE, &bytes, HIP_LAUNCH_PARAM_END};
    return hipModuleLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, NULL, NULL, extra);
}

static void check_memory(void)
{
    void *p = NULL;
    uint8_t host[64] = {0};
    EXPECT(hipMalloc(&p, 64) == hipSuccess && p != NULL);
    EXPECT(hipMemcpyAsync(host, p, 64, hipMemcpyDeviceToHost, NULL) == hipSuccess);
    EXPECT(host[0] == 0xA5 && host[63] == 0xA5); // poison
    EXPECT(hipMemsetAsync(p, 3, 64, NULL) == hipSuccess);
    EXPECT(hipMemsetAsync(p, 3, 65, NULL) == hipErrorInvalidValue);
    EXPECT(hipGetLastError() == hipErrorInvalidValue && hipGetLastError() == hipSuccess);
    EXPECT(hipMemcpyAsync(p, host, 65, hipMemcpyHostToDevice, NULL) == hipErrorInvalidValue);
    EXPECT(hipMemcpyAsync(host, host, 8, hipMemcpyDeviceToHost, NULL) == hipErrorInvalidValue);
    EXPECT(hipFree((uint8_t *)p + 1) == hipErrorInvalidValue);
    EXPECT(hipFree(p) == hipSuccess && hipFree(p) == hipErrorInvalidValue &&
           hipFree(NULL) == hipSuccess);
    EXPECT(hipMemcpyAsync(p, host, 8, hipMemcpyHostToDevice, NULL) == hipErrorInvalidValue);
}

/// A child that reads the first byte of device memory does not end well.
static void check_far(void)
{
    void *p = NULL;
    EXPECT(hipMalloc(&p, 64) == hipSuccess);
    const pid_t child = fork();
    if (child == 0) {
        (void)!freopen("/dev/null", "w", stderr);
        const uint8_t first = *(volatile uint8_t *)p;
        (void)first;
        _exit(0); // it could
    }
    int status = 0;
    EXPECT(child > 0 && waitpid(child, &status, 0) == child);
    EXPECT(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    EXPECT(hipFree(p) == hipSuccess);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        (void)fprintf(stderr, "usage: test_runtime gfx942|gfx950 FOLDER\n");
        return 2;
    }
    const emu_arch arch = strcmp(argv[1], "gfx942") == 0 ? EMU_GFX942 : EMU_GFX950;
    (void)snprintf(files, sizeof files, "runtime_%s%.8s", argc > 3 ? "far_" : "", argv[1]);
    void *mine = object_of(argv[2], arch);
    void *other = object_of(argv[2], arch == EMU_GFX942 ? EMU_GFX950 : EMU_GFX942);
    if (mine == NULL || other == NULL) {
        return 1;
    }
    (void)setenv("MOE_EMULATOR_ARCH", argv[1], 1);
    (void)setenv("MOE_EMULATOR_QUIET", "1", 1);
    (void)setenv("MOE_EMULATOR_FAR", argc > 3 ? "1" : "0", 1);
    char name[64];
    int value = 0;
    EXPECT(hipInit(0) == hipSuccess && hipGetDeviceCount(&value) == hipSuccess && value == 1);
    EXPECT(hipDeviceGetName(name, sizeof name, 0) == hipSuccess && strstr(name, argv[1]) != NULL);
    EXPECT(hipDeviceGetAttribute(&value, hipDeviceAttributeMaxSharedMemoryPerBlock, 0) ==
           hipSuccess);
    EXPECT(value == (arch == EMU_GFX942 ? 65536 : 163840));
    EXPECT(hipSetDevice(1) == hipErrorInvalidDevice);
    check_memory();
    if (argc > 3) {
        check_far();
    }

    hipModule_t module = NULL;
    hipFunction_t good = NULL;
    hipFunction_t bad = NULL;
    EXPECT(hipModuleLoadData(&module, other) == hipErrorNoBinaryForGpu);
    static const char nothing[4096] = "\177ELF, and no more than that";
    EXPECT(hipModuleLoadData(&module, nothing) == hipErrorInvalidImage);
    EXPECT(hipModuleLoadData(&module, mine) == hipSuccess);
    EXPECT(hipModuleGetFunction(&good, module, "absent") == hipErrorNotFound);
    EXPECT(hipModuleGetFunction(&good, module, "good") == hipSuccess);
    EXPECT(hipModuleGetFunction(&bad, module, "bad") == hipSuccess);
    void *memory[2];
    uint32_t host[64];
    EXPECT(hipMalloc(&memory[0], sizeof host) == hipSuccess &&
           hipMalloc(&memory[1], sizeof host) == hipSuccess);
    for (uint32_t i = 0; i < 64; i++) {
        host[i] = 10 * i;
    }
    EXPECT(hipMemcpyAsync(memory[0], host, sizeof host, hipMemcpyHostToDevice, NULL) == hipSuccess);
    EXPECT(launch(good, memory, sizeof memory) == hipSuccess);
    EXPECT(hipStreamSynchronize(NULL) == hipSuccess && hipDeviceSynchronize() == hipSuccess);
    EXPECT(hipMemcpyAsync(host, memory[1], sizeof host, hipMemcpyDeviceToHost, NULL) == hipSuccess);
    EXPECT(host[0] == 1 && host[63] == 631);
    EXPECT(launch(good, memory, 8) == hipErrorInvalidValue); // of 16 bytes of arguments
    EXPECT(launch(bad, memory, sizeof memory) == hipErrorLaunchFailure);
    EXPECT(strstr(moe_emulator_error(), "kernel bad, block (0, 0, 0), wave 0, lane 63") != NULL);
    EXPECT(strstr(hipGetErrorString(hipErrorLaunchFailure), "global_load_dword v2") != NULL);
    EXPECT(launch(good, memory, sizeof memory) == hipSuccess); // nothing sticks
    void *swapped[2] = {host, memory[1]};
    EXPECT(launch(good, swapped, sizeof swapped) == hipErrorLaunchFailure); // the host's memory
    EXPECT(hipFree(memory[0]) == hipSuccess &&
           launch(good, memory, sizeof memory) == hipErrorLaunchFailure);
    EXPECT(hipFree(memory[1]) == hipSuccess && hipModuleUnload(module) == hipSuccess);
    free(mine);
    free(other);
    (void)printf("%s: %d failures\n", argv[1], failures);
    return failures > 0;
}
