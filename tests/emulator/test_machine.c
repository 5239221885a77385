// SPDX-License-Identifier: Apache-2.0
// What the emulator does beyond instructions: waves, barriers, LDS and memory checks, refusals,
// modes. Each kernel in assembly either ends with the expected words in memory or is stopped with a
// text.
//
//   test_machine gfx942|gfx950 FOLDER
#include <stdbool.h>

#include "emulator/assemble.h"

enum { WORDS = 256, ANY = -1 };

typedef struct test_case {
    const char *name;
    const char *code; // s[4:5]: 1 KiB that may be read, s[6:7]: 1 KiB of results; v0: the thread
    const char *directives; // of the kernel
    unsigned threads, blocks;
    const char *stops; // what the error says; NULL: it runs
    uint64_t order;
    bool loose;
    int approx;
    int first[4]; // words of the result; ANY is not looked at
} test_case;

#define LDS     ".amdhsa_group_segment_fixed_size 1024\n"
#define PRIVATE ".amdhsa_private_segment_fixed_size 64\n.amdhsa_enable_private_segment 1\n"
// The results' address of this thread.
#define MINE "v_lshlrev_b32 v1, 2, v0\n"
#define ALL_OK                                                                                     \
    {                                                                                              \
        ANY, ANY, ANY, ANY                                                                         \
    }
// Waves hand a word to the wave after the next through LDS.
#define HAND_OVER(barrier)                                                                         \
    MINE "v_add_u32 v2, 100, v0\nds_write_b32 v1, v2\ns_waitcnt lgkmcnt(0)\n" barrier              \
         "v_xor_b32 v3, 256, v1\nds_read_b32 v4, v3\ns_waitcnt lgkmcnt(0)\n"                       \
         "global_store_dword v1, v4, s[6:7]\n"
// Every wave takes a ticket.
#define TICKETS                                                                                    \
    "v_mov_b32 v2, 0\nv_mov_b32 v3, 1\nv_readfirstlane_b32 s8, v0\ns_lshr_b32 s8, s8, 6\n"         \
    "s_lshl_b32 s9, s8, 2\ns_mov_b64 exec, 1\nglobal_atomic_add v4, v2, v3, s[6:7] offset:512 "    \
    "sc0\n"                                                                                        \
    "s_waitcnt vmcnt(0)\nv_mov_b32 v5, s9\nglobal_store_dword v5, v4, s[6:7]\n"

static const test_case cases[] = {
    {"stores",
     MINE "global_store_dword v1, v0, s[6:7]",
     "",
     128,
     1,
     NULL,
     0,
     false,
     0,
     {0, 1, 2, 3}},
    {"behind_the_end", MINE "global_load_dword v2, v1, s[4:5] offset:772", "", 64, 1,
     "kernel behind_the_end, block (0, 0, 0), wave 0, lane 63", 0, false, 0, ALL_OK},
    {"across_the_end", MINE "global_load_dwordx2 v[2:3], v1, s[4:5] offset:768", "", 64, 1,
     "8 bytes read at", 0, false, 0, ALL_OK},
    {"before_the_begin", MINE "global_load_dword v2, v1, s[4:5] offset:-4", "", 64, 1, "lane 0", 0,
     false, 0, ALL_OK},
    {"nowhere", "v_mov_b32 v2, 64\nv_mov_b32 v3, 0\nglobal_load_dword v4, v[2:3], off", "", 64, 1,
     "outside of all memory", 0, false, 0, ALL_OK},
    {"scalar_nowhere", "s_mov_b64 s[8:9], 64\ns_load_dword s10, s[8:9], 0x0", "", 64, 1,
     "`s_load_dword s10, s[8:9], 0x0`", 0, false, 0, ALL_OK},
    {"read_only", MINE "global_store_dword v1, v0, s[0:1]", "", 1, 1, "the arguments", 0, false, 0,
     ALL_OK},
    {"inactive_lanes", MINE "s_mov_b64 exec, 0\nglobal_load_dword v2, v1, s[4:5] offset:2048", "",
     64, 1, NULL, 0, false, 0, ALL_OK},
    {"unknown", "v_sin_f32 v0, v0", "", 64, 1, "does not know `v_sin_f32", 0, false, 0, ALL_OK},
    {"endless", ".Lendless:\ns_branch .Lendless", "", 64, 1, "still running after", 0, false, 0,
     ALL_OK},
    {"trap", "s_trap 2", "", 64, 1, "a trap", 0, false, 0, ALL_OK},
    {"too_many_threads", "s_nop 0", "", 1088, 1, "1088 threads", 0, false, 0, ALL_OK},
    {"rounding", "s_nop 0", ".amdhsa_float_round_mode_32 1\n", 64, 1, "rounding mode 1", 0, false,
     0, ALL_OK},
    {"rounding_set", "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 0, 2), 3", "", 64, 1, "rounding", 0,
     false, 0, ALL_OK},
    {"private_end", "scratch_store_dword off, v0, off offset:64", PRIVATE, 64, 1,
     "of private memory", 0, false, 0, ALL_OK},
    {"lds_end", MINE "ds_write_b32 v1, v0 offset:772", LDS, 64, 1,
     "4 bytes at 1024 of LDS, which has 1024", 0, false, 0, ALL_OK},
    {"lds_unwritten", MINE "ds_read_b32 v2, v1", LDS, 64, 1, "which nobody wrote", 0, false, 0,
     ALL_OK},
    {"lds_half_written", MINE "ds_write_b16 v1, v0\nds_read_b32 v2, v1", LDS, 64, 1,
     "which nobody wrote", 0, false, 0, ALL_OK},
    {"lds_poison",
     MINE "ds_read_b32 v2, v1\nglobal_store_dword v1, v2, s[6:7]",
     LDS,
     64,
     1,
     NULL,
     0,
     true,
     0,
     {(int)0xA5A5A5A5, (int)0xA5A5A5A5, ANY, ANY}},
    {"register_poison",
     MINE "global_store_dword v1, v9, s[6:7]",
     "",
     64,
     1,
     NULL,
     0,
     false,
     0,
     {0x7FC0DEAD, 0x7FC0DEAD, ANY, ANY}},
    {"barrier_ascending",
     HAND_OVER("s_barrier\n"),
     LDS,
     128,
     1,
     NULL,
     0,
     false,
     0,
     {164, 165, 166, 167}},
    {"barrier_descending",
     HAND_OVER("s_barrier\n"),
     LDS,
     128,
     1,
     NULL,
     1,
     false,
     0,
     {164, 165, 166, 167}},
    {"barrier_shuffled",
     HAND_OVER("s_barrier\n"),
     LDS,
     128,
     1,
     NULL,
     77,
     false,
     0,
     {164, 165, 166, 167}},
    {"no_barrier_unwritten", HAND_OVER(""), LDS, 128, 1, "wave 0, lane 0", 0, false, 0, ALL_OK},
    {"race_read",
     MINE "ds_write_b32 v1, v0\ns_waitcnt lgkmcnt(0)\ns_barrier\nds_write_b32 v1, v1\nv_and_b32 "
          "v3, 255, v1\n"
          "ds_read_b32 v4, v3",
     LDS, 128, 1, "reads 4 bytes at 0 of LDS, which wave 0 wrote since the last barrier", 0, false,
     0, ALL_OK},
    {"race_read_loose",
     MINE "ds_write_b32 v1, v0\ns_waitcnt lgkmcnt(0)\ns_barrier\nds_write_b32 v1, v1\nv_and_b32 "
          "v3, 255, v1\n"
          "ds_read_b32 v4, v3",
     LDS, 128, 1, NULL, 0, true, 0, ALL_OK},
    {"race_overwrites",
     MINE "ds_write_b32 v1, v0\ns_waitcnt lgkmcnt(0)\ns_barrier\nv_or_b32 v3, 256, v1\nds_read_b32 "
          "v4, v3\n"
          "ds_write_b32 v1, v1",
     LDS, 128, 1, "which another wave read since the last barrier", 0, false, 0, ALL_OK},
    {"race_writes", "v_mov_b32 v1, 0\nds_write_b32 v1, v0", LDS, 128, 1,
     "which wave 0 wrote since the last barrier", 0, false, 0, ALL_OK},
    {"same_writes", "v_mov_b32 v1, 0\nds_write_b32 v1, v1", LDS, 128, 1, NULL, 0, false, 0, ALL_OK},
    {"byte_neighbours",
     "ds_write_b8 v0, v0 offset:62\nds_read_u8 v1, v0 offset:62\nv_not_b32 v1, v1\n"
     "ds_write_b8 v0, v1 offset:62",
     LDS, 128, 1, NULL, 0, false, 0, ALL_OK},
    {"atomics",
     "v_mov_b32 v1, 0\nv_mov_b32 v2, 1\nds_write_b32 v1, v1\ns_barrier\nds_add_u32 v1, "
     "v2\ns_barrier\n"
     "ds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)\nv_lshlrev_b32 v4, 2, v0\nglobal_store_dword v4, "
     "v3, s[6:7]",
     LDS,
     256,
     1,
     NULL,
     5,
     false,
     0,
     {256, 256, 256, 256}},
    {"atomics_then_read",
     "v_mov_b32 v1, 0\nv_mov_b32 v2, 1\nds_write_b32 v1, v1\ns_barrier\nds_add_u32 v1, "
     "v2\nds_read_b32 v3, v1",
     LDS, 128, 1, "since the last barrier", 0, false, 0, ALL_OK},
    {"atomics_before_begin",
     "v_mov_b32 v1, 0\nv_mov_b32 v2, 1\nds_write_b32 v1, v1\nds_add_u32 v1, v2", LDS, 128, 1,
     "since the last barrier", 0, false, 0, ALL_OK},
    {"barrier_missed",
     "v_readfirstlane_b32 s8, v0\ns_cmp_lg_u32 s8, 0\ns_cbranch_scc1 "
     ".Lmissed\ns_barrier\n.Lmissed:",
     "", 128, 1, "waits at a barrier that 1 of 2 waves ended without", 0, false, 0, ALL_OK},
    {"barrier_missed_loose",
     "v_readfirstlane_b32 s8, v0\ns_cmp_lg_u32 s8, 0\ns_cbranch_scc1 .Lmissed2\ns_barrier\n" MINE
     "global_store_dword v1, v0, s[6:7]\n.Lmissed2:",
     "",
     128,
     1,
     NULL,
     0,
     true,
     0,
     {0, 1, 2, 3}},
    {"order_0", TICKETS, "", 256, 1, NULL, 0, false, 0, {0, 1, 2, 3}},
    {"order_1", TICKETS, "", 256, 1, NULL, 1, false, 0, {3, 2, 1, 0}},
    {"blocks_wait",
     "v_mov_b32 v2, 0\nv_mov_b32 v3, 7\ns_mov_b64 exec, 1\ns_cmp_lg_u32 s2, 0\ns_cbranch_scc1 "
     ".Lsecond\n"
     ".Lwait:\ns_sleep 1\nglobal_load_dword v4, v2, s[6:7] offset:4\ns_waitcnt vmcnt(0)\n"
     "v_readfirstlane_b32 s8, v4\ns_cmp_lg_u32 s8, 7\ns_cbranch_scc1 .Lwait\n"
     "global_store_dword v2, v3, s[6:7]\ns_endpgm\n.Lsecond:\nglobal_store_dword v2, v3, s[6:7] "
     "offset:4",
     "",
     64,
     2,
     NULL,
     0,
     false,
     0,
     {7, 7, ANY, ANY}},
    {"blocks_wait_busily",
     "v_mov_b32 v2, 0\nv_mov_b32 v3, 7\ns_mov_b64 exec, 1\ns_cmp_lg_u32 s2, 0\ns_cbranch_scc1 "
     ".Lsecond3\n"
     ".Lwait3:\nglobal_load_dword v4, v2, s[6:7] offset:4\ns_waitcnt vmcnt(0)\n"
     "v_readfirstlane_b32 s8, v4\ns_cmp_lg_u32 s8, 7\ns_cbranch_scc1 .Lwait3\n"
     "global_store_dword v2, v3, s[6:7]\ns_endpgm\n.Lsecond3:\nglobal_store_dword v2, v3, s[6:7] "
     "offset:4",
     "",
     64,
     2,
     NULL,
     0,
     false,
     0,
     {7, 7, ANY, ANY}},
    {"blocks_wait_in_vain",
     "v_mov_b32 v2, 0\ns_mov_b64 exec, 1\n.Lvain:\ns_sleep 1\nglobal_load_dword v4, v2, s[6:7] "
     "offset:4\n"
     "s_waitcnt vmcnt(0)\nv_readfirstlane_b32 s8, v4\ns_cmp_lg_u32 s8, 7\ns_cbranch_scc1 .Lvain",
     "", 64, 2, "still running after", 0, false, 0, ALL_OK},
    {"waves_wait",
     "v_mov_b32 v2, 0\nv_mov_b32 v3, 7\nv_readfirstlane_b32 s8, v0\ns_mov_b64 exec, "
     "1\ns_cmp_lg_u32 s8, 0\n"
     "s_cbranch_scc1 .Lsecond2\n.Lwait2:\ns_sleep 1\nglobal_load_dword v4, v2, s[6:7] offset:4\n"
     "s_waitcnt vmcnt(0)\nv_readfirstlane_b32 s8, v4\ns_cmp_lg_u32 s8, 7\ns_cbranch_scc1 "
     ".Lwait2\ns_barrier\n"
     "global_store_dword v2, v3, s[6:7]\ns_endpgm\n.Lsecond2:\nglobal_store_dword v2, v3, s[6:7] "
     "offset:4\n"
     "s_barrier",
     "",
     128,
     1,
     NULL,
     0,
     false,
     0,
     {7, 7, ANY, ANY}},
    {"subnormals_kept",
     MINE "v_mov_b32 v2, 0x00400000\nv_mul_f32 v3, 0.5, v2\nglobal_store_dword v1, v3, s[6:7]",
     ".amdhsa_float_denorm_mode_32 3\n",
     64,
     1,
     NULL,
     0,
     false,
     0,
     {0x00200000, 0x00200000, ANY, ANY}},
    {"subnormals_in",
     MINE "v_mov_b32 v2, 0x00400000\nv_mul_f32 v3, 4.0, v2\nglobal_store_dword v1, v3, s[6:7]",
     ".amdhsa_float_denorm_mode_32 0\n",
     64,
     1,
     NULL,
     0,
     false,
     0,
     {0, 0, ANY, ANY}},
    {"subnormals_out",
     MINE "v_mov_b32 v2, 0x00800000\nv_mul_f32 v3, 0.5, v2\nglobal_store_dword v1, v3, s[6:7]",
     ".amdhsa_float_denorm_mode_32 0\n",
     64,
     1,
     NULL,
     0,
     false,
     0,
     {0, 0, ANY, ANY}},
    {"approximate_0",
     MINE "v_mov_b32 v2, 0x40400000\nv_rcp_f32 v3, v2\nglobal_store_dword v1, v3, s[6:7]",
     "",
     64,
     1,
     NULL,
     0,
     false,
     0,
     {0x3EAAAAAB, ANY, ANY, ANY}},
    {"approximate_1",
     MINE "v_mov_b32 v2, 0x40400000\nv_rcp_f32 v3, v2\nglobal_store_dword v1, v3, s[6:7]",
     "",
     64,
     1,
     NULL,
     0,
     false,
     1,
     {0x3EAAAAAA, ANY, ANY, ANY}},
    {"threads_of_a_part",
     MINE "global_store_dword v1, v0, s[6:7]",
     "",
     3,
     1,
     NULL,
     0,
     false,
     0,
     {0, 1, 2, 0x5A5A5A5A}},
    {"block_ids",
     "v_mov_b32 v1, s2\nv_lshlrev_b32 v1, 2, v1\nv_mov_b32 v2, s2\nglobal_store_dword v1, v2, "
     "s[6:7]",
     "",
     64,
     4,
     NULL,
     0,
     false,
     0,
     {0, 1, 2, 3}},
};

enum { NUM_CASES = sizeof cases / sizeof cases[0] };

static bool run(const test_case *t, emu_object *o, emu_arch arch)
{
    static uint32_t memory[4 * WORDS]; // with gaps
    uint32_t *in = memory;
    uint32_t *out = memory + 2 * WORDS;
    char error[768] = "no such kernel";
    emu_kernel *k = assembly_kernel(o, t->name);
    const uint64_t kernarg[2] = {(uint64_t)(uintptr_t)in, (uint64_t)(uintptr_t)out};
    memset(memory, 0x5A, sizeof memory);
    out[128] = 0; // tickets
    emu_range ranges[3] = {
        {(uint64_t)(uintptr_t)kernarg, (uint64_t)(uintptr_t)(kernarg + 2), true, "the arguments"},
        {(uint64_t)(uintptr_t)in, (uint64_t)(uintptr_t)(in + WORDS), true, "the operands"},
        {(uint64_t)(uintptr_t)out, (uint64_t)(uintptr_t)(out + WORDS), false, "the results"}};
    sort_ranges(ranges, 3);
    emu_launch l = {.kernel = k,
                    .arch = arch,
                    .grid = {t->blocks, 1, 1},
                    .block = {t->threads, 1, 1},
                    .ranges = ranges,
                    .num_ranges = 3,
                    .max_steps = 1 << 23,
                    .order = t->order,
                    .approx = t->approx,
                    .lds_races = !t->loose,
                    .lds_unwritten = !t->loose,
                    .strict_barriers = !t->loose,
                    .error = error,
                    .error_bytes = sizeof error};
    const bool ran =
        k != NULL && emu_kernel_decode(k, error, sizeof error) && emu_run(&l, 0, kernarg, kernarg);
    if (t->stops != NULL) {
        if (ran || strstr(error, t->stops) == NULL) {
            (void)fprintf(stderr, "FAILED: %s: %s, expected `%s`\n", t->name, ran ? "ran" : error,
                          t->stops);
            return false;
        }
        return true;
    }
    if (!ran) {
        (void)fprintf(stderr, "FAILED: %s: %s\n", t->name, error);
        return false;
    }
    for (int i = 0; i < 4; i++) {
        if (t->first[i] != ANY && out[i] != (uint32_t)t->first[i]) {
            (void)fprintf(stderr, "FAILED: %s: word %d is 0x%x, expected 0x%x\n", t->name, i,
                          out[i], (unsigned)t->first[i]);
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        (void)fprintf(stderr, "usage: test_machine gfx942|gfx950 FOLDER\n");
        return 2;
    }
    const emu_arch arch = strcmp(argv[1], "gfx942") == 0 ? EMU_GFX942 : EMU_GFX950;
    FILE *f = assembly_open(argv[2], "machine", arch);
    for (int i = 0; f != NULL && i < NUM_CASES; i++) {
        kernel_begins(f, cases[i].name);
        (void)fprintf(f,
                      "s_load_dwordx4 s[4:7], s[0:1], 0x0\nv_and_b32 v0, 0x3ff, v0\n"
                      "s_waitcnt lgkmcnt(0)\n%s\ns_endpgm\n",
                      cases[i].code);
        kernel_ends(f, cases[i].name, cases[i].directives);
    }
    emu_object *o = assembly_close(f, argv[2], "machine", arch);
    if (o == NULL) {
        return 1;
    }
    int failures = 0;
    for (int i = 0; i < NUM_CASES; i++) {
        failures += !run(&cases[i], o, arch);
    }
    emu_object_free(o);
    (void)printf("%s: %d kernels, %d failures\n", argv[1], NUM_CASES, failures);
    return failures > 0;
}
