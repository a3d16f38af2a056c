#!/bin/sh
# bench/gpu/run.sh [STAGE...]: builds, checks and times the CUDA backend, and its peers where python3 has PyTorch.
#   build | check | memcheck | racecheck       memcheck and racecheck by compute-sanitizer
#   time:decode | time:prefill | time:train | time:skip
#   peer:limits | peer:transformers | peer:triton | peer:training
#   report        puts docs/gpu-results.md and docs/gpu-results.jsonl together from all logs
#   all           all of these, in this order; so does no argument
#   dependencies  fetches headers for a machine without a network, see below
# Each stage has a limit under 9 minutes of its own and is logged as it runs, in build/gpu-results (MOESKIP_GPU_RESULTS
# names another folder): a stage that is stopped loses only itself, and stages may be run by many commands. Of each
# stage the last run counts. What there is no GPU, compiler or package for is said to be not done.
#
# Where commands are short and only some files come back: OUT=<folder> gets a copy of the log as it grows and of the
# report. Put the logs into build/gpu-results elsewhere, and `run.sh report` makes one report of them.
#
# A machine without a network: the build needs a C++20 compiler, nvcc, CMake 3.25, Ninja and the headers of xsimd and
# nlohmann-json. Where their packages are not installed, `run.sh dependencies` on another machine fills
# build/gpu-dependencies (3 MB), which the build takes if it is there; take it along.
#
# Further settings:
#   MOESKIP_COMMIT               what is measured, where there is no .git
#   MOESKIP_CUDA_ARCHITECTURES   by default those of the card, without one all that CI builds
#   MOESKIP_BUILD_SECONDS        limit of compiling, 410; a build goes on where it was stopped
#   MOESKIP_CMAKE                more options for CMake, such as -DFETCHCONTENT_SOURCE_DIR_XSIMD=<folder>
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/cuda
results=${MOESKIP_GPU_RESULTS:-$root/build/gpu-results}
dependencies=$root/build/gpu-dependencies
everything='build check memcheck racecheck time:decode time:prefill time:train time:skip'
everything="$everything peer:limits peer:transformers peer:triton peer:training report"
failures=0

say() { echo "gpu: $*" >&2; }
[ $# -gt 0 ] || set -- all
for asked in "$@"; do
  case " $everything all dependencies " in
    *" $asked "*) ;;
    *) say "unknown stage $asked; expected some of: $everything all dependencies"; exit 2 ;;
  esac
done

mkdir -p "$results" || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$results/$(date -u +%Y%m%dT%H%M%S)-$$.log
copy=/dev/null
[ -z "${OUT:-}" ] || { mkdir -p "$OUT" && copy=$OUT/$(basename "$log"); }

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || nvcc=
toolkit=$("${nvcc:-false}" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p')
card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1 | tr -d '"\\|') || card=
commit=${MOESKIP_COMMIT:-$(cd "$root" && git rev-parse --short HEAD 2>/dev/null)} || commit=
[ "${MOESKIP_COMMIT:-}" ] || (cd "$root" && git diff --quiet HEAD -- . ':!docs' 2>/dev/null) ||
  [ -z "$commit" ] || commit="$commit with changes"
if [ "${MOESKIP_CUDA_ARCHITECTURES:-}" ]; then architectures=$MOESKIP_CUDA_ARCHITECTURES
elif [ "$card" ]; then # kernels for it alone: a third of the time to build
  architectures=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)-real
else architectures='80-real;90-real;90a-real'
fi

note() { echo "$*" | tee -a "$log" >>"$copy"; }
not_done() { echo "$*"; return 77; }
limited() { timeout -k 5 "$@"; }

# stage <name> <command...>: logs what it says while it says it, between two lines that the report looks for.
stage() {
  name=$1
  shift
  began=$(date +%s)
  say "$name ..."
  note "== begin | $name | $(date -u +%Y-%m-%dT%H:%MZ) | ${commit:-unknown} | ${card:-no GPU} | ${toolkit:-no nvcc}"
  { "$@"; echo $? >"$work/status"; } 2>&1 | tee "$work/out" | tee -a "$log" >>"$copy"
  status=$(cat "$work/status")
  seconds=$(($(date +%s) - began))
  note "== end | $name | $status | $seconds"
  case $status in
    0) say "$name: done in $seconds s" ;;
    77) say "$name: not done: $(tail -n 1 "$work/out")" ;;
    *) say "$name: FAILED with status $status after $seconds s; the end of $log:"
      tail -n 15 "$work/out" >&2
      failures=$((failures + 1)) ;;
  esac
}

configure_and_build() {
  echo "kernels for $architectures; none may spill registers"
  set --
  for package in xsimd nlohmann_json; do
    [ ! -d "$dependencies/$package" ] ||
      set -- "$@" "-DFETCHCONTENT_SOURCE_DIR_$(echo "$package" | tr '[:lower:]' '[:upper:]')=$dependencies/$package"
  done
  # shellcheck disable=SC2086  # several options may stand in it
  (cd "$root" && limited 120 cmake --preset cuda -DMOESKIP_WERROR=ON -DMOESKIP_BUILD_TESTS=OFF \
    -DMOESKIP_BUILD_EXAMPLES=OFF "-DMOESKIP_CUDA_ARCHITECTURES=$architectures" "$@" ${MOESKIP_CMAKE:-}) &&
    limited "${MOESKIP_BUILD_SECONDS:-410}" cmake --build "$build" --target gpu_check gpu_time -- -k 0
}

# program <name> <seconds> <arguments...>: one that was built, started by what $by names.
by=
program() {
  path=$build/bench/gpu/$1 limit=$2
  shift 2
  [ -x "$path" ] || { not_done "$(basename "$path") is not built"; return; }
  # shellcheck disable=SC2086  # a command and its arguments
  limited "$limit" $by "$path" "$@"
}
check() {
  ! command -v stdbuf >/dev/null 2>&1 || by='stdbuf -oL' # a line leaves as soon as it is written
  program gpu_check 530
}
sanitize() {
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) ||
    { not_done 'compute-sanitizer was not found'; return; }
  by="$tool --tool $1 --error-exitcode 1"
  program gpu_check 530 ops
}
peer() {
  python3 -c 'import torch' >/dev/null 2>&1 || { not_done 'no python3 with torch was found'; return; }
  limited 530 python3 -B -u "$root/bench/gpu/peers/$1.py"
}

# Sources of the pinned tags, of which only headers are kept; else what the system has.
fetch_dependencies() {
  at=$root/build/gpu-dependencies-fetched
  cmake -S "$root" -B "$at" -DFETCHCONTENT_TRY_FIND_PACKAGE_MODE=NEVER -DMOESKIP_BUILD_TESTS=OFF \
    -DMOESKIP_BUILD_EXAMPLES=OFF -DMOESKIP_BUILD_BENCH=OFF >"$work/fetch" 2>&1 || tail -n 3 "$work/fetch" >&2
  for package in xsimd nlohmann_json; do
    folder=${package%_json}
    from=$at/_deps/$package-src/include
    [ -d "$from/$folder" ] || from=/usr/include
    [ -d "$from/$folder" ] || { say "$package: neither fetched nor in /usr/include"; exit 1; }
    rm -rf "${dependencies:?}/$package"
    mkdir -p "$dependencies/$package/include" && cp -R "$from/$folder" "$dependencies/$package/include/" || exit 1
    say "$package: $dependencies/$package, from $from"
  done
}

report() {
  to=$root/docs/gpu-results
  ls "$results"/*.log >"$work/logs" 2>/dev/null # by time
  [ -s "$work/logs" ] || { say "report: no logs in $results"; failures=$((failures + 1)); return; }
  # A log that was cut off may end within a line.
  while read -r each; do cat "$each" && echo; done <"$work/logs" |
    awk -v md="$work/report.md" -v jsonl="$work/report.jsonl" -f "$root/bench/gpu/report.awk" ||
    { say 'report: FAILED'; failures=$((failures + 1)); return; }
  rm -f "$to.jsonl"
  for kind in md jsonl; do
    [ -s "$work/report.$kind" ] || continue
    cp "$work/report.$kind" "$to.$kind"
    [ -z "${OUT:-}" ] || cp "$to.$kind" "$OUT/"
  done
  awk '/^## (time|peer)/ { exit } { print }' "$to.md" # but for the long lists
  say "report: $to.md"
}

run() {
  case $1 in
    all) for each in $everything; do run "$each"; done ;;
    dependencies) fetch_dependencies ;;
    build) if [ "$nvcc" ]; then stage build configure_and_build; else stage build not_done 'nvcc was not found'; fi ;;
    check) stage check check ;;
    memcheck | racecheck) stage "$1" sanitize "$1" ;;
    time:decode) stage "$1" program gpu_time 530 limits laws loops kernels graphs ;;
    time:prefill) stage "$1" program gpu_time 300 limits prefill ;;
    time:train) stage "$1" program gpu_time 300 limits train ;;
    time:skip) stage "$1" program gpu_time 300 skip --model "$root/examples/models/all_moe.safetensors" \
      --text "$root/docs/design.md" ;;
    peer:limits) stage "$1" peer limits ;;
    peer:transformers) stage "$1" peer transformers_olmoe ;;
    peer:triton) stage "$1" peer triton_decode ;;
    peer:training) stage "$1" peer torch_training ;;
    report) report ;;
  esac
}
for asked in "$@"; do run "$asked"; done
[ "$failures" -eq 0 ]
