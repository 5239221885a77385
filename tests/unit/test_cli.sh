#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The program's exit codes and one-line errors: test_cli.sh PROGRAM MODELS
set -u
moe=$1
models=$2
passed=0
failed=0
expect() { # exit code, text on either stream, arguments
    local code=$1 text=$2 out status
    shift 2
    out=$("$moe" "$@" 2>&1)
    status=$?
    if [ "$status" = "$code" ] && printf '%s' "$out" | grep -qF -- "$text"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: moe $*: exit $status, want $code; want text: $text; got: $(printf '%s' "$out" | head -3)"
    fi
}
expect 0 "the Mixture-of-Experts layer" --help
expect 2 "the Mixture-of-Experts layer"
expect 0 "moe 0.1.0" --version
expect 2 "unknown command \"fly\"" fly
expect 0 "backend cpu" info
expect 0 "moek_ggemm_any_any_any__ref_c256" info --kernels
expect 0 "\"kernels\": [" info --kernels --json
expect 2 "unknown option \"--what\"" info --what
expect 2 "one argument too many" info extra
expect 0 " *  moek_ggemm" explain --shape gpt-oss-20b --format mxfp4
expect 0 "\"arith\": \"fma_b32\"" explain --shape 64,32,8,2 --format mxfp4 --json
expect 2 "usage: moe explain" explain
expect 2 "or --shape, not both" explain "$models/tiny-gpt-oss" --shape 64,32,8,2
expect 2 "say --format" explain --shape gpt-oss-20b
expect 0 "bf16 x mxfp4 -> f32   e=32" explain "$models/tiny-gpt-oss"
expect 0 "\"activation\": \"swigluoai\"" explain "$models/tiny-gpt-oss:3" --json
expect 0 "bf16 x bf16" explain "$models/tiny-gpt-oss" --format bf16
expect 1 "not a whole number" explain "$models/tiny-gpt-oss:x"
expect 1 "cannot be read" explain /nonexistent
expect 2 "neither H,I,E,k nor one of" explain --shape nobody --format mxfp4
expect 2 "is not a format" explain --shape 64,32,8,2 --format mxfp5
expect 2 "is not a quantiser" explain --shape 64,32,8,2 --format mxfp4 --activation nobody
expect 1 "top_k = 9, must be 1..8" explain --shape 64,32,8,9 --format mxfp4
expect 3 "fp8_tensor" explain --shape 64,32,8,2 --format e4m3fn_tensor --activation fp8_tensor
expect 0 "level RUN" explain --shape 64,32,8,2 --format e4m3fn_tensor --activation fp8_tensor --det run
expect 2 "not a whole number" explain --shape 64,32,8,2 --format mxfp4 --tokens many
expect 1 "layer 4 has no experts; the first that has is 0" explain "$models/tiny-gpt-oss:4"
expect 2 "usage: moe inspect" inspect
expect 0 "layers 0..3  gpt-oss MXFP4: 32 experts" inspect "$models/tiny-gpt-oss"
expect 0 "4 with experts, 0 dense" inspect "$models/tiny-gpt-oss" --no-mmap
expect 0 "995328: 0 NaN, 0 infinite, 0 negative, 0 zero, 0 absurd" inspect "$models/tiny-gpt-oss"
expect 0 "\"dialect\": \"gpt-oss MXFP4\"" inspect "$models/tiny-gpt-oss" --json
expect 0 "p0.l0.moe_in_bf16" inspect "$models/tiny-gpt-oss/reference.safetensors"
expect 0 "{\"name\": \"p0.ids\", \"dtype\": \"int32\"" inspect "$models/tiny-gpt-oss/reference.safetensors" --json
expect 1 "No such file" inspect /nonexistent
expect 2 "pack needs the folder of a model" pack
expect 2 "one argument too many" pack "$models/tiny-gpt-oss" more
expect 2 "is not a quantiser" pack "$models/tiny-gpt-oss" --activation nobody
expect 1 "cannot be read" pack /nonexistent
expect 2 "--weights \"many\" is not one of auto, packed, mapped" generate "$models/tiny-gpt-oss" hello --weights many
expect 2 "give --weights or --packed, not both" stats "$models/tiny-gpt-oss" --text x --weights auto --packed x
# One layer, alone and from its own logits and choices: the same bytes.
dir=$(mktemp -d)
input=$models/tiny-gpt-oss/reference.safetensors
run="run $models/tiny-gpt-oss --layer 2"
expect 0 "y bf16 [64, 288]" $run --input "$input:p0.l2.moe_in_bf16" --output "$dir/y" --threads 1
expect 0 "\"in_place\": true" $run --input "$input:p0.l2.moe_in_bf16" --output "$dir/y2" --threads 2 --json
expect 0 "[64, 4]  ids" inspect "$dir/y"
expect 0 "" inspect "$dir/y"
cmp -s "$dir/y" "$dir/y2" || { echo "FAILED: threads change moe run's output"; failed=$((failed + 1)); }
expect 1 "no tensor \"nobody\"" $run --input "$input:nobody" --output "$dir/y"
expect 1 "no tensor \"x\"" $run --input "$input" --output "$dir/y"
expect 1 "is int32 of 1 dimensions, [64], must be f32, bf16 or f16 [tokens, 288]" $run --input "$input:p0.ids" --output "$dir/y"
expect 1 "must be [64, 32]" $run --input "$input:p0.l2.moe_in_bf16" --logits p0.l2.moe_out --output "$dir/y"
expect 0 "ids and weights [64, 4]" $run --input "$input:p0.l2.moe_in_bf16" --logits p0.l2.router_logits_bf16in --output "$dir/z"
expect 0 "ids and weights [64, 4]" $run --input "$input:p0.l2.moe_in_bf16" --ids p0.l2.topk_ids_bf16in --weights p0.l2.topk_weights_bf16in --output "$dir/w"
expect 2 "give --logits, or --ids and --weights" $run --input "$input:p0.l2.moe_in_bf16" --ids p0.ids --output "$dir/y"
expect 2 "--output is missing" $run --input "$input"
expect 2 "not a whole number" run "$models/tiny-gpt-oss" --layer many --input "$input" --output "$dir/y"
expect 1 "layer 7 has no experts" run "$models/tiny-gpt-oss" --layer 7 --input "$input" --output "$dir/y"
expect 1 "No such file" $run --input "$input:p0.l2.moe_in_bf16" --output "$dir/absent/y"
[ "$(ls "$dir" | xargs)" = "w y y2 z" ] || { echo "FAILED: left in the folder: $(ls "$dir")"; failed=$((failed + 1)); }
# A scale that is no number: found, and refused where it would be used.
mkdir "$dir/broken"
cp "$models"/tiny-gpt-oss/model* "$models/tiny-gpt-oss/config.json" "$dir/broken"
python3 - "$dir/broken" << 'END'
import glob, json, struct, sys
for path in glob.glob(sys.argv[1] + "/*.safetensors"):
    with open(path, "r+b") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
        for name, of in header.items():
            if name.endswith("layers.1.mlp.experts.down_proj_scales"):
                f.seek(8 + size + of["data_offsets"][0] + 5)
                f.write(b"\xff")
END
expect 1 "scales      995328: 1 NaN" inspect "$dir/broken"
expect 1 "element [0, 5] is NaN, must be finite" run "$dir/broken" --layer 1 --input "$input:p0.l1.moe_in_bf16" --output "$dir/y"
expect 0 "y bf16 [64, 288]" run "$dir/broken" --layer 2 --input "$input:p0.l2.moe_in_bf16" --output "$dir/y"
rm "$dir/broken/model-00002-of-00002.safetensors"
expect 1 "which is missing" inspect "$dir/broken"
rm -r "$dir"
# A plugin that is there and has no device: the reason, in one line. Where there is one: its name.
for device in cuda hip; do
    line=$(printf "backend %-6s" $device)
    if "$moe" info | grep -q "$line ready"; then
        expect 0 "$line ready: " info
    else
        expect 3 "\"$device\": " check --device $device
        expect 0 "$line absent: " info
        expect 0 "\"name\": \"$device\", \"available\": false" info --json
    fi
done
expect 0 "passed, 0 failed, 0 skipped" check --device cpu --kernel layer-3 --threads 2
expect 2 "is not one of ref" check --isa nobody
expect 3 "1 skipped" check --isa ref --kernel 'moek_glu_any_any__ref_fma'
expect 2 "names no row and no case" check --kernel nobody
expect 0 "moek_quantize_any_any__ref" check --list
expect 0 "layer-1599" check --list
expect 0 "{\"names\": [\"layer-7\"]}" check --list --json --kernel layer-7
expect 0 "\"failed\": 0, \"skipped\": 0, \"failures\": []}" check --json --kernel layer-7
expect 0 "seed 6" check --kernel layer-7 --seed 5 --repeat 2
expect 2 "--repeat \"0\" is not a whole number" check --repeat 0
expect 0 " 0 failed, 0 skipped" check --kernel layer-7 --delay 3 --runs 2
expect 2 "--delay \"0\" is not a whole number" check --delay 0
expect 2 "--runs \"0\" is not a whole number" check --delay 1 --runs 0
expect 2 "--runs needs --delay" check --runs 2
expect 0 " 0 failed, 0 skipped" check --kernel "moek_place*" --every 50
expect 2 "--every \"0\" is not a whole number" check --every 0
expect 2 "not recorded ones" check --every 2 --model "$models/tiny-gpt-oss"
expect 2 "records one whole check" check --ledger . --every 2
expect 3 "skipped: graph-*: backend cpu has no device graphs" check --kernel "graph-*"
expect 3 "skipped: memory: the backend has no memory of its own" check --kernel memory
expect 3 "19.3 GB of weights in host memory; --kernel big runs it" check --kernel "b*g"
expect 2 "names no row and no case" check --kernel "faul?"
expect 2 "not recorded problems" check --delay 1 --model "$models/tiny-gpt-oss"
expect 2 "records one whole check" check --ledger . --delay 1
expect 2 "a recorded one has no seed" check --seed 2 --model "$models/tiny-gpt-oss"
expect 2 "not recorded problems" check --format mxfp4 --model "$models/tiny-gpt-oss"
expect 2 "two checks" check --oracle x --model "$models/tiny-gpt-oss"
expect 2 "no part of a model" check --kernel nobody --model "$models/tiny-gpt-oss"
expect 2 "needs --model" check --quick
expect 2 "needs --model" check --reference x
expect 2 "records one whole check" check --ledger . --list
expect 2 "--hashes needs --ledger" check --hashes x
expect 2 "--ledger /nowhere is not a folder" check --ledger /nowhere
expect 2 "/nowhere cannot be read" check --ledger . --hashes /nowhere
expect 2 "a recorded one has no seed" check --repeat 2 --model "$models/tiny-gpt-oss"
expect 2 "not a whole number" check --seed -1
expect 2 "not a whole number" check --threads few
expect 0 "layer 3" check --list --model "$models/tiny-gpt-oss"
expect 0 " 0 failed" check --format mxfp4 --kernel "*__ref_b32"
expect 2 "is not a format" check --format mxfp5
expect 2 "is not one of cpu, cuda, hip, ext" check --device tpu
expect 2 "needs a value" check --oracle
expect 1 "No such file" check --oracle /nonexistent/file
expect 1 "\"failures\": [\"FAIL  " check --json --oracle /nonexistent/file
expect 1 "" check --model /nonexistent/folder
MOE_ISA=ref expect 0 "CPU or context has" info --kernels
MOE_ISA=nobody expect 1 "is not one of ref" info
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
