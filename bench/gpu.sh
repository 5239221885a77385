#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that is measured on a machine with a GPU: bench/gpu.sh [STEP...]
#   build    the library, the program, libmoe_cuda.so and the peers' glue, into $BUILD
#   machine  what the machine is: $RESULTS/machine.txt
#   check    moe check --device cuda
#   ledger   the same, recorded in $LEDGER
#   bench    moe bench over the table below: $RESULTS/cuda-SHAPE-FORMAT.json
#   peers    PyTorch and transformers on the same card, where Python has torch: $RESULTS/peers.json
# Without a step: all of them in this order. Each prints its budget of seconds; bench and peers leave out
# what no longer fits into theirs and say so. A step that fails ends the script with its exit code.
# $ONLY, a regular expression, chooses rows of the table ("qwen3.* bf16").
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
RESULTS=${RESULTS:-bench/results}
LEDGER=${LEDGER:-tests/ledger}
ONLY=${ONLY:-.}
TOKENS=${TOKENS:-1,8,32,128,512,2048,8192}
moe=$BUILD/moe

# Shape, weight format and what else moe bench is told. Formats of blocks of fp8 quantise activations per 128, too.
table="
gpt-oss-20b bf16 --error
gpt-oss-20b mxfp4 --error
gpt-oss-120b bf16
gpt-oss-120b mxfp4
qwen3-30b-a3b bf16
qwen3-30b-a3b e4m3fn_block --error
mixtral-8x7b bf16
mixtral-8x7b e4m3fn_block
deepseek-v3-ep8 e4m3fn_block
deepseek-v3 e4m3fn_block
2688,1856,128,6 bf16
2688,1856,128,6 e4m3fn_block
4096,1408,60,4 bf16
4096,1408,60,4 e4m3fn_block
5120,8192,16,1 bf16
5120,8192,16,1 e4m3fn_block
2048,512,512,10 bf16
2048,512,512,10 e4m3fn_block
"
routing="gpt-oss-120b qwen3-30b-a3b mixtral-8x7b deepseek-v3 2048,512,512,10"
peers="gpt-oss-20b gpt-oss-120b qwen3-30b-a3b mixtral-8x7b deepseek-v3-ep8 2688,1856,128,6 4096,1408,60,4 5120,8192,16,1
       2048,512,512,10"

step_build() {
    local commit=${MOE_COMMIT:-$(git rev-parse --short=12 HEAD 2> /dev/null || true)}
    cmake -B "$BUILD" -DCMAKE_BUILD_TYPE=Release -DMOE_TESTS=OFF -DMOE_COMMIT="$commit" > /dev/null
    cmake --build "$BUILD" -j "$(nproc)"
    nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC -arch=sm_90a -o "$BUILD/libglue.so" bench/glue.cu
}

step_machine() {
    {
        nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total --format=csv
        nvidia-smi --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv
        nvcc --version | tail -n 2 || true
        lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core|Socket|L2|L3|NUMA node\(s\))'
        grep MemTotal /proc/meminfo
        uname -sr
        "$moe" info
    } | tee "$RESULTS/machine.txt"
}

step_check() {
    "$moe" check --device cuda
}

step_ledger() {
    "$moe" check --device cuda --ledger "$LEDGER"
}

run_bench() { # name of the file, arguments; what the device does not support is no failure
    "$moe" bench --device cuda "${@:2}" --tokens "$TOKENS" --json "$RESULTS/cuda-${1//,/x}.json" || [ $? = 3 ]
}

left_out() { # of which step, what
    echo "$1: $2 is left out, the budget of $budget s is spent"
}

step_bench() {
    local shape format more
    while read -r shape format more; do
        [[ -n $shape && "$shape $format" =~ $ONLY ]] || continue
        if ((SECONDS > budget)); then
            left_out bench "$shape $format"
            continue
        fi
        # shellcheck disable=SC2086
        run_bench "$shape-$format" --shape "$shape" --format "$format" $more
    done <<< "$table"
    for shape in $routing; do
        [[ "$shape routing" =~ $ONLY ]] || continue
        if ((SECONDS > budget)); then
            left_out bench "$shape routing"
            continue
        fi
        run_bench "$shape-routing" --shape "$shape" --routing-only
    done
}

step_peers() {
    if ! python3 -c 'import torch' 2> /dev/null; then
        echo "peers: python3 has no torch; left out"
        return
    fi
    # shellcheck disable=SC2086
    python3 bench/peers_torch.py --glue "$BUILD/libglue.so" --out "$RESULTS/peers.json" --tokens "$TOKENS" \
        --seconds "$budget" --shapes $peers
}

declare -A budgets=([build]=240 [machine]=10 [check]=120 [ledger]=120 [bench]=180 [peers]=150)
steps=("$@")
[ $# -gt 0 ] || steps=(build machine check ledger bench peers)
for step in "${steps[@]}"; do
    [ -n "${budgets[$step]:-}" ] || {
        echo "gpu.sh: \"$step\" is not one of build, machine, check, ledger, bench, peers" >&2
        exit 2
    }
done
mkdir -p "$RESULTS"
for step in "${steps[@]}"; do
    budget=${BUDGET:-${budgets[$step]}}
    echo "== $step: budget $budget s"
    SECONDS=0
    "step_$step"
    echo "== $step: $SECONDS s of $budget"
done
