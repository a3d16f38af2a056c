// SentencePiece tokenizers for check_tokenizers.py.
//   g++ -std=c++20 -O2 -march=native -Iinclude tests/golden/encode_pieces.cpp -o encode_pieces -lsentencepiece
#include "encode_texts.hpp"

#include "moeskip/formats/tokenizer/sentence_piece.hpp"

int main(int argc, char** argv) { return tests::encode_texts<moeskip::tokenizer::sentence_piece>(argc, argv); }
