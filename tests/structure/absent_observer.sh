#!/bin/sh
# absent_observer.sh <object of absent_observer.cpp>
# Telling an observer that is not there is as much machine code as saying nothing; telling one that is there is more.
set -eu
size() { nm -S "$1" | awk -v name="$2" '$4 == name { print $2 }'; }

nothing=$(size "$1" says_nothing) nobody=$(size "$1" tells_nobody) somebody=$(size "$1" tells_somebody)
[ "$nothing" ] && [ "$nobody" ] && [ "$somebody" ] || { echo "$1: expected three functions"; nm -S "$1"; exit 1; }
[ "$nobody" = "$nothing" ] || { echo "an observer that is absent: expected 0x$nothing bytes, got 0x$nobody"; exit 1; }
[ "$somebody" != "$nothing" ] || { echo "an observer that is there: expected more than 0x$nothing bytes"; exit 1; }
