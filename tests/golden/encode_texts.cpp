// Byte-level tokenizers for check_tokenizers.py.
//   g++ -std=c++20 -O2 -march=native -Iinclude tests/golden/encode_texts.cpp -o encode_texts
#include "encode_texts.hpp"

#include "moeskip/formats/tokenizer/byte_level.hpp"

int main(int argc, char** argv) { return tests::encode_texts<moeskip::tokenizer::byte_level>(argc, argv); }
