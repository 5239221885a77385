#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The program under a newcomer's hands, mistakes and all: test_user.sh PROGRAM MODELS
# A refusal is one line on stderr that names the thing, the right exit code, nothing on stdout, and
# no file left behind.
set -u
moe=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
dir=$(mktemp -d) || exit 1
trap 'umount "$dir/small" 2> /dev/null; rm -rf "$dir"' EXIT
# Trials link to a copy: what goes wrong in one cannot reach the model that was given.
good=$dir/good
cp -R "$2/tiny-gpt-oss" "$good" || exit 1
passed=0
failed=0

judge() { # what, whether it holds: a command
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
    fi
}
# Standard output to $dir/out, standard error to $dir/err, the exit code to $code.
moe() {
    "$moe" "$@" > "$dir/out" 2> "$dir/err"
    code=$?
}
# What stderr holds besides the model's description, where weights lie, the speed and the usage.
complaints() {
    grep -vE ': [0-9]+ layers, hidden [0-9]+, |^weights |^prompt: |^usage: |^  |^moe (generate|stats|explain|pack) ' "$dir/err"
}
complains() { # texts, all of them in one line
    local line text
    line=$(complaints)
    [ "$(printf '%s\n' "$line" | wc -l)" = 1 ] && [ "${line#moe: }" != "$line" ] || return 1
    for text in "$@"; do
        [[ $line == *"$text"* ]] || return 1
    done
}
# refuses EXIT_CODE TEXT... -- ARGUMENTS
refuses() {
    local want=$1 texts=()
    shift
    while [ "$1" != -- ]; do
        texts+=("$1")
        shift
    done
    shift
    moe "$@"
    if [ "$code" = "$want" ] && [ ! -s "$dir/out" ] && complains "${texts[@]}"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: moe $(printf '%.60s ' "$@"): exit $code, want $want and one line with: ${texts[*]}; got:" \
            "$(head -c 600 "$dir/err"); on stdout $(wc -c < "$dir/out") bytes"
    fi
}
# A copy of the model, in links: what a trial edits becomes a file of its own.
copy() {
    rm -rf "$dir/m"
    mkdir "$dir/m"
    ln -s "$good"/*.json "$good"/model-*.safetensors "$dir/m" || exit 1
}
# edit KIND FILE ARGUMENTS: header TENSOR KEY JSON | byte TENSOR AT VALUE | json KEY JSON | length N
edit() {
    python3 - "$dir/m" "$@" << 'END'
import json, os, shutil, struct, sys
folder, kind, name = sys.argv[1:4]
path = os.path.join(folder, name)
source = os.path.realpath(path)
if os.path.islink(path):
    os.unlink(path)
    shutil.copyfile(source, path)
if kind == "json":
    keys = sys.argv[4].split("/")
    root = json.load(open(path))
    at = root
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = json.loads(sys.argv[5])
    json.dump(root, open(path, "w"))
    sys.exit()
with open(path, "r+b") as f:
    size = struct.unpack("<Q", f.read(8))[0]
    if kind == "length":
        f.seek(0)
        f.write(struct.pack("<Q", int(sys.argv[4])))
        sys.exit()
    header = json.loads(f.read(size))
    entry = header[sys.argv[4]]
    if kind == "byte":
        f.seek(8 + size + entry["data_offsets"][0] + int(sys.argv[5]))
        f.write(bytes([int(sys.argv[6])]))
    else:
        entry[sys.argv[5]] = json.loads(sys.argv[6])
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= size
        f.seek(8)
        f.write(text.ljust(size))
END
}
# Every 1000th byte of a shard's data, as after more training.
train() {
    python3 - "$dir/m/$1" << 'END'
import struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
for i in range(8 + struct.unpack("<Q", data[:8])[0], len(data), 1000):
    data[i] ^= 1
open(sys.argv[1], "wb").write(data)
END
}
shard=model-00001-of-00002.safetensors
second=model-00002-of-00002.safetensors
head -c 300 "$good/val.txt" > "$dir/text"

# ---- a broken model ----------------------------------------------------------------------------
copy && rm "$dir/m/$shard" && head -c 5000000 "$good/$shard" > "$dir/m/$shard"
refuses 1 "$shard" "ends at 6479424" 4995752 -- generate "$dir/m" hello
copy && rm "$dir/m/$shard" && head -c 2000 "$good/$shard" > "$dir/m/$shard"
refuses 1 "$shard" 4240 1992 -- generate "$dir/m" hello
copy && rm "$dir/m/$shard" && : > "$dir/m/$shard"
refuses 1 "$shard" -- stats "$dir/m" --text "$dir/text"
copy && edit length "$shard" 1099511627776
refuses 1 "$shard" 1099511627776 -- generate "$dir/m" hello
copy && edit length "$shard" 100000001 && truncate -s 200M "$dir/m/$shard"
refuses 1 "$shard" 100000001 100000000 -- generate "$dir/m" hello
copy && rm "$dir/m/$second"
refuses 1 "$second" "missing" -- generate "$dir/m" hello
refuses 1 "$second" "missing" -- inspect "$dir/m"
copy && edit json model.safetensors.index.json weight_map/lm_head.weight '"../x.safetensors"'
refuses 1 "../x.safetensors" -- generate "$dir/m" hello
copy && edit json model.safetensors.index.json weight_map/lm_head.weight "\"$shard\""
refuses 1 lm_head.weight "$shard" -- generate "$dir/m" hello
copy && edit header "$shard" model.layers.0.mlp.router.weight dtype '"I16"'
refuses 1 model.layers.0.mlp.router.weight -- generate "$dir/m" hello
copy && edit header "$shard" model.layers.1.self_attn.q_proj.weight dtype '"I16"'
refuses 1 model.layers.1.self_attn.q_proj.weight int16 -- generate "$dir/m" hello
copy && edit header "$shard" model.layers.1.mlp.experts.down_proj_blocks dtype '"I8"'
refuses 1 model.layers.1.mlp.experts.down_proj_blocks -- generate "$dir/m" hello
copy && edit header "$shard" model.layers.1.self_attn.k_proj.weight shape '[288,64]'
refuses 1 model.layers.1.self_attn.k_proj.weight "[288, 64]" "[64, 288]" -- generate "$dir/m" hello
copy && edit header "$shard" model.layers.0.mlp.router.weight shape '[288,32]'
refuses 1 model.layers.0.mlp.router.weight "[288, 32]" "[32, 288]" -- generate "$dir/m" hello
copy && edit header "$shard" model.layers.0.mlp.router.weight shape '[32,289]'
refuses 1 model.layers.0.mlp.router.weight 6663808 6663872 -- generate "$dir/m" hello
copy && edit byte "$shard" model.layers.1.mlp.experts.gate_up_proj_scales 7 255
refuses 1 "layer 1" "gate_up scales" NaN -- generate "$dir/m" hello
refuses 1 "layer 1" "gate_up scales" NaN -- stats "$dir/m" --text "$dir/text"
copy && edit json config.json num_experts_per_tok 33 && edit json config.json experts_per_token 33
refuses 1 33 32 -- generate "$dir/m" hello
copy && edit json config.json model_type '"llama"'
refuses 3 config.json model_type llama gpt_oss -- generate "$dir/m" hello
copy && edit json config.json rope_scaling/rope_type '"spiral"'
refuses 3 config.json spiral yarn -- generate "$dir/m" hello
copy && edit json config.json rope_scaling/rope_type 5
refuses 1 config.json "\"rope_type\" must be a string" -- generate "$dir/m" hello
copy && edit json config.json tie_word_embeddings '"no"'
refuses 1 config.json "\"tie_word_embeddings\" must be true or false" -- generate "$dir/m" hello
copy && edit json config.json rope_theta '"150000"'
refuses 1 config.json "\"rope_theta\" must be a number" -- generate "$dir/m" hello
copy && edit json config.json vocab_size 4095
refuses 1 4095 4096 -- generate "$dir/m" hello
copy && edit json tokenizer.json model/type '"Unigram"'
refuses 3 tokenizer.json Unigram -- generate "$dir/m" hello
copy # it leaves out what other software computed
moe check --model "$dir/m"
judge "moe check without a reference: exit $code, $(head -c 300 "$dir/out")" \
    eval '[ "$code" = 1 ] && grep -q "reference.safetensors" "$dir/out" "$dir/err"'
copy && edit json config.json hidden_size 300
refuses 1 300 288 -- generate "$dir/m" hello
copy && edit json config.json num_hidden_layers 9
refuses 1 config.json layer_types 4 9 -- generate "$dir/m" hello
copy && rm "$dir/m/config.json"
refuses 1 "$dir/m/config.json" "No such file" -- generate "$dir/m" hello
copy && rm "$dir/m/config.json" && echo '{"model_type": ' > "$dir/m/config.json"
refuses 1 "$dir/m/config.json" -- generate "$dir/m" hello
echo '[1]' > "$dir/m/config.json"
refuses 1 "$dir/m/config.json" "not a JSON object" -- generate "$dir/m" hello
copy && rm "$dir/m/tokenizer.json"
refuses 1 "$dir/m/tokenizer.json" "No such file" -- generate "$dir/m" hello
refuses 1 "$dir/m/tokenizer.json" "No such file" -- stats "$dir/m" --text "$dir/text"
printf '' > "$dir/m/tokenizer.json"
refuses 1 "$dir/m/tokenizer.json" -- generate "$dir/m" hello
copy && rm "$dir/m"/model*
refuses 1 "$dir/m" "safetensors" -- generate "$dir/m" hello
refuses 1 "$good/config.json/config.json" "Not a directory" -- generate "$good/config.json" hello
refuses 1 "/nonexistent/config.json" "No such file" -- generate /nonexistent hello
rm -rf "$dir/m"

# ---- a packed file -----------------------------------------------------------------------------
pack=$dir/experts.moepack
moe pack "$good" --out "$pack"
judge "moe pack: $(cat "$dir/err")" [ "$code" = 0 ]
judge "moe pack says what it made: $(cat "$dir/out")" grep -qE ': 4 layers, [0-9.]+ MB in [0-9.]+ s$' "$dir/out"
moe inspect "$pack"
judge "moe inspect of it: $(cat "$dir/out" "$dir/err")" grep -q "^layers      4, damaged 0$" "$dir/out"
moe generate "$good" "Once upon a time" --max-tokens 12
cp "$dir/out" "$dir/plain"
for option in "--packed $pack" "--packed $pack --no-mmap" "--weights packed" "--weights mapped" "--weights auto"; do
    # shellcheck disable=SC2086
    moe generate "$good" "Once upon a time" --max-tokens 12 $option
    judge "moe generate $option: another text" cmp -s "$dir/plain" "$dir/out"
    judge "moe generate $option does not say where the weights lie" grep -q "^weights " "$dir/err"
done
# One bit of each kind of byte is flipped: magic, byte order, version, sizes, the table, the texts, a layer.
damaged() {
    python3 - "$pack" "$dir/damaged" "$1" << 'END'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[int(sys.argv[3])] ^= 16
open(sys.argv[2], "wb").write(data)
END
}
damaged 0
refuses 1 "begins with" "moe-pack" -- generate "$good" hello --packed "$dir/damaged"
damaged 8
refuses 3 "byte order 01020314" "01020304" -- generate "$good" hello --packed "$dir/damaged"
damaged 12
refuses 1 "version 17" "reads 1" -- generate "$good" hello --packed "$dir/damaged"
damaged 20
refuses 1 "bytes, written were" -- generate "$good" hello --packed "$dir/damaged"
for at in 32 64 112 280 400 4000; do # checksum, a source, a part, texts, zeros after them
    damaged $at
    refuses 1 "the head has the checksum" "written was" -- stats "$good" --text "$dir/text" --packed "$dir/damaged"
done
damaged 5000000
refuses 1 "layer 1: " "has the checksum" -- generate "$good" hello --packed "$dir/damaged"
moe inspect "$dir/damaged"
judge "moe inspect of a damaged layer: exit $code, $(cat "$dir/out")" \
    eval '[ $code = 1 ] && grep -q "^layers      4, damaged 1$" "$dir/out"'
head -c 4000000 "$pack" > "$dir/damaged"
refuses 1 "4000000 bytes, written were" -- generate "$good" hello --packed "$dir/damaged"
cp "$pack" "$dir/damaged" && printf x >> "$dir/damaged"
refuses 1 "bytes, written were" -- inspect "$dir/damaged"
: > "$dir/damaged"
refuses 1 "0 bytes, the header alone takes 64" -- generate "$good" hello --packed "$dir/damaged"
refuses 1 "No such file" -- generate "$good" hello --packed "$dir/absent"
refuses 1 "begins with" -- generate "$good" hello --packed "$good/$shard"
# Of another checkpoint: one that was trained further.
copy && edit byte "$shard" model.layers.0.mlp.experts.gate_up_proj_blocks 0 255 && train "$shard"
refuses 1 "made from" "identity" "pack again" -- generate "$dir/m" hello --packed "$pack"
refuses 2 "give --weights or --packed, not both" -- generate "$good" hello --packed "$pack" --weights auto
mkdir "$dir/dense" && echo '{}' > "$dir/dense/config.json"
printf '\104\0\0\0\0\0\0\0{"model.layers.0.w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}x' > "$dir/dense/model.safetensors"
refuses 1 "no layer of 1 has experts" -- pack "$dir/dense"
refuses 1 "No such file" -- pack "$good" --out "$dir/absent/x"
judge "nothing is left of a pack that failed" eval '[ ! -e "$dir/absent" ] && [ -z "$(ls "$dir" | grep "\.tmp$")" ]'
cp "$pack" "$dir/before"
moe pack "$good" --out "$pack" --json
judge "moe pack --json: $(cat "$dir/out")" python3 -c "import json, sys; v = json.load(open(sys.argv[1])); assert v['layers'] == 4 and v['bytes'] > 0" "$dir/out"
judge "packing twice gives other bytes" cmp -s "$dir/before" "$pack"
rm -r "$dir/m" "$dir/before" "$dir/damaged" "$dir/plain" "$dir/dense" "$pack"

# ---- a wrong prompt, a wrong text --------------------------------------------------------------
not_utf8=$'ab\xff'
refuses 1 "prompt 1" "not UTF-8 at byte 2" -- generate "$good" "$not_utf8"
refuses 1 "prompt 2" "not UTF-8 at byte 2" -- generate "$good" hello "$not_utf8"
printf '%s' "$not_utf8" > "$dir/bad"
refuses 1 "standard input: " "not UTF-8 at byte 2" -- generate "$good" - < "$dir/bad"
refuses 1 "$dir/bad: " "not UTF-8 at byte 2" -- stats "$good" --text "$dir/bad"
refuses 1 "prompt 1" "empty" -- generate "$good" ""
refuses 1 "standard input: " "empty" -- generate "$good" - < /dev/null
refuses 1 "/dev/null: " "empty" -- stats "$good" --text /dev/null
truncate -s 67108865 "$dir/bad" # no byte of it is on the disk
refuses 1 "$dir/bad: " "more than 67108864 bytes" -- stats "$good" --text "$dir/bad"
refuses 1 "/nonexistent: " "No such file" -- stats "$good" --text /nonexistent
refuses 1 "prompt 1" "tokens" "512" -- generate "$good" "$(head -c 4000 "$good/val.txt")"
refuses 1 "prompt 2" "tokens" "512" -- generate "$good" hello "$(head -c 4000 "$good/val.txt")"
for bad in 0 -1 "" 3x 0x3 1e2 99999999999999999999 nan many; do
    refuses 2 "--max-tokens \"$bad\"" -- generate "$good" hello --max-tokens "$bad"
done
for bad in -1 nan inf 1e400 "" 1x; do
    refuses 2 "--temperature \"$bad\"" -- generate "$good" hello --temperature "$bad"
done
for bad in 0 1.01 -0.5 nan ""; do
    refuses 2 "--top-p \"$bad\"" -- generate "$good" hello --top-p "$bad"
done
refuses 2 "--seed \"-1\"" -- generate "$good" hello --seed -1
refuses 2 "unknown option \"-n\"" -- generate "$good" -n 3 hello
refuses 3 "hip" -- generate "$good" hello --device hip
refuses 2 "--threads" "\"0\"" -- generate "$good" hello --threads 0
refuses 2 "--activation" "\"nobody\"" -- generate "$good" hello --activation nobody
refuses 2 "unknown option \"--what\"" -- generate "$good" hello --what
refuses 2 "--window" "\"1\"" -- stats "$good" --text "$dir/text" --window 1
refuses 2 "a prompt" -- generate "$good"
refuses 2 "the folder of a model" -- stats --text "$dir/text"
refuses 2 "--text" -- stats "$good"
refuses 2 "--csv" "--svg" -- stats "$good" --text "$dir/text" --csv --svg

# ---- no room, nobody who reads, Ctrl-C ---------------------------------------------------------
if [ -w /dev/full ]; then
    for arguments in "generate $good hello --max-tokens 3" "generate $good hello there --max-tokens 3" \
        "stats $good --text $dir/text" "stats $good --text $dir/text --svg" "inspect $good" "explain $good" \
        "info" "check --list" "--version" "--help" "stats --help"; do
        # shellcheck disable=SC2086
        "$moe" $arguments > /dev/full 2> "$dir/err"
        code=$?
        judge "full disk: moe $arguments: exit $code, $(cat "$dir/err")" \
            eval '[ "$code" = 1 ] && complains "writ" "No space left"'
    done
else
    echo "no /dev/full here: full disks are left out"
fi
input=$good/reference.safetensors:p0.l2.moe_in_bf16
run=(run "$good" --layer 2 --input "$input" --output)
refuses 1 "$dir/absent/y" "No such file" -- "${run[@]}" "$dir/absent/y"
refuses 1 "$dir/text/y" "Not a directory" -- "${run[@]}" "$dir/text/y"
judge "files left by moe run" [ "$(cd "$dir" && echo ./*)" = "./bad ./err ./good ./out ./text" ]
mkdir "$dir/locked" "$dir/small"
chmod a-w "$dir/locked"
if [ -w "$dir/locked" ]; then
    echo "this user writes everywhere: a locked folder is left out"
else
    refuses 1 "$dir/locked/y" "Permission denied" -- "${run[@]}" "$dir/locked/y"
fi
if mount -t tmpfs -o size=32k none "$dir/small" 2> /dev/null; then
    echo kept > "$dir/small/y"
    refuses 1 "$dir/small/y" "No space left" -- "${run[@]}" "$dir/small/y"
    judge "a full disk: the old file is kept" [ "$(cat "$dir"/small/*)" = kept ]
    umount "$dir/small"
else
    echo "no file system can be mounted: a full one is left out"
fi
# Ends while it writes: the text is whole lines, and one line says how far it came.
"$moe" generate "$good" "The old" --max-tokens 500 > "$dir/out" 2> "$dir/err" &
pid=$!
for ((i = 0; i < 500; i++)); do
    [ "$(wc -c < "$dir/out")" -gt 20 ] && break
    sleep 0.01
done
kill -INT "$pid"
wait "$pid"
code=$?
judge "Ctrl-C: exit $code, want 130" [ "$code" = 130 ]
judge "Ctrl-C: $(cat "$dir/err")" complains "interrupted after " " tokens"
judge "Ctrl-C: the text begins with the prompt" [ "$(head -c 7 "$dir/out")" = "The old" ]
judge "Ctrl-C: the text ends with a newline" [ -z "$(tail -c 1 "$dir/out")" ]
# A reader that goes away ends the program, silently.
{
    env --default-signal=PIPE "$moe" generate "$good" hello --max-tokens 40 2> "$dir/err"
    echo $? > "$dir/code"
} | head -c 1 > "$dir/out"
judge "closed pipe: exit $(cat "$dir/code"), want 141, as shells report SIGPIPE" [ "$(cat "$dir/code")" = 141 ]
judge "closed pipe: $(cat "$dir/err")" [ -z "$(complaints)" ]

# ---- what works --------------------------------------------------------------------------------
# says TEXT ARGUMENTS: `moe generate` gives that text.
says() {
    local want=$1
    shift
    moe generate "$good" "$@"
    judge "moe generate $*: exit $code, \"$(cat "$dir/out")\", want \"$want\"; $(cat "$dir/err")" \
        eval '[ "$code" = 0 ] && [ "$(cat "$dir/out")" = "$want" ] && [ -z "$(complaints)" ]'
}
text_of() {
    "$moe" generate "$good" "$@" 2> "$dir/err"
}
one=$(text_of "The old house" --max-tokens 12)
two=$(text_of "She was" --max-tokens 12)
dashes=$(printf -- '--help me' | text_of - --max-tokens 6)
judge "a text begins with its prompt" eval '[[ $one == "The old house"?* && $two == "She was"?* && $dashes == "--help me"?* ]]'
says "$one"$'\n\n'"$two" "The old house" "She was" --max-tokens 12
says "$two"$'\n\n'"$one"$'\n\n'"$two" "She was" "The old house" "She was" --max-tokens 12 --threads 2
says "$one" "The old house" --max-tokens 12 --threads 1
says "$one" --threads 2 --max-tokens 12 "The old house"
says "$one" "The old house" --max-tokens 12 --no-mmap
says "$dashes" --max-tokens 6 -- "--help me"
printf 'She was' > "$dir/prompt"
says "$two" - --max-tokens 12 < "$dir/prompt"
says "$one"$'\n\n'"$two" "The old house" - --max-tokens 12 < "$dir/prompt"
# The characters of a prompt's text come as they are made, not all at the end.
mkfifo "$dir/pipe"
"$moe" generate "$good" "The old" --max-tokens 500 > "$dir/pipe" 2> "$dir/err" &
pid=$!
exec 3< "$dir/pipe"
first=$(head -c 30 <&3)
judge "streaming: a text's beginning comes before its end" kill -INT "$pid"
cat <&3 > "$dir/out"
exec 3<&-
wait "$pid"
judge "streaming: exit $?, want 130; \"$first\"" [ $? = 130 ]
# Drawn text: a seed's own, the same each time.
copy && edit json config.json max_position_embeddings 40
moe generate "$dir/m" word --max-tokens 2000
judge "a text ends at the context: exit $code, $(cat "$dir/err")" \
    eval '[ "$code" = 0 ] && complains "prompt 1" "context of 40 tokens is full after 39"'
judge "help of a command" [ "$("$moe" stats --help | head -c 13)" = "moe stats DIR" ]
hot=(She --max-tokens 20 --temperature 1 --seed)
says "$(text_of "${hot[@]}" 7)" "${hot[@]}" 7
judge "another seed, another text" [ "$(text_of "${hot[@]}" 7)" != "$(text_of "${hot[@]}" 8)" ]
says "$one" "The old house" --max-tokens 12 --temperature 0 --seed 9

# json PYTHON_CONDITION ARGUMENTS: the output parses, as one value `v` for which this holds.
json() {
    local holds=$1
    shift
    moe "$@"
    judge "moe $*: exit $code, want 0, JSON with $holds" eval '[ "$code" = 0 ] && python3 -c "
import json, sys
v = json.load(open(sys.argv[1], encoding=\"utf-8\"))
sys.exit(not eval(sys.argv[2]))" "$dir/out" "$holds"'
}
odd=$'A "quote\\ and\ttab,\nline: \xc3\xa9\x7f'
printf '%s' "$odd" > "$dir/odd"
json "[r['text'] != '' for r in v['results']] == [True] * 2 and len(v['layers']) == 4" \
    generate "$good" "The old" "She was" --max-tokens 3 --json
json "v['activation'] == 'i16b32'" generate "$good" "The old" --max-tokens 3 --json
json "v['activation'] == 'none'" generate "$good" "The old" --max-tokens 3 --json --activation none
json "v['activation'] == 'i8b32'" stats "$good" --text "$dir/text" --json --activation i8b32
json "v['activation'] == 'i8b128'" generate "$good" "The old" --max-tokens 3 --json --activation i8b128
json "v['results'][0]['prompt'].encode() == open('$dir/odd', 'rb').read()" generate "$good" "$odd" --max-tokens 3 --json
json "all(sum(l['counts']) == v['tokens'] * v['top_k'] for l in v['layers'])" \
    stats "$good" --text "$dir/text" --json
json "v['moe_layers'] == 4 and v['failed_layers'] == 0" inspect "$good" --json
json "len(v['tensors']) > 10" inspect "$good/reference.safetensors" --json
json "v != {}" explain "$good" --json
json "v != {}" info --json
json "v['failed'] == 0 and v['passed'] >= 1" check --kernel layer-7 --json

moe stats "$good" --text "$dir/text" --csv
judge "moe stats --csv: a line for each expert of each layer, all choices counted" python3 - "$dir/out" \
    "$("$moe" stats "$good" --text "$dir/text" | head -1)" << 'END'
import csv, re, sys
rows = list(csv.DictReader(open(sys.argv[1])))
tokens, top_k, experts = map(int, re.match(r"(\d+) tokens, (\d+) of (\d+) experts", sys.argv[2]).groups())
layers = 4
places = [(int(r["layer"]), int(r["expert"])) for r in rows]
assert places == [(l, e) for l in range(layers) for e in range(experts)], len(rows)
assert sum(int(r["count"]) for r in rows) == tokens * top_k * layers
END
moe stats "$good" --text "$dir/text" --svg
judge "moe stats --svg: an SVG with a cell for each expert of each layer" python3 - "$dir/out" << 'END'
import sys
import xml.etree.ElementTree as xml
root = xml.parse(sys.argv[1]).getroot()
assert root.tag == "{http://www.w3.org/2000/svg}svg", root.tag
assert sum(t.text.startswith("layer ") for t in root.iter("{http://www.w3.org/2000/svg}title")) == 4 * 32
END
"$moe" stats "$good" --text - --csv < "$dir/text" > "$dir/again" 2> "$dir/err"
"$moe" stats "$good" --text "$dir/text" --csv --threads 1 --no-mmap > "$dir/once" 2> "$dir/err"
judge "moe stats: standard input counts as the file does" cmp -s "$dir/again" "$dir/once"
judge "the model that was given is as it was" diff -r "$2/tiny-gpt-oss" "$good"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
