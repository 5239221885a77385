#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# model.sh MOE MODEL LAYER...: layers of the tiny model on the emulated device, 64 recorded tokens each: every
# byte is the CPU's. (All of `moe check --model --device hip` takes a quarter of an hour there.)
set -u
moe=$1
model=$2
shift 2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
passed=0
failed=0
for layer in "$@"; do
    for device in cpu hip; do
        "$moe" run "$model" --layer "$layer" --input "$model/reference.safetensors:p0.l$layer.moe_in_bf16" \
            --output "$dir/$device" --device $device > "$dir/out" 2>&1 || cat "$dir/out"
    done
    if [ -s "$dir/cpu" ] && cmp "$dir/cpu" "$dir/hip"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: layer $layer differs from the CPU's"
    fi
    rm -f "$dir/cpu" "$dir/hip"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
