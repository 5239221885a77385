# SPDX-License-Identifier: Apache-2.0
# make install: libraries, headers, program, and what find_package(moe) and pkg-config read. Everything is
# found relative to where it lies, so that the installed tree can be moved.
include(CMakePackageConfigHelpers)

set(MOE_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/moe)

function(moe_install_library export)
    install(TARGETS ${ARGN} EXPORT ${export}
            LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
            ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
    install(EXPORT ${export} NAMESPACE moe:: DESTINATION ${MOE_CMAKE_DIR})
endfunction()

function(moe_install_pc name)
    file(RELATIVE_PATH MOE_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
    string(REGEX REPLACE "/$" "" MOE_PC_TO_PREFIX ${MOE_PC_TO_PREFIX})
    configure_file(${PROJECT_SOURCE_DIR}/cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
    install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

# What a plugin compiles against: it links nothing.
add_library(moe_headers INTERFACE)
set_target_properties(moe_headers PROPERTIES EXPORT_NAME headers)
target_include_directories(moe_headers INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

moe_install_library(moeTargets moe moe_static moe_headers)
moe_install_pc(moe)
if(MOE_CLI)
    set_target_properties(moe_io PROPERTIES INSTALL_RPATH "$ORIGIN") # where its libmoe is
    moe_install_library(moeIoTargets moe_io moe_io_static)
    moe_install_pc(moe_io)
    install(TARGETS moe_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY include/moe DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE NOTICE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs examples DESTINATION ${CMAKE_INSTALL_DOCDIR})

configure_package_config_file(cmake/moeConfig.cmake.in ${PROJECT_BINARY_DIR}/moeConfig.cmake
    INSTALL_DESTINATION ${MOE_CMAKE_DIR} NO_SET_AND_CHECK_MACRO)
# 0.x: a minor version may change the API.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/moeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/moeConfig.cmake ${PROJECT_BINARY_DIR}/moeConfigVersion.cmake
        DESTINATION ${MOE_CMAKE_DIR})
