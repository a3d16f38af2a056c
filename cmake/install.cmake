# cmake --install: the headers and a package that find_package(moeskip) finds. Nothing in it depends on the machine.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/moeskip)
install(TARGETS moeskip EXPORT moeskipTargets FILE_SET HEADERS)
install(EXPORT moeskipTargets NAMESPACE moeskip:: DESTINATION ${package_dir})

configure_package_config_file(cmake/moeskipConfig.cmake.in moeskipConfig.cmake INSTALL_DESTINATION ${package_dir}
                              NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may break its users.
write_basic_package_version_file(moeskipConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moeskipConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/moeskipConfigVersion.cmake
              cmake/cuda.cmake cmake/kernels.cu cmake/sentencepiece.cmake
        DESTINATION ${package_dir})
install(DIRECTORY include/moeskip DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.cuh")
install(FILES include/moeskip/formats/tokenizer/sentence_piece.hpp
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/moeskip/formats/tokenizer)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
