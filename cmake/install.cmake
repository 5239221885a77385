# SPDX-License-Identifier: Apache-2.0
install(TARGETS moe moe_static LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
                               ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/moe DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(MOE_CLI)
    install(TARGETS moe_io moe_io_static LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
                                         ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
    install(TARGETS moe_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
