# cmake -D PROGRAM=<bench_compare> -D MODELS=<writes models> -D SCRATCH=<folder> -P check.cmake
# The comparison on very small untrained models: every row is there, lossless ones say the same, and how it fails.
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})
execute_process(COMMAND ${MODELS} WORKING_DIRECTORY ${SCRATCH} COMMAND_ERROR_IS_FATAL ANY)
string(REPEAT "The quick brown fox jumps over the lazy dog, and so on.\n" 40 text)
file(WRITE ${SCRATCH}/text.txt "${text}")

# With the folder's own models, and with those that are named.
set(all_moe --models .)
set(every_4th --model every_4th.safetensors --baseline two_experts.safetensors --draft draft.safetensors)
foreach(model IN ITEMS all_moe every_4th)
  execute_process(COMMAND ${PROGRAM} ${${model}} --prompts 2 --text text.txt --json ${model}.json
                  WORKING_DIRECTORY ${SCRATCH} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  file(STRINGS ${SCRATCH}/${model}.json lines)
  foreach(row IN ITEMS baseline baseline_fewer_experts plain early_exit early_exit_exact self self_fixed lookup
                       lookup_or_self small_model sampled_self_fixed sampled_typical)
    foreach(figure IN ITEMS bits_per_byte tokens_per_second speedup layers_per_token experts_per_token bytes_per_token
                            flop_per_token same_text)
      set(found "")
      foreach(line IN LISTS lines)
        string(JSON name GET "${line}" name)
        if(name STREQUAL "compare.${row}.${figure}")
          string(JSON found GET "${line}" value)
        endif()
      endforeach()
      if(figure STREQUAL same_text AND row MATCHES "^(baseline|plain|sampled_.*)$") # nothing that it could be like
        if(NOT found STREQUAL "")
          message(FATAL_ERROR "${model}: ${row}: same_text: expected none, got '${found}'")
        endif()
        continue()
      endif()
      if(NOT found MATCHES "^[0-9.e+-]+$")
        message(FATAL_ERROR "${model}: ${row}: ${figure}: expected a number, got '${found}'")
      endif()
      if(figure STREQUAL same_text AND row MATCHES "fewer|self|lookup|small" AND NOT found EQUAL 1)
        message(FATAL_ERROR "${model}: ${row}: expected the text of plain decoding, got ${found} of it")
      endif()
      set(${model}.${row}.${figure} ${found})
    endforeach()
  endforeach()
  if(NOT output MATCHES "baseline MoE +[0-9.]+ +[0-9]+ " OR NOT output MATCHES "small model drafts +[0-9.]+ ")
    message(FATAL_ERROR "${model}: expected a table, got:\n${output}")
  endif()
  # Lossless rows have plain decoding's bits; a lossy one has its own.
  if(NOT ${model}.sampled_self_fixed.bits_per_byte EQUAL ${model}.plain.bits_per_byte OR
     ${model}.sampled_typical.bits_per_byte EQUAL ${model}.plain.bits_per_byte)
    message(FATAL_ERROR "${model}: bits: plain ${${model}.plain.bits_per_byte}, "
                        "drawn ${${model}.sampled_self_fixed.bits_per_byte}, "
                        "typical ${${model}.sampled_typical.bits_per_byte}")
  endif()
endforeach()

# A baseline that was not asked for has to be as large as the model; none is a choice, too.
execute_process(COMMAND ${PROGRAM} --models . --model every_4th.safetensors --draft none --prompts 1 --text text.txt
                WORKING_DIRECTORY ${SCRATCH} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
if(NOT output MATCHES "baseline +none: all_moe_baseline.safetensors is not as large" OR output MATCHES "baseline MoE" OR
   output MATCHES "small model drafts")
  message(FATAL_ERROR "every_4th: expected neither baseline nor draft, got:\n${output}")
endif()

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
fails("--threshold: expected a number from 0 to 2, got 'x'" --models . --threshold x)
fails("expected at least" --models . --text text.txt --prompts 100000)
file(MAKE_DIRECTORY ${SCRATCH}/alone)
fails("alone/all_moe.safetensors: is not there: give another with --model FILE" --models alone)
file(COPY ${SCRATCH}/all_moe.safetensors DESTINATION ${SCRATCH}/alone)
fails("alone/draft.safetensors: is not there: give another with --draft FILE, or compare without it: --draft none"
      --models alone)
file(COPY ${SCRATCH}/draft.safetensors DESTINATION ${SCRATCH}/alone)
fails("alone/all_moe_baseline.safetensors: is not there: give another with --baseline FILE, or .*: --baseline none"
      --models alone)
