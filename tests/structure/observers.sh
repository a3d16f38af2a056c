#!/bin/sh
# observers.sh <program that only decodes> <program that also observes>
# Who does not observe does not pay: nothing of an observer is in a program that has none. The second program shows that the
# names are there to be found.
set -eu
observers='routing_observer|expert_observer|drop_observer|counted_session|counted_draft|stage_work'
found() { nm -C "$1" | grep -cE "$observers" || :; }

with=$(found "$2")
[ "$with" -gt 0 ] || { echo "$2: expected names of observers, found none: this test sees nothing"; exit 1; }
without=$(found "$1")
[ "$without" -eq 0 ] || { echo "$1: expected no observer, found $without of their names:"; nm -C "$1" | grep -E "$observers"; exit 1; }
nm -C "$1" | grep -q run_layer || nm -C "$1" | grep -q 'moeskip::' || { echo "$1: expected symbols, found none"; exit 1; }
