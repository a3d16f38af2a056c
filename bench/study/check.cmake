#Runs every recipe of the study on tiny settings, and looks at what it leaves.
string(REPEAT "the quick brown fox jumps over the lazy dog, and then once more. " 100 text)
    set(folder ${CMAKE_CURRENT_BINARY_DIR} / study - check) file(REMOVE_RECURSE ${folder}) file(WRITE ${folder} / text
                                                                                                "${text}")

        execute_process(COMMAND $ { STUDY } --help OUTPUT_VARIABLE help)
            string(REGEX MATCH "Recipes: ([^\n]*)" line "${help}") string(REPLACE
                                                                          " "
                                                                          ";" recipes "${CMAKE_MATCH_1}")
                list(LENGTH recipes count) if (count LESS 16) message(FATAL_ERROR
                                                                      "only ${count} recipes: ${recipes}") endif()
                    execute_process(COMMAND ${STUDY} $ { recipes } --tiny-- corpus ${folder} / text-- valid ${folder} /
                                    text-- other ${folder} / text-- out ${folder} /
                                    out RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output) if (status)
                        message(FATAL_ERROR "${output}") endif() foreach (recipe IN LISTS recipes)
                            foreach (ending jsonl run safetensors json) if (NOT EXISTS ${folder} / out / ${recipe} -
                                                                            1. ${ending})
                                message(FATAL_ERROR "no ${recipe}-1.${ending}") endif() endforeach()
                                    file(READ ${folder} / out / ${recipe} - 1.json results)
                                        string(JSON layers GET "${results}" config sizes.layers) foreach (exit 2 ${
                                            layers}) string(JSON bits GET "${results}" valid bits_per_byte ${
                                            exit}) if (NOT bits GREATER 3 OR NOT bits LESS 12)
                                            message(FATAL_ERROR "${recipe}: ${bits} bits per byte after ${exit} layers")
                                                endif() endforeach() endforeach()
                                                    execute_process(COMMAND ${STUDY} nonsense-- corpus ${folder} /
                                                                    text-- valid ${folder} /
                                                                    text RESULT_VARIABLE status ERROR_VARIABLE
                                                                        output) if (NOT status OR NOT output MATCHES
                                                                                    "no recipe is called nonsense")
                                                        message(FATAL_ERROR "nonsense was taken: ${output}") endif()
