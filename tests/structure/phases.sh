#!/bin/sh
# phases.sh <include>: every phase of the CUDA backend stands in a list of program.hpp. One that does not is no kernel anywhere, which
# otherwise only a link with nvcc would show.
folder=$1/moeskip/backend/cuda
status=0 found=0
for file in "$folder"/*.hpp; do
  case $file in */device.hpp | */emulator.hpp) continue ;; esac  # drivers have names, too
  for phase in $(sed -n 'N; s/^\(template <[^>]*> \)\{0,1\}struct \([a-z_]*\) {\n  static constexpr const char\* name .*/\2/p; D' "$file"); do
    found=$((found + 1))
    grep -q "phase::$phase\b" "$folder/program.hpp" && continue
    echo "phase::$phase is in no list of backend/cuda/program.hpp: add it to that of its kind"
    status=1
  done
done
[ $found -ge 40 ] || { echo "expected at least 40 phases, found $found: does this script still know how they look?"; status=1; }
exit $status
