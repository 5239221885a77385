// SPDX-License-Identifier: Apache-2.0
// What sm_90a has beyond CUDA C: barriers in shared memory that count bytes, bulk and tensor
// copies, and warpgroup matrix instructions. One function per instruction; PTX ISA 8.x names in
// comments.
#ifndef MOEI_CUDA_HOPPER_CUH
#define MOEI_CUDA_HOPPER_CUH

#include <cuda.h>
#include <stdint.h>

#define HOPPER_FN static __device__ __forceinline__

/// Address of shared memory as instructions take it: 32 bits, which spares registers.
HOPPER_FN uint32_t hopper_smem(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/// An address that the compiler does not compute again wherever it is used.
HOPPER_FN uint32_t hopper_fixed(uint32_t at)
{
    asm volatile("mov.b32 %0, %0;" : "+r"(at));
    return at;
}

/// What follows from *v is computed here, not before a loop.
HOPPER_FN void hopper_here(uint32_t *v)
{
    asm volatile("" : "+r"(*v));
}

/// The same memory, as a pointer.
template <class T> HOPPER_FN T *hopper_pointer(uint32_t at)
{
    return (T *)__cvta_shared_to_generic(at);
}

// ---- mbarrier ----------------------------------------------------------------------------------

HOPPER_FN void hopper_barrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

/// Makes initialised barriers known to the copy engine.
HOPPER_FN void hopper_barrier_init_done(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

HOPPER_FN void hopper_barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and has the phase wait for `bytes` more that a copy will bring.
HOPPER_FN void hopper_barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/// Arrives once this thread's earlier hopper_copy_4 have landed.
HOPPER_FN void hopper_barrier_arrive_copies(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/// Waits until the phase of this parity is complete.
HOPPER_FN void hopper_barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again%=;\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/// Arrives at a barrier of a block of the cluster (hopper_of_block).
HOPPER_FN void hopper_barrier_arrive_at(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Barrier `id` among `threads` threads of the block.
HOPPER_FN void hopper_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Orders this thread's view of shared memory before what the matrix unit or copy engine reads.
HOPPER_FN void hopper_fence_async(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- cluster -----------------------------------------------------------------------------------

HOPPER_FN uint32_t hopper_cluster_rank(void)
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/// Where block `rank` of the cluster has what lies at `at` in this one.
HOPPER_FN uint32_t hopper_of_block(uint32_t at, uint32_t rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

/// Barrier among the threads of the cluster that have not ended.
HOPPER_FN void hopper_cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

// ---- copies ------------------------------------------------------------------------------------

/// 4 bytes from global to shared memory, both aligned.
HOPPER_FN void hopper_copy_4(uint32_t to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
}

/// Waits for this thread's copies.
HOPPER_FN void hopper_copies_wait(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/// `bytes` contiguous bytes, a multiple of 16, both ends aligned to 16.
HOPPER_FN void hopper_copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier,
                                uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                 : "memory");
}

HOPPER_FN uint64_t hopper_policy_evict_first(void)
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

HOPPER_FN uint64_t hopper_policy_evict_last(void)
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/// A box of a tensor map of rank 3 or 5 to shared memory; zeros outside of the tensor.
HOPPER_FN void hopper_tensor_3d(uint32_t to, const CUtensorMap *map, int c0, int c1, int c2,
                                uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier), "l"(policy)
                 : "memory");
}

/// The same without a cache policy.
HOPPER_FN void hopper_tensor_3d_plain(uint32_t to, const CUtensorMap *map, int c0, int c1, int c2,
                                      uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier)
                 : "memory");
}

/// The same to every block of the cluster in `blocks`, a bit each: to the same place of its shared
/// memory, told to the same barrier of its own.
HOPPER_FN void hopper_tensor_3d_all(uint32_t to, const CUtensorMap *map, int c0, int c1, int c2,
                                    uint32_t barrier, uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier), "h"(blocks)
                 : "memory");
}

HOPPER_FN void hopper_tensor_5d(uint32_t to, const CUtensorMap *map, int c0, int c3, int c4,
                                uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %3, %4, %5}], [%6], %7;" ::"r"(to),
                 "l"(map), "r"(c0), "r"(0), "r"(c3), "r"(c4), "r"(barrier), "l"(policy)
                 : "memory");
}

HOPPER_FN void hopper_tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ---- grids one after the other -----------------------------------------------------------------

/// Waits for the grids before this one; without a launch that allows overlap, nothing.
HOPPER_FN void hopper_grid_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// Lets the next grid of the stream begin. Only after hopper_grid_wait: the next one may read what
/// this one waits for.
HOPPER_FN void hopper_grid_launch(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <int REGISTERS> HOPPER_FN void hopper_registers_grow(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> HOPPER_FN void hopper_registers_shrink(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- wgmma -------------------------------------------------------------------------------------

/// Descriptor of an operand whose rows are 128 bytes of k, swizzled in groups of eight rows. 32
/// bytes further along k: add 2.
HOPPER_FN uint64_t hopper_operand(uint32_t at)
{
    return (uint64_t)((at & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

HOPPER_FN void hopper_mma_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

HOPPER_FN void hopper_mma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `PENDING` groups are under way.
template <int PENDING> HOPPER_FN void hopper_mma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/// Keeps the compiler from moving uses of accumulators, the first COUNT of them, across a wait.
template <int COUNT> HOPPER_FN void hopper_mma_keep(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

/// Element types of a product.
enum { HOPPER_BF16, HOPPER_F16, HOPPER_E4M3 };

/// d[64 x N] = (or +=) a . b over 32 bytes of k, both operands in shared memory.
template <int N, int TYPE>
HOPPER_FN void hopper_mma(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate);

/// The same on bf16 with the M operand in registers, over 16 k.
template <int N>
HOPPER_FN void hopper_mma_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                                    int accumulate);

// Register lists by eights: names in the instruction, operands of the asm.
#define REGS_0        "%0,%1,%2,%3"
#define REGS_4        ",%4,%5,%6,%7"
#define REGS_8        ",%8,%9,%10,%11,%12,%13,%14,%15"
#define REGS_16       ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define REGS_32       ",%32,%33,%34,%35,%36,%37,%38,%39"
#define REGS_40       ",%40,%41,%42,%43,%44,%45,%46,%47"
#define REGS_48       ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGS_64       ",%64,%65,%66,%67"
#define REGS_68       ",%68,%69,%70,%71"
#define REGS_72       ",%72,%73,%74,%75,%76,%77,%78,%79"
#define REGS_80       ",%80,%81,%82,%83,%84,%85,%86,%87"
#define REGS_88       ",%88,%89,%90,%91,%92,%93,%94,%95"
#define REGS_96       ",%96,%97,%98,%99,%100,%101,%102,%103"
#define REGS_104      ",%104,%105,%106,%107,%108,%109,%110,%111"
#define REGS_112      ",%112,%113,%114,%115,%116,%117,%118,%119"
#define REGS_120      ",%120,%121,%122,%123,%124,%125,%126,%127"
#define REGS_UP_TO_80 REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48 REGS_64 REGS_68 REGS_72
#define OUT_4(i)      "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OUT_8(i)      OUT_4(i), OUT_4(i + 4)
#define OUT_16(i)     OUT_8(i), OUT_8(i + 8)
#define OUT_32(i)     OUT_16(i), OUT_16(i + 16)

#define HOPPER_MMA_TYPE(N, TYPE, k, types, tail, regs, a_reg, b_reg, p_reg, ...)                   \
    template <>                                                                                    \
    __device__ __forceinline__ void hopper_mma<N, TYPE>(float(&d)[N / 2], uint64_t a, uint64_t b,  \
                                                        int accumulate)                            \
    {                                                                                              \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, " p_reg ", 0;\n"                                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N k ".f32." types " {" regs "}, " a_reg  \
                     ", " b_reg ", p, " tail ";\n"                                                 \
                     "}"                                                                           \
                     : __VA_ARGS__                                                                 \
                     : "l"(a), "l"(b), "r"(accumulate));                                           \
    }
#define HOPPER_MMA_REGISTERS(N, regs, a_regs, b_reg, p_reg, ...)                                   \
    template <>                                                                                    \
    __device__ __forceinline__ void hopper_mma_registers<N>(                                       \
        float(&d)[N / 2], const uint32_t(&a)[4], uint64_t b, int accumulate)                       \
    {                                                                                              \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, " p_reg ", 0;\n"                                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" regs "}, "       \
                     "{" a_regs "}, " b_reg ", p, 1, 1, 0;\n"                                      \
                     "}"                                                                           \
                     : __VA_ARGS__                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));       \
    }
#define HOPPER_MMA(N, regs, a_reg, b_reg, p_reg, ...)                                              \
    HOPPER_MMA_TYPE(N, HOPPER_BF16, "k16", "bf16.bf16", "1, 1, 0, 0", regs, a_reg, b_reg, p_reg,   \
                    __VA_ARGS__)                                                                   \
    HOPPER_MMA_TYPE(N, HOPPER_F16, "k16", "f16.f16", "1, 1, 0, 0", regs, a_reg, b_reg, p_reg,      \
                    __VA_ARGS__)                                                                   \
    HOPPER_MMA_TYPE(N, HOPPER_E4M3, "k32", "e4m3.e4m3", "1, 1", regs, a_reg, b_reg, p_reg,         \
                    __VA_ARGS__)

HOPPER_MMA_REGISTERS(64, REGS_0 REGS_4 REGS_8 REGS_16, "%32, %33, %34, %35", "%36", "%37",
                     OUT_32(0))
HOPPER_MMA_REGISTERS(80, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32, "%40, %41, %42, %43", "%44", "%45",
                     OUT_32(0), OUT_8(32))
HOPPER_MMA_REGISTERS(96, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40, "%48, %49, %50, %51", "%52",
                     "%53", OUT_32(0), OUT_16(32))
HOPPER_MMA_REGISTERS(128, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48,
                     "%64, %65, %66, %67", "%68", "%69", OUT_32(0), OUT_32(32))
HOPPER_MMA_REGISTERS(144, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48 REGS_64 REGS_68,
                     "%72, %73, %74, %75", "%76", "%77", OUT_32(0), OUT_32(32), OUT_8(64))
HOPPER_MMA_REGISTERS(160,
                     REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48 REGS_64 REGS_68 REGS_72,
                     "%80, %81, %82, %83", "%84", "%85", OUT_32(0), OUT_32(32), OUT_16(64))
HOPPER_MMA(8, REGS_0, "%4", "%5", "%6", OUT_4(0))
HOPPER_MMA(16, REGS_0 REGS_4, "%8", "%9", "%10", OUT_8(0))
HOPPER_MMA(32, REGS_0 REGS_4 REGS_8, "%16", "%17", "%18", OUT_16(0))
HOPPER_MMA(64, REGS_0 REGS_4 REGS_8 REGS_16, "%32", "%33", "%34", OUT_32(0))
HOPPER_MMA(96, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40, "%48", "%49", "%50", OUT_32(0),
           OUT_16(32))
HOPPER_MMA(128, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48, "%64", "%65", "%66",
           OUT_32(0), OUT_32(32))
HOPPER_MMA(144, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48 REGS_64 REGS_68, "%72", "%73",
           "%74", OUT_32(0), OUT_32(32), OUT_8(64))
HOPPER_MMA(160, REGS_0 REGS_4 REGS_8 REGS_16 REGS_32 REGS_40 REGS_48 REGS_64 REGS_68 REGS_72, "%80",
           "%81", "%82", OUT_32(0), OUT_32(32), OUT_16(64))
HOPPER_MMA(176, REGS_UP_TO_80 REGS_80, "%88", "%89", "%90", OUT_32(0), OUT_32(32), OUT_16(64),
           OUT_8(80))
HOPPER_MMA(192, REGS_UP_TO_80 REGS_80 REGS_88, "%96", "%97", "%98", OUT_32(0), OUT_32(32),
           OUT_32(64))
HOPPER_MMA(208, REGS_UP_TO_80 REGS_80 REGS_88 REGS_96, "%104", "%105", "%106", OUT_32(0),
           OUT_32(32), OUT_32(64), OUT_8(96))
HOPPER_MMA(224, REGS_UP_TO_80 REGS_80 REGS_88 REGS_96 REGS_104, "%112", "%113", "%114", OUT_32(0),
           OUT_32(32), OUT_32(64), OUT_16(96))
HOPPER_MMA(240, REGS_UP_TO_80 REGS_80 REGS_88 REGS_96 REGS_104 REGS_112, "%120", "%121", "%122",
           OUT_32(0), OUT_32(32), OUT_32(64), OUT_16(96), OUT_8(112))
HOPPER_MMA(256, REGS_UP_TO_80 REGS_80 REGS_88 REGS_96 REGS_104 REGS_112 REGS_120, "%128", "%129",
           "%130", OUT_32(0), OUT_32(32), OUT_32(64), OUT_32(96))

#undef REGS_0
#undef REGS_4
#undef REGS_8
#undef REGS_16
#undef REGS_32
#undef REGS_40
#undef REGS_48
#undef REGS_64
#undef REGS_68
#undef REGS_72
#undef REGS_80
#undef REGS_88
#undef REGS_96
#undef REGS_104
#undef REGS_112
#undef REGS_120
#undef REGS_UP_TO_80
#undef OUT_4
#undef OUT_8
#undef OUT_16
#undef OUT_32
#undef HOPPER_MMA
#undef HOPPER_MMA_REGISTERS
#undef HOPPER_MMA_TYPE

// ---- products of a warp ------------------------------------------------------------------------

/// d[16 x 8] += a . b over 16 k of bf16, all in registers: `a` is a warp's of hopper_mma_registers,
/// `d` its sums of eight columns, and so are their bits.
HOPPER_FN void hopper_mma_sync(float *d, const uint32_t (&a)[4], const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8 x 8 matrices of 16-bit elements, one row address a lane: of each, the pair lane % 4 of
/// row lane / 4.
HOPPER_FN void hopper_load_matrices(uint32_t at, uint32_t *to)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

/// Four 8 x 8 matrices of 16-bit elements, one row address a lane.
HOPPER_FN void hopper_store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

/// The same, transposed on the way.
HOPPER_FN void hopper_store_transposed(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

#endif
