// expect: a sentence that no compiler says
static_assert(sizeof(char) == 2, "another sentence");
