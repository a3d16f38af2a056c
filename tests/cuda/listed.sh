#!/bin/sh
# listed.sh <include folder>: every phase of the CUDA backend stands in backend/cuda/program.hpp, or a program that needs its
# kernel does not link.
cd "$1/moeskip/backend/cuda" || exit 1
missing=0 phases=0
for phase in $(sed -n 's/.*static constexpr const char\* name = "\([a-z_]*\)";.*/\1/p' ./*.hpp | sort -u); do
  case $phase in cuda|emulated_cuda) continue ;; esac # drivers
  phases=$((phases + 1))
  grep -q "phase::$phase\b" program.hpp || { echo "not listed: $phase"; missing=1; }
done
echo "$phases phases"
[ $phases -gt 30 ] && [ $missing -eq 0 ]
