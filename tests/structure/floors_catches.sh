#!/bin/sh
# floors_catches.sh <include folder> <scratch folder>: floors.sh must accept the tree as it is, and refuse a copy of it
# in which one violation has been planted, with a message that names the fault.
checker=$(dirname "$0")/floors.sh
include=$1 scratch=$2 failures=0

plant() {  # plant <file> <line>: adds the line to the end of the (perhaps new) header
  mkdir -p "$(dirname "$scratch/moeskip/$1")"
  printf '%s\n' "$2" >> "$scratch/moeskip/$1"
}
fresh() {
  rm -rf "$scratch" && mkdir -p "$scratch" && cp -R "$include/moeskip" "$scratch/" || exit 1
  for room in base tensor formats concepts memory ops backend parts model decode train eval; do
    plant $room/planted.hpp '#pragma once'
  done
  [ -e "$scratch/moeskip/fwd.hpp" ] || plant fwd.hpp '#pragma once'
}
expect() {  # expect <text>: the checker refuses the tree, and its report contains the text
  if report=$(sh "$checker" "$scratch"); then
    echo "NOT CAUGHT: $1"; failures=$((failures + 1))
  elif ! printf '%s\n' "$report" | grep -qF -- "$1"; then
    printf 'expected: %s\ngot: %s\n' "$1" "$report"; failures=$((failures + 1))
  fi
  fresh
}

fresh
plant model/planted.hpp '#include "moeskip/fwd.hpp"'
plant model/planted.hpp '  #  include <moeskip/base/planted.hpp>'
plant model/planted.hpp '// #include "moeskip/eval/planted.hpp"'
sh "$checker" "$scratch" || { echo "the tree with harmless additions must pass"; failures=$((failures + 1)); }

fresh
plant base/planted.hpp '#include "moeskip/tensor/planted.hpp"'
expect 'moeskip/base/planted.hpp:2: base/ (floor 0) may not include upwards: moeskip/tensor/planted.hpp (floor 1)'
plant train/planted.hpp '#include "moeskip/eval/planted.hpp"'
expect 'train/ (floor 6) may not include upwards'
for pair in 'parts backend' 'backend parts' 'tensor formats' 'formats tensor' 'memory ops' 'ops memory' \
            'decode train' 'train decode'; do
  plant "${pair% *}/planted.hpp" "  # include <moeskip/${pair#* }/planted.hpp>"
  expect "${pair% *}/ and ${pair#* }/ share a floor and may not see each other"
done
plant fwd.hpp '#include "moeskip/tensor/planted.hpp"'
expect 'fwd.hpp may not include moeskip/tensor/planted.hpp'
plant version.hpp '#include "moeskip/base/planted.hpp"'
expect 'version.hpp may not include moeskip/base/planted.hpp'
plant eval/planted.hpp '#include "moeskip/moeskip.hpp"'
expect 'only umbrellas may include an umbrella'
plant model/planted.hpp '#include "moeskip/base/absent.hpp"'
expect 'no such header: moeskip/base/absent.hpp'
plant model/planted.hpp '#include "config.hpp"'
expect 'write the path from the include folder'
plant lobby/planted.hpp '#pragma once'
expect 'lobby is neither a room nor a file that may stand beside the rooms'
plant parts/planted.hpp '#include <Eigen/Core>'
expect 'only backend/cpu/ may include Eigen/Core'
plant ops/planted.hpp '#include <xsimd/xsimd.hpp>'
expect 'only backend/cpu/ may include xsimd/xsimd.hpp'

plant model/one.hpp '#include "moeskip/model/one.hpp"'
expect 'include cycle: moeskip/model/one.hpp moeskip/model/one.hpp'
plant model/one.hpp '#include "moeskip/model/two.hpp"'
plant model/two.hpp '#include "moeskip/model/three.hpp"'
plant model/three.hpp '#include "moeskip/model/one.hpp"'
expect 'include cycle:'
plant fwd.hpp '#include "moeskip/base/planted.hpp"'
plant base/planted.hpp '#include "moeskip/fwd.hpp"'
expect 'include cycle:'

rm -rf "$scratch"
echo "$failures failures"
[ $failures -eq 0 ]
