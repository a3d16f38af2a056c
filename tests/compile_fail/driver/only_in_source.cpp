// expect: a sentence that only the source shows
int answer = "a sentence that only the source shows";
