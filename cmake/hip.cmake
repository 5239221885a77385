# SPDX-License-Identifier: Apache-2.0
# libmoe_hip.so, a plugin: built where clang-22 and lld-22 are, which make the code objects without
# anything of ROCm. HIP's runtime is looked for when the plugin is used (docs/hip.md).
find_program(MOE_HIP_CLANG NAMES clang-22 DOC "Compiler of AMD's code objects")
find_program(MOE_HIP_LLD NAMES ld.lld-22 DOC "Linker of AMD's code objects")
if(NOT MOE_HIP_CLANG OR NOT MOE_HIP_LLD)
    message(STATUS "No clang-22 with lld-22: libmoe_hip.so and the tests hip-* are not built")
    return()
endif()

set(MOE_HIP_BUILT "" CACHE PATH "Folder of code objects that another build of these sources made; empty: they are built")
set(MOE_HIP_ARCHS gfx942 gfx950)
set(MOE_HIP_SOURCES bodies.hip cdna/ggemm_bf16.hip cdna/ggemm_codes.hip cdna/ggemm_fp4.hip cdna/ggemm_fp8.hip cdna/ggemm_int.hip cdna/probe.hip)
set(MOE_HIP_FOLDER ${PROJECT_BINARY_DIR}/hip)
if(MOE_HIP_BUILT)
    set(MOE_HIP_FOLDER ${MOE_HIP_BUILT})
endif()
# Numerics: no contraction, IEEE division and square root (the default), subnormals kept (numerics/hd.h).
# The last two let code that reads many arguments do with the registers that there are.
set(MOE_HIP_FLAGS -x hip -nogpuinc -nogpulib --offload-device-only --no-gpu-bundle-output -O3 -std=c++17
    -ffp-contract=off -mcode-object-version=5 -Wall -Wextra -Wno-unused-function
    -DMOEI_GPU_SHARED_MAX=65536
    -mllvm -sink-insts-to-avoid-spills -mllvm -disable-machine-licm)
if(MOE_WERROR)
    list(APPEND MOE_HIP_FLAGS -Werror)
endif()
file(MAKE_DIRECTORY ${MOE_HIP_FOLDER})
set(MOE_HIP_OBJECTS)
foreach(source IN LISTS MOE_HIP_SOURCES)
    cmake_path(GET source STEM name)
    foreach(arch IN LISTS MOE_HIP_ARCHS)
        set(object ${MOE_HIP_FOLDER}/${name}.${arch}.hsaco)
        list(APPEND MOE_HIP_OBJECTS ${object})
        if(MOE_HIP_BUILT)
            continue()
        endif()
        add_custom_command(OUTPUT ${object}
            COMMAND ${MOE_HIP_CLANG} ${MOE_HIP_FLAGS} --offload-arch=${arch} --ld-path=${MOE_HIP_LLD}
                -I${PROJECT_SOURCE_DIR}/include -I${PROJECT_SOURCE_DIR}/src -I${PROJECT_BINARY_DIR}/generated
                -Xclang -dependency-file -Xclang ${object}.d -Xclang -MT -Xclang ${object} -o ${object} ${PROJECT_SOURCE_DIR}/src/backends/hip/${source}
            DEPENDS ${PROJECT_SOURCE_DIR}/src/backends/hip/${source} DEPFILE ${object}.d
            COMMENT "Building ${name}.${arch}.hsaco" VERBATIM)
    endforeach()
endforeach()
add_custom_target(moe_hip_objects DEPENDS ${MOE_HIP_OBJECTS})

add_library(moe_hip MODULE
    src/backends/hip/hip.c
    src/backends/hip/mfma.c
    src/backends/hip/objects.c
    src/backends/hip/packed.c
    src/backends/hip/probe.c
    src/backends/hip/probe_matrix.c
    src/backends/hip/runtime.c
    src/backends/hip/time.c
    src/backends/gpu/drive_ggemm.c
    src/backends/gpu/drive_ids.c
    src/backends/gpu/drive_rows.c
    src/backends/gpu/pack.c)
moe_target_flags(moe_hip)
target_compile_definitions(moe_hip PRIVATE MOEI_GPU_SHARED_MAX=65536) # LDS of gfx942
set_source_files_properties(src/backends/hip/objects.c PROPERTIES
    COMPILE_OPTIONS "-Wa,-I${MOE_HIP_FOLDER}" OBJECT_DEPENDS "${MOE_HIP_OBJECTS}")
add_dependencies(moe_hip moe_hip_objects)
target_link_libraries(moe_hip PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)
set_target_properties(moe_hip PROPERTIES OUTPUT_NAME moe_hip LINK_FLAGS "-Wl,-z,defs")
