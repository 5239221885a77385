# SPDX-License-Identifier: Apache-2.0
# Every public header compiles alone, and included twice, as C99, C17 and C++11 with the full warning
# set of the project as errors.
#   cmake -DSOURCE_DIR= -DWORK_DIR= -DCC= -DCXX= -P headers.cmake
cmake_minimum_required(VERSION 3.25)
file(GLOB headers RELATIVE ${SOURCE_DIR}/include ${SOURCE_DIR}/include/moe/*.h)
file(MAKE_DIRECTORY ${WORK_DIR})
set(flags -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wdouble-promotion -Wundef -Wvla
          -Wcast-align -Wwrite-strings -Wpointer-arith -Werror -I${SOURCE_DIR}/include)
set(passed 0)
set(failed 0)

# check(extension command...): one file per header, which includes it twice and nothing else.
function(check extension)
    foreach(header IN LISTS headers)
        string(MAKE_C_IDENTIFIER ${header} name)
        set(source ${WORK_DIR}/${name}.${extension})
        file(WRITE ${source} "#include <${header}>\n#include <${header}>\n"
                             "extern int moe_header_alone;\nint moe_header_alone;\n")
        execute_process(COMMAND ${ARGN} ${flags} ${source}
                        RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
        if(result EQUAL 0)
            math(EXPR passed "${passed} + 1")
        else()
            math(EXPR failed "${failed} + 1")
            message("FAILED: ${header} with ${ARGN}\n${output}")
        endif()
    endforeach()
    set(passed ${passed} PARENT_SCOPE)
    set(failed ${failed} PARENT_SCOPE)
endfunction()

if(NOT headers)
    message(FATAL_ERROR "no headers under ${SOURCE_DIR}/include/moe")
endif()
check(c ${CC} -std=c99 -Wstrict-prototypes -Wmissing-prototypes)
check(c ${CC} -std=c17 -Wstrict-prototypes -Wmissing-prototypes)
check(cpp ${CXX} -std=c++11)
message("${passed} passed, ${failed} failed")
if(failed)
    message(FATAL_ERROR "a public header does not compile alone")
endif()
