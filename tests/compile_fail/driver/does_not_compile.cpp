// expect-ok
int answer = forty_two;
