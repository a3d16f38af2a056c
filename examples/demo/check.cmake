# cmake -D PROGRAM=<demo> -D SCRATCH=<folder> -P check.cmake
# Runs the demo at its smallest: what it writes, that a run can be repeated exactly, and how it fails.
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})

function(demo) # demo(<arguments...>): must succeed
  execute_process(COMMAND ${PROGRAM} --tiny --tokens 24 ${ARGN} WORKING_DIRECTORY ${SCRATCH} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(demo_fails expected) # demo_fails(<regex> <arguments...>): one line on stderr that matches, status 1
  execute_process(COMMAND ${PROGRAM} --tiny --steps 1 ${ARGN} WORKING_DIRECTORY ${SCRATCH}
                  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(NOT status EQUAL 1 OR NOT errors MATCHES "^demo: [^\n]*${expected}[^\n]*\n$")
    message(FATAL_ERROR "demo ${ARGN}: expected status 1 and one line with '${expected}', got ${status} and:\n${errors}")
  endif()
  if(output MATCHES "Training")
    message(FATAL_ERROR "demo ${ARGN}: found its mistake only after training began")
  endif()
endfunction()

function(expect_member type json) # expect_member(<type> <json> <path...>)
  string(JSON found ERROR_VARIABLE wrong TYPE "${json}" ${ARGN})
  if(NOT found STREQUAL type)
    message(FATAL_ERROR "summary.json: ${ARGN}: expected ${type}, got ${found} ${wrong}")
  endif()
endfunction()

function(expect_members count json) # expect_members(<count> <json> <path...>): neither more nor fewer
  string(JSON found LENGTH "${json}" ${ARGN})
  if(NOT found EQUAL count)
    message(FATAL_ERROR "summary.json: ${ARGN}: expected ${count} members, got ${found}")
  endif()
endfunction()

demo(--steps 3 --out first)
file(READ ${SCRATCH}/first/summary.json json)
expect_members(4 "${json}")
expect_member(STRING "${json}" corpus)
expect_members(5 "${json}" train)
foreach(key IN ITEMS steps tokens_per_second first_loss last_loss valid_bits_per_byte)
  expect_member(NUMBER "${json}" train ${key})
endforeach()
expect_members(2 "${json}" exits) # after layers 2 and 4
foreach(exit IN ITEMS 0 1)
  expect_members(2 "${json}" exits ${exit})
  expect_member(NUMBER "${json}" exits ${exit} layer)
  expect_member(NUMBER "${json}" exits ${exit} bits_per_byte)
endforeach()
expect_members(3 "${json}" decode)
foreach(decoder IN ITEMS autoregressive early_exit self_speculative)
  expect_members(4 "${json}" decode ${decoder})
  expect_member(NUMBER "${json}" decode ${decoder} tokens_per_second)
  expect_member(NUMBER "${json}" decode ${decoder} mean_exit_layer)
  expect_member(BOOLEAN "${json}" decode ${decoder} identical)
endforeach()
expect_member(NULL "${json}" decode autoregressive acceptance_rate)
expect_member(NULL "${json}" decode early_exit acceptance_rate)
string(JSON type TYPE "${json}" decode self_speculative acceptance_rate) # null where speculating did not pay
if(NOT type MATCHES "^(NUMBER|NULL)$")
  message(FATAL_ERROR "acceptance_rate: expected a number or null, got ${type}")
endif()
string(JSON identical GET "${json}" decode self_speculative identical)
if(NOT identical)
  message(FATAL_ERROR "self-speculation gave another text than plain decoding")
endif()

file(READ ${SCRATCH}/first/report.html html)
foreach(regex IN ITEMS "^<!doctype html>" "</html>\n$" "<h2>Depth</h2>" "bits per byte, and for" "<h2>Experts</h2>" " dead[:.]"
                       "<h2>Generation</h2>" "<h2>Training</h2>")
  if(NOT html MATCHES "${regex}")
    message(FATAL_ERROR "report.html: expected '${regex}'")
  endif()
endforeach()

demo(--steps 3 --out second)
demo(--steps 3 --out third --seed 7)
foreach(run IN ITEMS first second third)
  file(SHA256 ${SCRATCH}/${run}/model.safetensors ${run})
endforeach()
if(NOT first STREQUAL second OR first STREQUAL third)
  message(FATAL_ERROR "the same seed must give the same checkpoint, another seed another one")
endif()

demo(--seconds 1 --bf16 --out timed)

# Ctrl-C ends the training, not the program. It is sent until it is heard: the first one may come too early.
execute_process(COMMAND sh -c "\"$0\" --tiny --tokens 24 --steps 1000000000 --out stopped &
                               while sleep 1 && kill -INT $!; do :; done; wait $!" ${PROGRAM}
                WORKING_DIRECTORY ${SCRATCH} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
file(READ ${SCRATCH}/stopped/summary.json json)
string(JSON steps GET "${json}" train steps)
if(steps LESS 1 OR NOT steps LESS 1000000000 OR NOT output MATCHES "stopped by Ctrl-C after step ${steps} ")
  message(FATAL_ERROR "Ctrl-C: expected a run cut short, got ${steps} steps and:\n${output}")
endif()

file(WRITE ${SCRATCH}/short.txt "a few words\n")
file(WRITE ${SCRATCH}/empty.txt "")
string(ASCII 255 not_utf8)
file(WRITE ${SCRATCH}/bytes.txt "a ${not_utf8} byte\n")
demo_fails("missing.txt: cannot open" --corpus missing.txt)
demo_fails("empty.txt: is empty" --corpus empty.txt)
demo_fails("bytes.txt: expected UTF-8" --corpus bytes.txt)
demo_fails("short.txt: is too short" --corpus short.txt)
demo_fails("cannot create the folder 'short.txt/folder'" --out short.txt/folder)
file(MAKE_DIRECTORY ${SCRATCH}/taken/summary.json)
demo_fails("summary.json: cannot write" --out taken)
demo_fails("must fit into the context" --tokens 1000)
demo_fails("--prompt" --prompt "")
demo_fails("--help" --stepz 3)
demo_fails("--steps: Value 0 not in range" --steps 0)
demo_fails("--seconds" --seconds nan)
