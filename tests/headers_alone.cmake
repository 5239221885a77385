# SPDX-License-Identifier: Apache-2.0
# Every header of a folder compiles alone, and included twice, as C99, C17 and C++11 with the full
# warning set of the project as errors; as CUDA and HIP device code where such a compiler is given.
# Run as a script, usually by CTest:
#
#   cmake -DROOT=<folder that includes begin at> -DFOLDER=<folder below it> -DWORK_DIR=<scratch folder>
#         -DCC=<C compiler> -DCXX=<C++ compiler> [-DNVCC=<nvcc>] [-DHIP_CLANG=<clang++ for AMD>]
#         -P headers_alone.cmake
cmake_minimum_required(VERSION 3.25)

set(flags -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wdouble-promotion -Wundef
          -Wvla -Wcast-align -Wwrite-strings -Wpointer-arith -Werror)
set(c_flags ${flags} -Wstrict-prototypes -Wmissing-prototypes)
file(GLOB headers RELATIVE ${ROOT} ${ROOT}/${FOLDER}/*.h)
file(MAKE_DIRECTORY ${WORK_DIR})
set(passed 0)
set(failed 0)

# check(label extension command...): one file per header, which includes it twice and nothing else.
function(check label extension)
    foreach(header IN LISTS headers)
        string(MAKE_C_IDENTIFIER ${header} name)
        set(source ${WORK_DIR}/${name}.${extension})
        file(WRITE ${source} "#include <${header}>\n#include <${header}>\n"
                             "extern int moe_header_alone;\nint moe_header_alone;\n")
        execute_process(COMMAND ${ARGN} -I${ROOT} ${source}
                        RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
        if(result EQUAL 0)
            math(EXPR passed "${passed} + 1")
        else()
            math(EXPR failed "${failed} + 1")
            message("FAILED: ${header} as ${label}\n${output}")
        endif()
    endforeach()
    set(passed ${passed} PARENT_SCOPE)
    set(failed ${failed} PARENT_SCOPE)
endfunction()

if(NOT headers)
    message(FATAL_ERROR "no headers in ${ROOT}/${FOLDER}")
endif()
check("C99" c ${CC} -std=c99 ${c_flags})
check("C17" c ${CC} -std=c17 ${c_flags})
check("C++11" cpp ${CXX} -std=c++11 ${flags})
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
