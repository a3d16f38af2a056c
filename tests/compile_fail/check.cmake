# cmake -D SOURCE=<file> -P check.cmake -- <compiler and its arguments>
# Runs the compiler and holds what it says against the first line of the file (see CMakeLists.txt).
set(command "")
foreach(i RANGE ${CMAKE_ARGC})
  if(after_dashes AND i LESS CMAKE_ARGC)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(after_dashes TRUE)
  endif()
endforeach()

execute_process(COMMAND ${command} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
string(REPLACE "\\\"" "\"" said "${output}") # clang 14 escapes the quotes in a static_assert's message

function(complain text)
  message(NOTICE "${text}") # a FATAL_ERROR would break its lines
  message(FATAL_ERROR "${SOURCE} is not as its first line says")
endfunction()

file(READ ${SOURCE} expected LIMIT 1000)
string(REGEX REPLACE "\r?\n.*" "" expected "${expected}")
if(expected STREQUAL "// expect-ok")
  if(NOT result EQUAL 0)
    complain("${SOURCE} must compile, but:\n${output}")
  endif()
elseif(expected MATCHES "^// expect: (.+)$")
  set(sentence "${CMAKE_MATCH_1}")
  string(FIND "${said}" "${sentence}" at)
  if(result EQUAL 0)
    complain("${SOURCE} must not compile, but it does.")
  elseif(at EQUAL -1)
    complain("${SOURCE}: expected the compiler to say\n  ${sentence}\ngot\n${output}")
  endif()
else()
  complain("${SOURCE}: the first line must be '// expect: <sentence>' or '// expect-ok', got\n  ${expected}")
endif()
