#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The program with a device whose memory the host may not touch: what it writes there is what it
# writes on the CPU, and a device that cannot be used is one clear line.
#   test_device.sh PROGRAM PLUGIN MODEL
set -u
moe=$1 plugin=$2 model=$3
passed=0
failed=0
judge() { # what, command
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
    fi
}
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
unset MOE_PLUGIN_PATH MOE_FAR_BYTES

without_rates() { # of JSON: what depends on the clock
    sed 's/"[a-z_]*_per_second": [^,]*, //g' "$1"
}
ends_with() { # exit code, arguments: to out and err
    local code=$1 status
    shift
    "$moe" "$@" > "$dir/out" 2> "$dir/err"
    status=$?
    [ "$status" = "$code" ] || { echo "moe $*: exit $status, want $code: $(head -c 400 "$dir/err")"; false; }
}
same() { # arguments: the same output with --device ext and without
    judge "cpu: moe $*" ends_with 0 "$@"
    without_rates "$dir/out" > "$dir/cpu"
    MOE_PLUGIN_PATH=$plugin judge "ext: moe $*" ends_with 0 "$@" --device ext
    without_rates "$dir/out" > "$dir/ext"
    judge "moe $*: another output on ext: $(head -c 300 "$dir/ext")" eval '[ -s "$dir/ext" ] && cmp -s "$dir/cpu" "$dir/ext"'
}
complains() { # texts that the only line on stderr holds
    local text
    [ "$(wc -l < "$dir/err")" = 1 ] && [ ! -s "$dir/out" ] || return 1
    for text in "$@"; do
        grep -qF -- "$text" "$dir/err" || return 1
    done
}
refuses() { # exit code, text, arguments
    local code=$1 text=$2
    shift 2
    judge "moe $*" ends_with "$code" "$@"
    judge "moe $*: want \"$text\", got: $(cat "$dir/err")" complains "$text"
}

# -- The same text, ids, loads and bytes. Where nothing is said of activations, only a CPU's are quantised.
same generate "$model" "It is a truth universally acknowledged, that" --max-tokens 16 --activation none
judge "what runs where: $(cat "$dir/err")" grep -q "threads, experts on ext$" "$dir/err"
same generate "$model" "It is a truth" "Call me" "It was the best of" --max-tokens 6 --json --activation none
same generate "$model" "Once upon a time" --max-tokens 12 --temperature 0.8 --top-p 0.9 --seed 7 --threads 1 --activation none
same generate "$model" "Once upon a time" --max-tokens 8 --activation i8b32 --json
same generate "$model" "Once upon a time" --max-tokens 8 --no-mmap --json --activation none
head -c 500 "$model/val.txt" > "$dir/text" # more than one window
same stats "$model" --text "$dir/text" --json --window 80 --activation none
run() { # device, options of moe run
    local device=$1
    shift
    MOE_PLUGIN_PATH=$plugin ends_with 0 run "$model" --layer 2 --input "$model/reference.safetensors:p0.l2.moe_in_bf16" \
        --output "$dir/y.$device" --device "$device" "$@"
}
for routing in "" "--logits p0.l2.router_logits_bf16in" \
    "--ids p0.l2.topk_ids_bf16in --weights p0.l2.topk_weights_bf16in"; do
    for device in cpu ext; do
        # shellcheck disable=SC2086
        judge "moe run $routing --device $device" run $device $routing
    done
    judge "moe run $routing: another output on ext" cmp -s "$dir/y.cpu" "$dir/y.ext"
    [ -n "$routing" ] || mv "$dir/y.cpu" "$dir/y.cpu.own"
done

# -- The same with weights in a packed layout.
export MOE_FAR_PACKED=1
MOE_PLUGIN_PATH=$plugin judge "moe explain with packed rows" ends_with 0 explain "$model" --device ext
judge "the products do not run packed rows: $(cat "$dir/out")" \
    [ "$(grep -cE '^ \* +moek_ggemm_.*_packed +runs$' "$dir/out")" = 2 ]
same generate "$model" "It is a truth" "Call me" --max-tokens 6 --json --activation none
same generate "$model" "Once upon a time" --max-tokens 8 --activation i8b32 --no-mmap --json
judge "moe run with packed rows" run ext
judge "moe run with packed rows: another output" cmp -s "$dir/y.cpu.own" "$dir/y.ext"
MOE_FAR_PACKED=half MOE_PLUGIN_PATH=$plugin judge "moe info with half a layout" ends_with 0 info
judge "half a layout is taken: $(cat "$dir/out")" \
    grep -qE '_packed[a-z0-9_]* reads a packed layout, the backend lacks packed_bytes, pack or unpack' "$dir/out"
unset MOE_FAR_PACKED

# -- Packed there and on the CPU, each for itself; the text is the same.
judge "moe pack" ends_with 0 pack "$model" --out "$dir/cpu.pack" --activation none
MOE_PLUGIN_PATH=$plugin judge "moe pack --device ext" ends_with 0 pack "$model" --out "$dir/ext.pack" --activation none --device ext
judge "with --packed" ends_with 0 generate "$model" "Once upon a time" --max-tokens 8 --activation none --packed "$dir/cpu.pack"
cp "$dir/out" "$dir/cpu"
MOE_PLUGIN_PATH=$plugin judge "with --packed on ext" ends_with 0 generate "$model" "Once upon a time" --max-tokens 8 \
    --activation none --packed "$dir/ext.pack" --device ext
judge "with --packed on ext: another text" cmp -s "$dir/cpu" "$dir/out"
judge "where the weights lie: $(cat "$dir/err")" grep -q "^weights on the device, copied from the packed file" "$dir/err"
MOE_PLUGIN_PATH=$plugin refuses 3 "have backend=cpu, the plan's weights have backend=far" \
    generate "$model" hello --activation none --packed "$dir/cpu.pack" --device ext

# -- What checks find and say there.
same check --oracle "$(dirname "$0")/../oracles/moe_blocks.safetensors"
MOE_PLUGIN_PATH=$plugin judge "a row of the device" ends_with 0 check --device ext --kernel '*__ref_i32' --quick
MOE_PLUGIN_PATH=$plugin judge "layers of the device" ends_with 0 check --device ext --kernel 'layer-2?' --quick
judge "layers of the device: $(tail -1 "$dir/out")" grep -q "^[1-9][0-9]* passed, 0 failed, 0 skipped" "$dir/out"
for what in "" "--oracle $(dirname "$0")/../oracles/moe_blocks.safetensors" "--model $model"; do
    # shellcheck disable=SC2086
    MOE_PLUGIN_PATH=$plugin MOE_FAR_BYTES=0 refuses 3 'backend "far": a device of 0 bytes is none; "cpu" works' \
        check --device ext $what
done

# -- Devices that cannot be used.
for command in "generate $model hello" "stats $model --text $dir/text" \
    "run $model --layer 2 --input $model/reference.safetensors:p0.l2.moe_in_bf16 --output $dir/y"; do
    # shellcheck disable=SC2086
    {
        refuses 3 'no backend for device "ext"' $command --device ext
        MOE_PLUGIN_PATH=$plugin MOE_FAR_BYTES=0 refuses 3 'backend "far": a device of 0 bytes is none; "cpu" works' $command --device ext
    }
done
judge "a device that is none of them" ends_with 2 generate "$model" hello --device tpu
judge "a device that is none of them: $(cat "$dir/err")" grep -qF '"tpu" is not one of cpu, cuda, hip, ext' "$dir/err"
judge "moe run wrote a file" [ ! -e "$dir/y" ]

# -- A device that is too small: for weights, for a session. What was got is given back (the plugin looks).
for bytes in 1 1000000 4400000 13000000; do
    MOE_PLUGIN_PATH=$plugin MOE_FAR_BYTES=$bytes refuses 1 "far: no memory for" generate "$model" hello --device ext
done
for bytes in 1 1000000 4400000; do
    MOE_PLUGIN_PATH=$plugin MOE_FAR_BYTES=$bytes refuses 1 "far: no memory for" run "$model" --layer 2 \
        --input "$model/reference.safetensors:p0.l2.moe_in_bf16" --output "$dir/y" --device ext
done
judge "moe run wrote a file" [ ! -e "$dir/y" ]
# -- A device that is lost on the way: one line, no file, and nothing kept (the plugin looks).
for ops in 0 3; do
    MOE_PLUGIN_PATH=$plugin MOE_FAR_DIES=$ops refuses 1 "far: the device is lost" run "$model" --layer 2 \
        --input "$model/reference.safetensors:p0.l2.moe_in_bf16" --output "$dir/y" --device ext
done
judge "moe run wrote a file" [ ! -e "$dir/y" ]
MOE_PLUGIN_PATH=$plugin MOE_FAR_DIES=100 judge "generate on a device that is lost" \
    ends_with 1 generate "$model" hello --max-tokens 20 --device ext --json
judge "generate on a device that is lost: $(cat "$dir/err")" \
    eval 'tail -1 "$dir/err" | grep -q "far: the device is lost" && [ ! -s "$dir/out" ]'
MOE_PLUGIN_PATH=$plugin MOE_FAR_BYTES=20000000 judge "weights fit, the session does not" \
    ends_with 1 generate "$model" hello --device ext --json
judge "weights fit, the session does not: $(cat "$dir/err")" \
    eval 'tail -1 "$dir/err" | grep -q "^moe: far: no memory for" && [ ! -s "$dir/out" ]'
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
