# cmake -D PROGRAM=<bench_compare> -D MODELS=<writes models> -D SCRATCH=<folder> -P check.cmake
# The comparison on very small untrained models: every row is there, lossless ones say the same, and how it fails.
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})
execute_process(COMMAND ${MODELS} WORKING_DIRECTORY ${SCRATCH} COMMAND_ERROR_IS_FATAL ANY)
string(REPEAT "The quick brown fox jumps over the lazy dog, and so on.\n" 40 text)
file(WRITE ${SCRATCH}/text.txt "${text}")

foreach(model IN ITEMS all_moe every_4th)
  execute_process(COMMAND ${PROGRAM} --model ${model}.safetensors --baseline two_experts.safetensors --prompts 2
                          --draft draft.safetensors --text text.txt --json ${model}.json
                  WORKING_DIRECTORY ${SCRATCH} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  file(STRINGS ${SCRATCH}/${model}.json lines)
  foreach(row IN ITEMS baseline plain early_exit early_exit_exact self self_fixed lookup lookup_or_self small_model)
    foreach(figure IN ITEMS bits_per_byte tokens_per_second speedup layers_per_token experts_per_token bytes_per_token
                            flop_per_token same_text)
      set(found "")
      foreach(line IN LISTS lines)
        string(JSON name GET "${line}" name)
        if(name STREQUAL "compare.${row}.${figure}")
          string(JSON found GET "${line}" value)
        endif()
      endforeach()
      if(NOT found MATCHES "^[0-9.e+-]+$")
        message(FATAL_ERROR "${model}: ${row}: ${figure}: expected a number, got '${found}'")
      endif()
      if(figure STREQUAL same_text AND row MATCHES "plain|self|lookup|small" AND NOT found EQUAL 1)
        message(FATAL_ERROR "${model}: ${row}: expected the text of plain decoding, got ${found} of it")
      endif()
    endforeach()
  endforeach()
  if(NOT output MATCHES "baseline MoE +[0-9.]+ +[0-9]+ " OR NOT output MATCHES "small model drafts +[0-9.]+ ")
    message(FATAL_ERROR "${model}: expected a table, got:\n${output}")
  endif()
endforeach()

function(fails expected) # fails(<regex> <arguments...>): one line on stderr, status 1
  execute_process(COMMAND ${PROGRAM} ${ARGN} WORKING_DIRECTORY ${SCRATCH} RESULT_VARIABLE status OUTPUT_QUIET
                  ERROR_VARIABLE errors)
  if(NOT status EQUAL 1 OR NOT errors MATCHES "^bench: [^\n]*${expected}[^\n]*\n$")
    message(FATAL_ERROR "compare ${ARGN}: expected '${expected}', got ${status} and:\n${errors}")
  endif()
endfunction()
fails("no such option: --fast" --fast 1)
fails("--model wants a value" --model)
fails("missing.safetensors: cannot open" --model missing.safetensors)
fails("--threshold: expected a number from 0 to 2, got 'x'" --model all_moe.safetensors --threshold x)
fails("expected at least" --model all_moe.safetensors --text text.txt --prompts 100000)
