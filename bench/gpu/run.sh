#!/bin/sh
# bench/gpu/run.sh: builds, checks and times the CUDA backend, and its peers where python3 has PyTorch, and writes
# docs/gpu-results.md and docs/gpu-results.jsonl.
# Where there is no GPU it goes as far as it can and says what was not done. MOESKIP_CMAKE holds further options for CMake.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/cuda
results=$root/docs/gpu-results.md
lines=$root/docs/gpu-results.jsonl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

say() { echo "gpu: $*" >&2; }
row() { printf '| %s | %s |\n' "$1" "$2" >>"$work/table"; say "$1: $2"; }
# step <what> <seconds> <command...>: a row of the table: done, failed with its last line, or no GPU (status 77).
step() {
  what=$1 limit=$2
  shift 2
  timeout "$limit" "$@" >"$work/out" 2>&1
  status=$?
  last=$(tail -1 "$work/out")
  case $status in
    0) held=$(grep -c '^ok ' "$work/out") && row "$what" "done: $held checks held" || row "$what" done ;;
    77) row "$what" "**not done**: $last" ;;
    124) row "$what" "**failed**: not finished after $limit seconds"; failures=$((failures + 1)) ;;
    *) row "$what" "**failed**: $(grep -m 1 -i -e failed -e error "$work/out" || echo "$last")"; failures=$((failures + 1)) ;;
  esac
  cat "$work/out" >>"$work/log"
  return "$status"
}

: >"$work/lines"
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || nvcc=
card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1) || card=
if [ "$card" ]; then # kernels for it alone: half the time to build
  architectures=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)-real
else
  card='no GPU' architectures='80-real;90-real;90a-real'
fi

if [ -z "$nvcc" ]; then
  row build '**not done**: nvcc was not found'
else
  build() {
    # shellcheck disable=SC2086  # several options may stand in it
    (cd "$root" && cmake --preset cuda -DMOESKIP_WERROR=ON -DMOESKIP_BUILD_TESTS=OFF -DMOESKIP_BUILD_EXAMPLES=OFF \
      "-DMOESKIP_CUDA_ARCHITECTURES=$architectures" ${MOESKIP_CMAKE:-}) && cmake --build "$build" --target gpu_check gpu_time
  }
  if build >"$work/build" 2>&1; then
    row "build for $(echo "sm_$architectures" | sed 's/-real//g; s/;/, sm_/g'), spilled registers are errors" 'done'
    step 'every op against double, in f32, bf16 and on tensor cores; rows keep their bits; tokens; ten training steps' 500 \
      "$build/bench/gpu/gpu_check"
    for tool in memcheck racecheck; do
      if ! command -v compute-sanitizer >/dev/null 2>&1; then
        row "compute-sanitizer $tool" '**not done**: compute-sanitizer was not found'
      else
        step "compute-sanitizer $tool" 550 compute-sanitizer --tool "$tool" --error-exitcode 1 \
          "$build/bench/gpu/gpu_check" ops
      fi
    done
    if [ "$failures" -eq 0 ]; then
      if step 'timings' 580 "$build/bench/gpu/gpu_time" --json "$work/lines" \
        --model "$root/examples/models/all_moe.safetensors" --text "$root/docs/design.md"; then cp "$work/out" "$work/times"; fi
    else
      row timings '**not done**: what is wrong is not timed'
    fi
  else
    row build "**failed**: $(grep -m 1 -e 'undefined reference' -e error -e Error "$work/build")"
    cat "$work/build" >>"$work/log"
    failures=$((failures + 1))
  fi
fi

# Peers: what one prints before it fails counts, too.
python3 -c 'import torch' >/dev/null 2>&1 && torch=yes || torch=no
for peer in limits transformers_olmoe triton_decode torch_training; do
  if [ "$torch" = no ]; then
    row "peer $peer" '**not done**: no python3 with torch was found'
    continue
  fi
  step "peer $peer" 180 python3 -B "$root/bench/gpu/peers/$peer.py"
  grep '^{"what": ' "$work/out" >"$work/peer" || continue
  cat "$work/peer" >>"$work/lines"
  awk -F'"' '{ gsub(/[:, ]/, "", $7); printf "%-72s %12.4g %s\n", $4, $7, $10 }' "$work/peer" >>"$work/times"
done

date=$(date -u +%Y-%m-%d)
commit=$(cd "$root" && git rev-parse --short HEAD 2>/dev/null) || commit=unknown
{
  echo '# The CUDA backend on a GPU'
  echo
  echo "Written by bench/gpu/run.sh on $date, commit $commit: $card, $("${nvcc:-false}" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p')."
  echo
  echo '| step | result |'
  echo '|---|---|'
  cat "$work/table"
  if [ -e "$work/times" ]; then
    printf '\n```\n'
    cat "$work/times"
    printf '```\n'
  fi
} >"$results"
sed "s/^{/{\"date\": \"$date\", \"commit\": \"$commit\", \"gpu\": \"$card\", /" "$work/lines" >"$lines"
[ -s "$lines" ] || rm -f "$lines"
[ "$failures" -eq 0 ] || { cat "$work/log" >&2; exit 1; }
