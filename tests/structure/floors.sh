#!/bin/sh
# floors.sh <include folder>: every include arrow goes down, rooms on one floor do not see each other, there is no
# cycle, Eigen and xsimd stay under backend/cpu/, and libsentencepiece in its tokenizer. Prints each violation; exit status 1 if there is any.
cd "$1" || exit 1
find moeskip -name '*.hpp' -o -name '*.cuh' | sort | xargs awk '
BEGIN {
  # Rooms from the ground up; those on one line share a floor.
  floor["base"] = 0
  floor["tensor"] = floor["formats"] = 1
  floor["concepts"] = 2
  floor["memory"] = floor["ops"] = 3
  floor["backend"] = floor["parts"] = 4
  floor["model"] = 5
  floor["decode"] = floor["train"] = 6
  floor["eval"] = 7
  # Files beside the rooms: umbrellas see everything, fwd.hpp sees base/, version.hpp nothing; all see those two.
  umbrella["moeskip.hpp"] = umbrella["cuda.hpp"] = umbrella["cuda.cuh"] = 1
  ground["version.hpp"] = ground["fwd.hpp"] = 1
}

function complain(line, why) { print FILENAME ":" line ": " why; bad = 1 }

FNR == 1 {
  known[FILENAME] = 1
  split(FILENAME, part, "/")
  room = part[2]
  if (!(room in floor || room in umbrella || room in ground))
    complain(1, room " is neither a room nor a file that may stand beside the rooms")
}

/^[ \t]*#[ \t]*include/ {
  target = $0
  sub(/^[^<"]*[<"]/, "", target)
  sub(/[>"].*$/, "", target)
  if (target ~ /^(unsupported\/)?(Eigen|xsimd)\// && FILENAME !~ /^moeskip\/backend\/cpu\//)
    complain(FNR, "only backend/cpu/ may include " target)
  if (target ~ /^sentencepiece/ && FILENAME != "moeskip/formats/tokenizer/sentence_piece.hpp")
    complain(FNR, "only formats/tokenizer/sentence_piece.hpp may include " target)
  if (target !~ /^moeskip\//) {
    if ($0 ~ /include[ \t]*"/) complain(FNR, "write the path from the include folder, \"moeskip/...\": " target)
    next
  }
  arrows[FILENAME] = arrows[FILENAME] " " target
  where[FILENAME, target] = FILENAME ":" FNR

  split(target, part, "/")
  seen = part[2]
  if (room in umbrella || room == seen) next
  else if (seen in umbrella) complain(FNR, "only umbrellas may include an umbrella: " target)
  else if (room == "version.hpp" || (room == "fwd.hpp" && seen != "base"))
    complain(FNR, room " may not include " target)
  else if (!(seen in floor) || !(room in floor)) next
  else if (floor[seen] == floor[room])
    complain(FNR, room "/ and " seen "/ share a floor and may not see each other: " target)
  else if (floor[seen] > floor[room])
    complain(FNR, room "/ (floor " floor[room] ") may not include upwards: " target " (floor " floor[seen] ")")
}

# Depth first. state: 1 on the path that led here, 2 done.
function visit(file, path,   target, n, i) {
  state[file] = 1
  n = split(arrows[file], target, " ")
  for (i = 1; i <= n; ++i) {
    if (!(target[i] in known)) { print where[file, target[i]] ": no such header: " target[i]; bad = 1 }
    else if (state[target[i]] == 1) { print where[file, target[i]] ": include cycle:" path " " target[i]; bad = 1 }
    else if (state[target[i]] != 2) visit(target[i], path " " target[i])
  }
  state[file] = 2
}
END {
  if (!FNR) { print "no headers found"; exit 1 }
  for (file in known) if (state[file] != 2) visit(file, " " file)
  exit bad
}'
