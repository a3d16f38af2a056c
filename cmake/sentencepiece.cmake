# moeskip::sentencepiece, for -DMOESKIP_SENTENCEPIECE=ON and find_package(moeskip COMPONENTS sentencepiece): the library
# with formats/tokenizer/sentence_piece.hpp, which needs libsentencepiece.
find_path(MOESKIP_SENTENCEPIECE_HEADERS sentencepiece_processor.h)
find_library(MOESKIP_SENTENCEPIECE_LIBRARY sentencepiece)
if(NOT MOESKIP_SENTENCEPIECE_HEADERS OR NOT MOESKIP_SENTENCEPIECE_LIBRARY)
  message(FATAL_ERROR "moeskip::sentencepiece needs libsentencepiece. On Debian or Ubuntu: "
                      "apt install libsentencepiece-dev.")
endif()
if(NOT TARGET moeskip::sentencepiece) # find_package may be called twice
  add_library(moeskip::sentencepiece INTERFACE IMPORTED GLOBAL)
  target_link_libraries(moeskip::sentencepiece INTERFACE moeskip::moeskip ${MOESKIP_SENTENCEPIECE_LIBRARY})
  target_include_directories(moeskip::sentencepiece SYSTEM INTERFACE ${MOESKIP_SENTENCEPIECE_HEADERS})
endif()
