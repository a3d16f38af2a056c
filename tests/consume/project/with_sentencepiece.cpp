#include <moeskip/formats/tokenizer/sentence_piece.hpp>

int main(int argc, char** argv) { return argc > 1 ? moeskip::tokenizer::sentence_piece(argv[1]).vocab() : 0; }
