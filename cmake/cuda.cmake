# SPDX-License-Identifier: Apache-2.0
# libmoe_cuda.so, a plugin: built where nvcc is, against nothing but the public headers and what
# gpu/ and numerics/ hold. The runtime is linked in; libcuda is found by it at run time.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "No nvcc: libmoe_cuda.so is not built")
    return()
endif()
set(MOE_CUDA_ARCHS "90a" CACHE STRING
    "Devices of the shared kernels, e.g. 80;89;90a;100;120; the matrix kernels are built for 90a")
set(CMAKE_CUDA_ARCHITECTURES OFF) # given per file
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# Numerics: no contraction, no approximate division, subnormals kept (numerics/hd.h).
set(MOE_CUDA_FLAGS -fmad=false -Xcompiler=-fno-exceptions,-fno-threadsafe-statics,-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-function
    --expt-relaxed-constexpr)
add_library(moe_cuda_shared OBJECT src/backends/cuda/ops.cu)
add_library(moe_cuda_hopper OBJECT
    src/backends/cuda/ggemm_bf16.cu
    src/backends/cuda/ggemm_e4m3.cu
    src/backends/cuda/ggemm_f16.cu
    src/backends/cuda/ggemm_packed_e4m3.cu
    src/backends/cuda/ggemm_packed_e4m3_fp8.cu
    src/backends/cuda/ggemm_packed_mxfp4.cu
    src/backends/cuda/ggemm_packed_mxfp4_fp8.cu
    src/backends/cuda/ggemm_packed_nvfp4.cu
    src/backends/cuda/ggemm_packed_nvfp4_fp8.cu
    src/backends/cuda/ggemm_packed_u4.cu
    src/backends/cuda/ggemm_packed_u4_fp8.cu
    src/backends/cuda/ggemm_packed_u8.cu
    src/backends/cuda/ggemm_packed_u8_fp8.cu
    src/backends/cuda/measure.cu)
foreach(arch IN LISTS MOE_CUDA_ARCHS)
    target_compile_options(moe_cuda_shared PRIVATE
        "SHELL:-gencode=arch=compute_${arch},code=sm_${arch}")
endforeach()
# Registers that do not suffice, stack frames and local memory are errors on the devices that the kernels
# are written for.
set(MOE_PTXAS_STRICT "SHELL:-Xptxas=-warn-spills,-warn-lmem-usage,-Werror")
target_compile_options(moe_cuda_hopper PRIVATE ${MOE_PTXAS_STRICT})
if(MOE_CUDA_ARCHS STREQUAL "90a")
    target_compile_options(moe_cuda_shared PRIVATE ${MOE_PTXAS_STRICT})
endif()
target_compile_options(moe_cuda_hopper PRIVATE "SHELL:-gencode=arch=compute_90a,code=sm_90a")
foreach(part moe_cuda_shared moe_cuda_hopper)
    target_compile_options(${part} PRIVATE ${MOE_CUDA_FLAGS})
    target_include_directories(${part} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src
                                               ${PROJECT_BINARY_DIR}/generated)
    set_target_properties(${part} PROPERTIES CUDA_STANDARD 17 POSITION_INDEPENDENT_CODE ON)
endforeach()

add_library(moe_cuda MODULE
    src/backends/cuda/cuda.c
    src/backends/cuda/graph.c
    src/backends/cuda/mma.c
    src/backends/cuda/operand.c
    src/backends/gpu/drive_ggemm.c
    src/backends/gpu/drive_ids.c
    src/backends/gpu/drive_rows.c
    src/backends/gpu/pack.c
    $<TARGET_OBJECTS:moe_cuda_shared> $<TARGET_OBJECTS:moe_cuda_hopper>)
moe_target_flags(moe_cuda)
target_compile_options(moe_cuda PRIVATE $<$<COMPILE_LANGUAGE:C>:-Wno-pedantic>)
target_include_directories(moe_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(moe_cuda PRIVATE CUDA::cudart_static Threads::Threads ${CMAKE_DL_LIBS} rt)
set_target_properties(moe_cuda PROPERTIES OUTPUT_NAME moe_cuda LINKER_LANGUAGE C
                                          LINK_FLAGS "-Wl,--exclude-libs,ALL -Wl,-z,defs")
