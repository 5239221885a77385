# SPDX-License-Identifier: Apache-2.0
# Every public header compiles alone, as C99 and as C++11, with the full warning set.
#   cmake -DSOURCE_DIR= -DWORK_DIR= -DCC= -DCXX= -P headers.cmake
file(GLOB headers RELATIVE ${SOURCE_DIR}/include ${SOURCE_DIR}/include/moe/*.h)
file(MAKE_DIRECTORY ${WORK_DIR})
set(flags -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wundef -Wwrite-strings -Wpointer-arith
          -Wdouble-promotion -Werror -I ${SOURCE_DIR}/include)
set(count 0)
foreach(header ${headers})
    foreach(kind "c;${CC};-std=c99;-Wstrict-prototypes" "cpp;${CXX};-std=c++11;-Wold-style-cast")
        list(GET kind 0 suffix)
        list(GET kind 1 compiler)
        list(SUBLIST kind 2 -1 options)
        list(REMOVE_ITEM options -Wold-style-cast)
        file(WRITE ${WORK_DIR}/one.${suffix} "#include \"${header}\"\nint moe_header_test_unit;\n")
        execute_process(COMMAND ${compiler} ${options} ${flags} ${WORK_DIR}/one.${suffix}
                        RESULT_VARIABLE result ERROR_VARIABLE error)
        if(NOT result EQUAL 0)
            message(FATAL_ERROR "${header} with ${compiler} ${options}:\n${error}")
        endif()
        math(EXPR count "${count} + 1")
    endforeach()
endforeach()
message(STATUS "${count} passed, 0 failed")
