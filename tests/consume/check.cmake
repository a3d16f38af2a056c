# cmake -D WAY=... -D SCRATCH=... -P check.cmake -- <options for the consumer's configuration>
# Configures, builds and runs project/ in a scratch folder; find_package gets a fresh installation to find.
set(options "")
foreach(i RANGE ${CMAKE_ARGC})
  if(after_dashes AND i LESS CMAKE_ARGC)
    list(APPEND options "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(after_dashes TRUE)
  endif()
endforeach()

file(REMOVE_RECURSE ${SCRATCH})
set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -S ${CMAKE_CURRENT_LIST_DIR}/project -D WAY=${WAY} ${options})
if(WAY STREQUAL "find_package")
  execute_process(COMMAND ${CMAKE_COMMAND} --install ${MOESKIP_BUILD} --prefix ${SCRATCH}/prefix
                  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND configure -D CMAKE_PREFIX_PATH=${SCRATCH}/prefix -D CMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
elseif(WAY STREQUAL "add_subdirectory")
  list(APPEND configure -D MOESKIP=${MOESKIP})
else()
  list(APPEND configure -D FETCHCONTENT_SOURCE_DIR_MOESKIP=${MOESKIP})
endif()

execute_process(COMMAND ${configure} -B ${SCRATCH}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${SCRATCH}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${SCRATCH}/build/consumer WORKING_DIRECTORY ${SCRATCH} OUTPUT_VARIABLE printed OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT printed STREQUAL VERSION)
  message(FATAL_ERROR "the consumer must print ${VERSION}, got '${printed}'")
endif()

# expect_refusal(<version and components> <sentence>): find_package must fail and say the sentence.
function(expect_refusal wanted sentence)
  execute_process(COMMAND ${configure} -B ${SCRATCH}/refused --fresh -D WANTED=${wanted}
                  RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE said)
  string(REGEX REPLACE "[ \n]+" " " said "${said}")
  string(FIND "${said}" "${sentence}" at)
  if(result EQUAL 0 OR at EQUAL -1)
    message(NOTICE "find_package(moeskip ${wanted}) must fail and say\n  ${sentence}\ngot (${result})\n${said}")
    message(FATAL_ERROR "find_package did not refuse")
  endif()
endfunction()

if(WAY STREQUAL "find_package")
  execute_process(COMMAND ${configure} -B ${SCRATCH}/components -D "WANTED=${VERSION} COMPONENTS cpu"
                  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
  expect_refusal("COMPONENTS gpu" "component 'gpu' is not part of this installation of moeskip (have: cpu, cuda, sentencepiece)")
  expect_refusal("99.0" "requested version \"99.0\"")
  if(SENTENCEPIECE) # libsentencepiece is here
    execute_process(COMMAND ${configure} -B ${SCRATCH}/components -D "WANTED=${VERSION} COMPONENTS sentencepiece"
                    OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${CMAKE_COMMAND} --build ${SCRATCH}/components --target with_sentencepiece
                    COMMAND_ERROR_IS_FATAL ANY)
  endif()
endif()
