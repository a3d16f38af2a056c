// expect: a sentence
int answer = 42;
