#!/bin/sh
# compiled.sh downstream|bench <sources> <build folder> <nvcc> <architectures> <option of CMake>...: what nvcc makes.
#   downstream   a user's project with a router, a mask of experts and an exit rule of its own
#   bench        what bench/gpu/run.sh builds
# Spilled registers are errors (MOESKIP_WERROR). Where there is a GPU the programs do what they are for, except for
# timings; where there is none they say so in one sentence. Exit status 77: there is no nvcc.
what=$1 sources=$2 build=$3 nvcc=$4 architectures=$5
shift 5
[ -x "$nvcc" ] || { echo "skipped: nvcc was not found"; exit 77; }

if [ "$what" = downstream ]; then
  set -- -S "$sources/tests/cuda/downstream" "-DMOESKIP=$sources" "$@"
  targets=generate
else
  set -- -S "$sources" -DMOESKIP_CUDA=ON -DMOESKIP_BUILD_TESTS=OFF -DMOESKIP_BUILD_EXAMPLES=OFF \
    -DMOESKIP_BUILD_BENCH=OFF -DMOESKIP_INSTALL=OFF "$@"
  targets='gpu_check gpu_time'
fi
cmake "$@" -B "$build" -DMOESKIP_WERROR=ON "-DCMAKE_CUDA_COMPILER=$nvcc" \
  "-DMOESKIP_CUDA_ARCHITECTURES=$architectures" || exit 1
# shellcheck disable=SC2086  # there are two
cmake --build "$build" --target $targets || exit 1

# says <program> <status without a GPU>: 0 if it has a GPU, 1 if it says that there is none. Else it has failed.
says() {
  said=$("$build/$1" 2>&1)
  status=$?
  echo "$said"
  case $status:$said in
    "$2:no CUDA device: expected a GPU of "*) return 1 ;;
    0:*) return 0 ;;
    *) echo "$1 ended with $status"; exit 1 ;;
  esac
}

if [ "$what" = downstream ]; then
  refusal=$(cmake --build "$build" --target refused 2>&1) && { echo 'host_only.cu was compiled'; exit 1; }
  case $refusal in
    *'calling a __host__ function("host_only::survivors('*) echo 'host_only.cu was refused' ;;
    *) echo "$refusal"; echo 'host_only.cu was refused for another reason'; exit 1 ;;
  esac
  says generate 0 || exit 0
  expected='generated 8 tokens on the GPU, the same by a loop on it; trained, with a loss that is plausible'
  [ "$said" = "$expected" ] && exit 0
  echo "generate: expected '$expected'"
  exit 1
fi
says bench/gpu/gpu_check 77 && exit 0
says bench/gpu/gpu_time 77 || exit 0
echo 'gpu_check found no GPU, and gpu_time did'
exit 1
