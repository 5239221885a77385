#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What goes wrong for people, on copies of the tiny model: each trial ends with its exit code and one line
# "moe: ..." that names what is wrong; nothing half-written stays.   test_user.sh PROGRAM MODELS
set -u
moe=$1
model=$2/tiny-gpt-oss
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0
report() { # 0 or 1, what was wanted, what came
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: %s; got: %s\n' "$2" "$(printf '%s' "$3" | head -c 600)"
    fi
}
refuse() { # exit code, text of the one line, command
    local code=$1 text=$2 status
    shift 2
    "$@" > "$work/out" 2> "$work/err" < /dev/null
    status=$?
    [ "$status" = "$code" ] && [ "$(grep -c '^moe: ' "$work/err")" = 1 ] && grep '^moe: ' "$work/err" | grep -qF -- "$text"
    report $? "${*:2}: exit $status, want $code and one line with: $text" "$(cat "$work/err")"
}
equal() { # what, one, other
    [ "$2" = "$3" ]
    report $? "$1" "$2 / $3"
}
# A copy of the model whose file FILE is made anew by a command that reads the old one.
copy() {
    rm -rf "$work/m"
    mkdir "$work/m"
    for f in "$model"/*; do
        ln -s "$(realpath "$f")" "$work/m/"
    done
}
edit() { # file, sed expression
    sed "$2" "$model/$1" > "$work/edited"
    rm "$work/m/$1"
    mv "$work/edited" "$work/m/$1"
}
own() { # file: a copy that may be written
    rm "$work/m/$1"
    cp "$model/$1" "$work/m/$1"
}
shard=model-00001-of-00002.safetensors
generate=("$moe" generate "$work/m" word --max-tokens 3)

# -- Files of a checkpoint.
copy
refuse 1 "No such file" "$moe" generate "$work/nobody" word
refuse 1 "Not a directory" "$moe" generate "$model/config.json" word
own $shard && truncate -s -1000 "$work/m/$shard"
refuse 1 "$shard" "${generate[@]}"
refuse 1 "$shard" "$moe" inspect "$work/m"
own $shard && truncate -s 5 "$work/m/$shard"
refuse 1 "$shard" "${generate[@]}"
own $shard && printf '\0\0\0\0\0\1\0\0' | dd of="$work/m/$shard" conv=notrunc status=none
refuse 1 "1099511627776" "${generate[@]}"
own $shard && printf '\1\341\365\5\0\0\0\0' | dd of="$work/m/$shard" conv=notrunc status=none && truncate -s 200M "$work/m/$shard"
refuse 1 "100000001" "${generate[@]}"
rm "$work/m/$shard"
refuse 1 "$shard" "${generate[@]}"
copy
edit model.safetensors.index.json "s#\"$shard\"#\"../$shard\"#"
refuse 1 "../$shard" "${generate[@]}"
copy
own $shard && sed -i 's/"model.layers.0.input_layernorm.weight":{"dtype":"BF16"/"model.layers.0.input_layernorm.weight":{"dtype":"I16" /' "$work/m/$shard"
refuse 1 "model.layers.0.input_layernorm.weight" "${generate[@]}"
copy
own $shard && sed -i 's/"model.layers.0.mlp.experts.down_proj_bias":{"dtype":"BF16","shape":\[32,288\]/"model.layers.0.mlp.experts.down_proj_bias":{"dtype":"BF16","shape":[288,32]/' "$work/m/$shard"
refuse 1 "down_proj_bias" "${generate[@]}"
copy
own $shard
at=$(python3 - "$work/m/$shard" << 'PY'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
entry = json.loads(data[8:8 + size])["model.layers.0.mlp.experts.gate_up_proj_scales"]
print(8 + size + entry["data_offsets"][0] + 1234)
PY
)
printf '\377' | dd of="$work/m/$shard" bs=1 seek="$at" conv=notrunc status=none
refuse 1 "scale" "${generate[@]}"

# -- Configurations.
copy && rm "$work/m/config.json"
refuse 1 "config.json" "${generate[@]}"
copy && rm "$work/m/tokenizer.json"
refuse 1 "tokenizer.json" "${generate[@]}"
copy && edit config.json 's/"num_experts_per_tok": 4/"num_experts_per_tok": 33/; s/"experts_per_token": 4/"experts_per_token": 33/'
refuse 1 "33" "${generate[@]}"
copy && edit config.json 's/"model_type": "gpt_oss"/"model_type": "nobody"/'
refuse 3 "nobody" "${generate[@]}"
copy && edit config.json 's/"rope_type": "yarn"/"rope_type": "longrope"/'
refuse 3 "longrope" "${generate[@]}"
copy && edit config.json 's/"rope_type": "yarn"/"rope_type": 5/'
refuse 1 "\"rope_type\" must be a string" "${generate[@]}"
copy && edit config.json 's/"tie_word_embeddings": false/"tie_word_embeddings": "no"/'
refuse 1 "\"tie_word_embeddings\" must be true or false" "${generate[@]}"
copy && edit config.json 's/"rope_theta": 150000.0/"rope_theta": "150000"/'
refuse 1 "\"rope_theta\" must be a number" "${generate[@]}"
copy && edit config.json 's/"hidden_size": 288/"hidden_size": 289/'
refuse 1 "289" "${generate[@]}"
copy && edit config.json 's/"vocab_size": 4096/"vocab_size": 4095/'
refuse 1 "4095" "${generate[@]}"
copy && edit config.json 's/,$/,,/'
refuse 1 "config.json" "${generate[@]}"
copy && edit tokenizer.json 's/"type": *"BPE"/"type":"Unigram"/'
refuse 3 "Unigram" "${generate[@]}"
copy && rm "$work/m/reference.safetensors"
"$moe" check --model "$work/m" > "$work/out" 2>&1
equal "check without a reference fails and names it" "$?$(grep -c "reference.safetensors" "$work/out")" 11

# -- Prompts and options.
refuse 1 "prompt 1" "$moe" generate "$model" ""
refuse 1 "byte 2" "$moe" generate "$model" $'ab\xff'
printf 'a\xc3' > "$work/half"
"$moe" generate "$model" - < "$work/half" > /dev/null 2> "$work/err"
equal "half a character on standard input" "$?$(grep -c '^moe: ' "$work/err")" 11
"$moe" generate "$model" - < /dev/null > /dev/null 2> "$work/err"
equal "empty standard input" "$?$(grep -c 'empty' "$work/err")" 11
long=$(yes word | head -600 | tr '\n' ' ')
refuse 1 "context of 512" "$moe" generate "$model" "$long"
"$moe" generate "$model" word --max-tokens 2000 > "$work/out" 2> "$work/err"
equal "the context ends a text" "$?$(grep -c 'context of 512 tokens is full after' "$work/err")" 01
for bad in 0 -1 "" 3x 0x3 1e2 99999999999999999999 nan " 5"; do
    refuse 2 "--max-tokens" "$moe" generate "$model" word --max-tokens "$bad"
done
for bad in -1 nan inf 1e400 "" 1x; do
    refuse 2 "--temperature" "$moe" generate "$model" word --temperature "$bad"
done
for bad in 0 1.01 -0.5 nan ""; do
    refuse 2 "--top-p" "$moe" generate "$model" word --top-p "$bad"
done
refuse 2 "unknown option \"-n\"" "$moe" generate "$model" -n 3 word
refuse 2 "a prompt" "$moe" generate "$model"
refuse 2 "--text" "$moe" stats "$model"
refuse 2 "at most one" "$moe" stats "$model" --text "$model/val.txt" --csv --json
refuse 2 "--threads" "$moe" generate "$model" word --threads 0
refuse 2 "--seed" "$moe" generate "$model" word --seed -1
refuse 2 "--activation" "$moe" generate "$model" word --activation nobody
refuse 3 "cuda" "$moe" generate "$model" word --device cuda
refuse 2 "--window" "$moe" stats "$model" --text "$model/val.txt" --window 1
refuse 1 "No such file" "$moe" stats "$model" --text "$work/none"

# -- Output that cannot be written, and texts that are cut short.
for command in "generate $model word --max-tokens 3" "inspect $model" "stats $model --text $work/short" "info"; do
    printf 'It was the best of times.' > "$work/short"
    # shellcheck disable=SC2086
    "$moe" $command > /dev/full 2> "$work/err"
    equal "a full disk: $command" "$?$(grep -c '^moe: .*writ' "$work/err")" 11
done
run=("$moe" run "$model" --layer 0 --input "$model/reference.safetensors:p0.l0.moe_in_f32" --output)
refuse 1 "none" "${run[@]}" "$work/none/y.safetensors"
if [ "$(id -u)" = 0 ] && mkdir "$work/full" && mount -t tmpfs -o size=64k none "$work/full" 2> /dev/null; then
    refuse 1 "No space" "${run[@]}" "$work/full/y.safetensors"
    equal "a full disk: nothing stays" "$(ls -A "$work/full")" ""
    umount "$work/full"
else
    echo "skipped: a full file system needs root and mount"
fi
"${run[@]}" "$work/y.safetensors" > /dev/null 2>&1
equal "run writes its file" "$?$(test -s "$work/y.safetensors" && echo y)" 0y
"$moe" generate "$model" word --max-tokens 400 --threads 1 > "$work/out" 2> "$work/err" &
pid=$!
for _ in $(seq 200); do
    [ "$(wc -c < "$work/out")" -gt 40 ] && break
    sleep 0.02
done
kill -INT $pid
wait $pid
status=$?
equal "interrupted: exit code, line, whole last line" \
    "$status$(grep -c 'moe: interrupted after [0-9]* tokens' "$work/err")$(tail -c 1 "$work/out" | od -An -c | tr -d ' ')" '1301\n'
"$moe" generate "$model" word --max-tokens 50 2> "$work/err" | head -c 1 > /dev/null
equal "a closed pipe" "$(grep -c 'ERROR\|core\|fault' "$work/err")" 0

# -- What works.
text() { "$moe" generate "$model" "$@" 2> /dev/null; }
a=$(text "It was" --max-tokens 12)
equal "threads" "$(text "It was" --max-tokens 12 --threads 1)" "$(text "It was" --max-tokens 12 --threads 2)"
equal "no mmap" "$(text "It was" --max-tokens 12 --no-mmap)" "$a"
equal "standard input" "$(printf 'It was' | text - --max-tokens 12)" "$a"
equal "several prompts" "$(text "It was" "The table" --max-tokens 12)" "$a

$(text "The table" --max-tokens 12)"
equal "a prompt of dashes" "$(text --max-tokens 2 -- --threads | head -c 9)" "--threads"
warm=(--temperature 1 --max-tokens 20 --seed)
equal "help of a command" "$("$moe" stats --help | head -c 13)" "moe stats DIR"
equal "one seed, one text" "$(text "It was" "${warm[@]}" 7)" "$(text "It was" "${warm[@]}" 7)"
[ "$(text "It was" "${warm[@]}" 7)" != "$(text "It was" "${warm[@]}" 8)" ]
report $? "another seed, another text" ""
json() { # arguments
    "$moe" "$@" 2> /dev/null | python3 -m json.tool > /dev/null 2> "$work/err"
    report $? "JSON of $*" "$(cat "$work/err")"
}
json generate "$model" "It \"was\"" 'b\c' --max-tokens 3 --json
json stats "$model" --text "$work/short" --json
json inspect "$model" --json
json explain "$model" --json
json info --kernels --json
json check --kernel layer-7 --json
"$moe" stats "$model" --text "$work/short" --csv > "$work/load.csv"
tokens=$("$moe" stats "$model" --text "$work/short" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["tokens"])')
equal "CSV: a line per expert, every choice counted" \
    "$(awk -F, 'NR > 1 { n++; sum += $3 } END { print n, sum }' "$work/load.csv")" "128 $((tokens * 4 * 4))"
"$moe" stats "$model" --text "$work/short" --svg | python3 -c 'import sys, xml.etree.ElementTree as e; e.parse(sys.stdin)' 2> "$work/err"
report $? "SVG is XML" "$(cat "$work/err")"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
