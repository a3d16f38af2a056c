# cmake -D PROGRAM=<example> -D SCRATCH=<folder> [-D INPUT=<its argument>] -P run_tiny.cmake
# The folder is emptied first, so that nothing an earlier run left behind can help this one.
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})
execute_process(COMMAND ${PROGRAM} --tiny ${INPUT} WORKING_DIRECTORY ${SCRATCH} COMMAND_ERROR_IS_FATAL ANY)
