# SPDX-License-Identifier: Apache-2.0
# What every C file of the project is compiled with. Contraction is off everywhere: a fused operation
# is written as one, so that bits do not depend on the compiler.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 11)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_C_FLAGS_RELEASE "-O3 -DNDEBUG")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g")
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g")

function(moe_target_flags target)
    target_compile_options(${target} PRIVATE
        -ffp-contract=off -fno-math-errno -fvisibility=hidden -fno-strict-aliasing
        -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wdouble-promotion -Wundef -Wvla
        $<IF:$<C_COMPILER_ID:GNU>,-Wcast-align=strict,-Wcast-align> -Wwrite-strings -Wpointer-arith
        $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes>
        $<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes>
        $<$<BOOL:${MOE_WERROR}>:-Werror>)
    target_include_directories(${target} PRIVATE
        ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src ${PROJECT_BINARY_DIR}/generated)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()

if(MOE_SANITIZE)
    add_compile_options(-fsanitize=${MOE_SANITIZE} -fno-omit-frame-pointer -g1 # lines are what reports name
                        -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${MOE_SANITIZE})
else()
    add_compile_options(-fstack-protector-strong)
    add_compile_definitions($<$<CONFIG:Release>:_FORTIFY_SOURCE=2>)
    add_link_options(-Wl,-z,relro,-z,now)
endif()
if(MOE_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link) # what libFuzzer watches; tests/CMakeLists.txt links it
endif()
