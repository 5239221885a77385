#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that is measured on a CPU: bench/cpu.sh NAME [STEP...], results in bench/results/cpu-NAME
#   build       the program, without GPU backends, into $BUILD
#   machine     what the machine is: machine.txt
#   bench       moe bench over the table below: SHAPE-FORMAT.json
#   scaling     one shape over 1 .. all threads: scaling-FORMAT-TOKENS.json, and a picture, scaling-TOKENS.svg
#   model       a whole model, one token to a prompt: model-ACTIVATION.json
#   contention  one token alone, and beside a busy process that is pinned to a CPU: contention-FORMAT-{alone,beside}.json
#   plot        bench.svg: latency over tokens and the roofline of some of the table's rows
# Without a step: all of them in this order. bench leaves out what no longer fits into its budget of seconds ($BUDGET), and says so.
# $THREADS: of bench (all CPUs). $ONLY, a regular expression, chooses rows of the table. MOE_ISA=avx2 lowers what kernels use.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?name of the machine}
shift
BUILD=${BUILD:-build-bench}
RESULTS=${RESULTS:-bench/results/cpu-$name}
THREADS=${THREADS:-$(nproc)}
ONLY=${ONLY:-.}
BUDGET=${BUDGET:-900}
moe=$BUILD/moe

# Shape, weight format, numbers of tokens (few rows an expert, 8 to 24, and more), and what else moe bench is told.
table="
gpt-oss-20b mxfp4 1,8,32,128,512
qwen3-30b-a3b mxfp4 1,8,32,256,1024
qwen3-30b-a3b bf16 1,8,256,1024
qwen3-30b-a3b e4m3fn_block 1,8,256,1024 --activation none
qwen3-30b-a3b nvfp4 1,8,256,1024
qwen3-30b-a3b int8_channel 1,8,256,1024
mixtral-8x7b mxfp4 1,8,64,256
2688,1856,128,6 mxfp4 1,8,256,1024
4096,1408,60,4 mxfp4 1,8,256,1024
5120,8192,16,1 mxfp4 1,8,128,512
2048,512,512,10 mxfp4 1,8,512,2048
4096,1408,60,4 bf16 1,8,256,1024
"

step_build() {
    local commit=${MOE_COMMIT:-$(git rev-parse --short=12 HEAD 2> /dev/null || true)}
    cmake -B "$BUILD" -DCMAKE_BUILD_TYPE=Release -DMOE_TESTS=OFF -DMOE_CUDA=OFF -DMOE_HIP=OFF -DMOE_COMMIT="$commit" > /dev/null
    cmake --build "$BUILD" -j "$(nproc)"
}

step_machine() {
    {
        lscpu | grep -E '^(Model name|CPU family|Model:|CPU\(s\)|Thread|Core|Socket|L1d|L2|L3|NUMA node\(s\)|Hypervisor)'
        grep -E 'MemTotal|AnonHugePages' /proc/meminfo
        echo "transparent huge pages $(cat /sys/kernel/mm/transparent_hugepage/enabled)"
        uname -sr
        "$moe" info | grep -v " absent: "
    } | tee "$RESULTS/machine.txt"
}

# Name of the file, threads, arguments; what no row supports is no failure.
run_bench() {
    "$moe" bench "${@:3}" --threads "$2" --json "$RESULTS/${1//,/x}.json" || [ $? = 3 ]
}

step_bench() {
    local shape format tokens more
    while read -r shape format tokens more; do
        [[ -n $shape && "$shape $format" =~ $ONLY ]] || continue
        if ((SECONDS > BUDGET)); then
            echo "bench: $shape $format is left out, the budget of $BUDGET s is spent"
            continue
        fi
        # shellcheck disable=SC2086
        run_bench "$shape-$format" "$THREADS" --shape "$shape" --format "$format" --tokens "$tokens" $more
    done <<< "$table"
}

step_scaling() {
    local tokens format list=1 threads=1
    while ((threads < THREADS)); do
        ((threads = threads < 4 ? threads + 1 : threads + threads / 2, threads = threads < THREADS ? threads : THREADS))
        list+=,$threads
    done
    for tokens in 1 256; do
        for format in bf16 mxfp4; do
            run_bench "scaling-$format-$tokens" "$list" --shape qwen3-30b-a3b --format $format --tokens $tokens
        done
        "$moe" bench --plot "$RESULTS/scaling-$tokens.svg" "$RESULTS/scaling-bf16-$tokens.json" "$RESULTS/scaling-mxfp4-$tokens.json"
    done
}

step_contention() {
    local format=mxfp4 busy
    run_bench "contention-$format-alone" "$THREADS" --shape qwen3-30b-a3b --format $format --tokens 1
    taskset -c 0 sh -c 'while :; do :; done' &
    busy=$!
    # shellcheck disable=SC2064
    trap "kill $busy" EXIT
    run_bench "contention-$format-beside" "$THREADS" --shape qwen3-30b-a3b --format $format --tokens 1
    kill $busy
    trap - EXIT
}

step_model() {
    run_bench model-i16b32 "$THREADS" --model models/tiny-gpt-oss --tokens 1,8,64,512
    run_bench model-none "$THREADS" --model models/tiny-gpt-oss --tokens 1,8,64,512 --activation none
}

step_plot() {
    local file files=()
    for file in "$RESULTS"/{gpt-oss-20b-mxfp4,qwen3-30b-a3b-mxfp4,qwen3-30b-a3b-bf16,qwen3-30b-a3b-e4m3fn_block}.json; do
        [ ! -e "$file" ] || files+=("$file")
    done
    "$moe" bench --plot "$RESULTS/bench.svg" "${files[@]}"
}

steps=("$@")
[ $# -gt 0 ] || steps=(build machine bench scaling model contention plot)
for step in "${steps[@]}"; do
    [[ " build machine bench scaling model contention plot " == *" $step "* ]] || {
        echo "cpu.sh: \"$step\" is not one of build, machine, bench, scaling, model, contention, plot" >&2
        exit 2
    }
done
mkdir -p "$RESULTS"
for step in "${steps[@]}"; do
    echo "== $step"
    SECONDS=0
    "step_$step"
    echo "== $step: $SECONDS s"
done
