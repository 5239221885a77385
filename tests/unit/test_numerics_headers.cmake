# SPDX-License-Identifier: Apache-2.0
# Compiles each header of src/numerics alone, without warnings, as C99, C17 and C++11, and as CUDA
# and HIP device code where such a compiler is given. Run as a script, usually by CTest:
#
#   cmake -DSOURCE_DIR=<root> -DWORK_DIR=<scratch folder> -DCC=<C compiler> -DCXX=<C++ compiler>
#         [-DNVCC=<nvcc>] [-DHIP_CLANG=<clang++ for AMD>] -P test_numerics_headers.cmake
cmake_minimum_required(VERSION 3.25)

set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wdouble-promotion -Wundef -Werror)
file(GLOB headers ${SOURCE_DIR}/src/numerics/*.h)
file(MAKE_DIRECTORY ${WORK_DIR})
set(passed 0)
set(failed 0)

# check(label extension command...): compiles a file that includes the header twice, nothing else.
function(check label extension)
    foreach(header IN LISTS headers)
        get_filename_component(name ${header} NAME)
        set(source ${WORK_DIR}/header_${name}.${extension})
        file(WRITE ${source} "#include \"numerics/${name}\"\n#include \"numerics/${name}\"\n"
                             "int numerics_header;\n")
        execute_process(COMMAND ${ARGN} -I${SOURCE_DIR}/src ${source}
                        RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
        if(result EQUAL 0)
            math(EXPR passed "${passed} + 1")
        else()
            math(EXPR failed "${failed} + 1")
            message("${label}: ${name}\n${output}")
        endif()
    endforeach()
    set(passed ${passed} PARENT_SCOPE)
    set(failed ${failed} PARENT_SCOPE)
endfunction()

if(NOT headers)
    message(FATAL_ERROR "no headers under ${SOURCE_DIR}/src/numerics")
endif()
check("C99" c ${CC} -std=c99 ${warnings} -fsyntax-only)
check("C17" c ${CC} -std=c17 ${warnings} -fsyntax-only)
check("C++11" cpp ${CXX} -std=c++11 ${warnings} -fsyntax-only)
if(NVCC)
    check("CUDA" cu ${NVCC} -std=c++17 -fmad=false -Xcompiler -Wall,-Wextra -Werror all-warnings
          -gencode arch=compute_80,code=compute_80 -c -o ${WORK_DIR}/header.o)
endif()
if(HIP_CLANG)
    check("HIP" hip ${HIP_CLANG} -x hip -nogpuinc -nogpulib --cuda-device-only
          --offload-arch=gfx942 -ffp-contract=off -Wall -Wextra -Werror -fsyntax-only)
endif()
message("${passed} passed, ${failed} failed")
if(failed)
    message(FATAL_ERROR "a header does not compile alone")
endif()
