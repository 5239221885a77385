#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# moe bench: its refusals, its JSON, its comparison: test_bench_cli.sh PROGRAM GOLDEN PLUGIN MODEL
# PLUGIN is a device whose memory the host may not touch.
set -u
moe=$1
golden=$2
plugin=$3
model=$4
unset MOE_PLUGIN_PATH MOE_FAR_BYTES MOE_FAR_CLOCK
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0
failed=0
expect() { # exit code, text on either stream, arguments
    local code=$1 text=$2 out status
    shift 2
    out=$("$moe" bench "$@" 2>&1)
    status=$?
    if [ "$status" = "$code" ] && printf '%s' "$out" | grep -qF -- "$text"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: moe bench $*: exit $status, want $code; want text: $text; got: $(printf '%s' "$out" | head -3)"
    fi
}
tiny="--shape 64,64,4,2 --format bf16 --repeats 3 --sets 2"
expect 2 "bench needs --shape, or --model"
expect 2 "say --format" --shape 64,64,4,2
expect 2 "neither H,I,E,k nor one of gpt-oss-20b gpt-oss-120b qwen3-30b-a3b mixtral-8x7b deepseek-v3 deepseek-v3-ep8" --shape nobody --format bf16
expect 2 "--format \"mxfp5\" is not a format" --shape 64,64,4,2 --format mxfp5
expect 2 "--format2 \"mxfp5\" is not a format" $tiny --format2 mxfp5
expect 2 "--activation \"nobody\" is not a quantiser" $tiny --activation nobody
expect 2 "--activation \"nobody\" is not a quantiser" $tiny --activation none,nobody
expect 2 "--glu \"tanh\" is not an activation" $tiny --glu tanh
expect 2 "--x \"f64\" is not one of f32, bf16, f16" $tiny --x f64
expect 2 "--det \"always\" is not one of none, run, batch, kernel" $tiny --det always
expect 2 "--routing \"skewed\" is not one of uniform, zipf" $tiny --routing skewed
expect 2 "--tokens \"0\" is not a whole number in 1..1048576" $tiny --tokens 0
expect 2 "--tokens \"\" is not a whole number in 1..1048576" $tiny --tokens 1,,2
expect 2 "has more than 32 numbers" $tiny --tokens "$(seq -s , 1 33)"
expect 2 "--repeats \"0\" is not a whole number in 1..100000" $tiny --repeats 0
expect 2 "--sets \"-1\" is not a whole number in 1..100000" $tiny --sets -1
expect 2 "is not one of cpu, cuda, hip" $tiny --device tpu
expect 3 "\"hip\": " $tiny --device hip
expect 1 "top_k = 9, must be 1..4" --shape 64,64,4,9 --format bf16
expect 3 "fp8_tensor" --shape 64,64,4,2 --format e4m3fn_tensor --activation fp8_tensor
expect 2 "--compare takes two files" --compare "$golden/bench_a.json"
expect 2 "--compare takes two files" --compare "$golden/bench_a.json" "$golden/bench_b.json" --tokens 1
expect 2 "files are for --compare and --plot" $tiny "$golden/bench_a.json"
expect 2 "--routing-only runs no product" --shape 64,64,4,2 --routing-only --format bf16
expect 2 "--routing-only runs no product" --shape 64,64,4,2 --routing-only --error
expect 2 "--routing-only runs no product" --shape 64,64,4,2 --routing-only --no-floor
expect 1 "/absent/a.json: opening a file beside it: No such file" $tiny --no-floor --tokens 1 --json "$dir/absent/a.json"
expect 0 "of floor" $tiny --tokens 1
expect 0 "routing alone" --shape 64,64,4,2 --routing-only --tokens 3 --repeats 2 --json "$dir/routing.json"
expect 0 "zipf" $tiny --no-floor --tokens 8 --routing zipf --json "$dir/zipf.json"
expect 0 "error" $tiny --tokens 1,8,9 --error --threads 2 --seed 7 --json "$dir/a.json"
expect 0 "mxfp4 / bf16" --shape 64,96,4,2 --format mxfp4 --format2 bf16 --glu swigluoai --tokens 4 --sets 1 --repeats 1 --x f32 --no-floor --error --json "$dir/mixed.json"
expect 0 "e4m3fn_block x fp8_group_div / e4m3fn_block x fp8_group_div" --shape 256,128,4,2 --format e4m3fn_block --tokens 4 --no-floor --sets 1 --repeats 1
expect 0 "e4m3fn_block / e4m3fn_block x fp8_group_recip" --shape 256,128,4,2 --format e4m3fn_block --activation none,fp8_group_recip --tokens 4 --no-floor --sets 1 --repeats 1
for formats in "f16 e4m3fn_tensor" "e5m2_channel e4m3fnuz_block" "uint8_group int4_group" "mxfp6_e2m3 nvfp4"; do
    expect 0 "error" --shape 48,34,3,2 --format ${formats% *} --format2 ${formats#* } --tokens 5 --sets 1 --repeats 1 \
        --no-floor --error --json "$dir/of-${formats% *}.json"
done
export MOE_PLUGIN_PATH=$plugin
expect 3 "moe: backend far cannot time: it has no clock of its device" $tiny --device ext
export MOE_FAR_CLOCK=1
expect 1 "far: no memory for" --shape 4096,4096,64,2 --format f32 --device ext
expect 0 "moe: backend far measures no ceilings: floors are left out" $tiny --device ext --tokens 1,8 --threads 1 --error --json "$dir/far.json"
expect 0 "routing alone" --shape 64,64,4,2 --routing-only --tokens 3 --repeats 2 --device ext
unset MOE_PLUGIN_PATH MOE_FAR_CLOCK
expect 0 "3 rows compared, 0 of A and 0 of B have no counterpart" --compare "$dir/a.json" "$dir/a.json"
expect 1 "no row of $dir/a.json (3 rows) is in $dir/mixed.json (1 rows)" --compare "$dir/a.json" "$dir/mixed.json"
expect 1 "No such file" --compare "$dir/a.json" /nonexistent
# A says 2, 4 and 8 ms with quartiles 10 % around; B 1 ms, 4.2 ms and another row.
expect 0 "   0.500   0.409 ..  0.611  faster" --compare "$golden/bench_a.json" "$golden/bench_b.json"
expect 0 "   1.050   0.859 ..  1.283" --compare "$golden/bench_a.json" "$golden/bench_b.json"
expect 0 "2 rows compared, 1 of A and 1 of B have no counterpart" --compare "$golden/bench_a.json" "$golden/bench_b.json"
expect 0 "   2.000   1.636 ..  2.444  slower" --compare "$golden/bench_b.json" "$golden/bench_a.json"
expect 2 "--plot takes files that --json wrote" --plot "$dir/a.svg"
expect 2 "--plot takes files that --json wrote" --plot "$dir/a.svg" "$dir/a.json" --tokens 1
expect 2 "--plot takes files that --json wrote" --plot "$dir/a.svg" "$dir/a.json" "$dir/a.json" --compare
"$moe" bench --plot "$dir/a.svg" "$dir/a.json" "$dir/mixed.json" "$dir/far.json" "$dir/zipf.json"
expect 0 "<svg" --plot - "$dir/routing.json"
expect 1 "No such file" --plot "$dir/b.svg" "$dir/a.json" /nonexistent
expect 1 "with 1 tokens, 0 threads" --plot "$dir/b.svg" "$golden/bench_a.json"
expect 1 "/absent/b.svg: opening a file beside it: No such file" --plot "$dir/absent/b.svg" "$dir/a.json"
# A picture is well-formed, and has a point for each row.
python3 - "$dir/a.svg" <<'PYTHON' && passed=$((passed + 1)) || { failed=$((failed + 1)); echo "FAILED: the picture"; }
import sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
points = [e for e in root.iter() if e.tag.endswith("circle")]
assert root.tag.endswith("svg") and len(points) == 2 * (3 + 1 + 2 + 1), len(points)
PYTHON
[ ! -e "$dir/b.svg" ] && passed=$((passed + 1)) || { failed=$((failed + 1)); echo "FAILED: half a picture"; }
# Without --activation, a CPU's integer products stand beside the strict ones.
expect 0 "mxfp4 x i16b32 / mxfp4 x i16b32" --shape 64,64,4,2 --format mxfp4 --tokens 2 --no-floor --sets 1 --repeats 1 --threads 1,2 \
    --json "$dir/three.json"
# Of a list, every number is looked at before the first is measured.
for list in 1,,2 1,0 1, 2,1025; do
    expect 2 "moe: --threads" --shape 64,64,4,2 --format bf16 --tokens 2 --threads $list --json "$dir/list.json"
    "$moe" bench --shape 64,64,4,2 --format bf16 --tokens 2 --threads $list 2> /dev/null | grep -q . && {
        echo "FAILED: --threads $list measured something first"
        failed=$((failed + 1))
    }
done
expect 0 "int8_group x i8b32 / int8_group x i8b32" --shape 64,64,4,2 --format int8_group --tokens 2 --no-floor --sets 1 --repeats 1
expect 0 "mxfp4 x i8b128 / mxfp4 x i8b128" --shape 64,64,4,2 --format mxfp4 --activation i8b128 --tokens 2 --no-floor --sets 1 --repeats 1
expect 0 "6 rows compared, 0 of A and 0 of B" --compare "$dir/three.json" "$dir/three.json"
expect 0 "threads</text>" --plot - "$dir/three.json"
expect 1 "must be above 0" --compare "$golden/bench_zero.json" "$golden/bench_zero.json"
printf '{"rows": {}}' > "$dir/broken.json"
expect 1 "rows" --compare "$dir/broken.json" "$dir/broken.json"
"$moe" bench $tiny --no-floor --tokens 1 --json - > "$dir/stdout.json" 2> "$dir/stderr" && [ ! -s "$dir/stderr" ] || {
    echo "FAILED: --json - says on stderr: $(cat "$dir/stderr")"
    failed=$((failed + 1))
}
python3 - "$dir" << 'END' || failed=$((failed + 1))
import glob, json, math, sys

def rows(name):
    return json.load(open(f"{sys.argv[1]}/{name}.json"))["rows"]

def check(what, have, want):
    if have != want:
        sys.exit(f"FAILED: {what} is {have}, want {want}")

a = rows("a")
check("tokens", [r["tokens"] for r in a], [1, 8, 9])
for r in a:
    h, i, e, k, t = r["hidden"], r["inter"], r["experts"], r["top_k"], r["tokens"]
    check("sizes", (h, i, e, k), (64, 64, 4, 2))
    check("words", [r[n] for n in ("shape", "routing", "glu", "x", "level", "device", "routing_only")],
          ["64,64,4,2", "uniform", "silu", "bf16", "kernel", "cpu", False])
    check("formats", (r["format"], r["activation"]), (["bf16"] * 2, ["none"] * 2))
    check("classes", r["arith"], ["fma_c256"] * 2)
    check("counts", (r["sets"], r["repeats"], r["seed"]), (2, 3, 7))
    check("flops", r["flops"], 6 * t * k * h * i)
    check("bytes", r["bytes"], r["experts_hit"] * 6 * h * i + 4 * t * h)
    check("order", 0 < r["ms_q1"] <= r["ms"] <= r["ms_q3"], True)
    check("mean of three", r["ms_q1"] < r["ms_mean"] * 2 and r["ms_mean"] < r["ms_q3"] * 2, True)
    check("experts", k <= r["experts_hit"] <= min(e, k * t), True)
    check("percent", math.isclose(r["percent_of_floor"], 100 * r["floor_ms"] / r["ms"], rel_tol=1e-6), True)
    read, mma = r["ceilings"]["read_gb_per_s"], r["ceilings"]["f32_tflops"]
    floors = (1e-6 * r["bytes"] / read, 1e-9 * r["flops"] / mma)
    check("floor", math.isclose(r["floor_ms"], max(floors), rel_tol=1e-6), True)
    check("kind", r["floor_kind"], "mem" if floors[0] >= floors[1] else "mma")
    check("a product among the kernels", any(n.startswith("moek_ggemm_") for n in r["kernels"]), True)
    check("machine", sorted(r["machine"]), sorted(["device", "isa", "cpu", "cpus", "threads", "last_level_cache", "memory",
                                                   "system", "compiler"]))
    check("threads", r["machine"]["threads"], 2)
    check("version", r["version"], "0.1.0")
    check("command", r["command"].startswith("moe bench --shape 64,64,4,2 --format bf16"), True)
    check("commit is there", "commit" in r, True)
    check("error", r["error"] is None if t > 8 else 1e-3 < r["error"] < 5e-3, True)
routing = rows("routing")[0]
check("no layer", [routing[n] for n in ("routing_only", "format", "arith", "floor_ms", "bytes", "flops")],
      [True] + [None] * 5)
check("kernels of the routing", sorted(n.split("_")[1] for n in routing["kernels"]), ["route", "sort"])
check("zipf", rows("zipf")[0]["routing"], "zipf")
check("to standard output", rows("stdout")[0]["tokens"], 1)
far = rows("far")
check("the device's clock", [(r["ms_q1"], r["ms"], r["ms_q3"]) for r in far], [(750, 1000, 1250)] * 2)
check("no floor", [(r["floor_ms"], r["floor_kind"], r["percent_of_floor"], r["ceilings"]) for r in far],
      [(None, None, None, {})] * 2)
check("errors", all(1e-3 < r["error"] < 5e-3 and r["device"] == "far" for r in far), True)
mixed = rows("mixed")[0]
check("mixed", (mixed["format"], mixed["glu"], mixed["x"]), (["mxfp4", "bf16"], "swigluoai", "f32"))
check("no floor was asked for", (mixed["floor_ms"], mixed["floor_kind"], mixed["percent_of_floor"], mixed["ceilings"]),
      (None, None, None, {}))
check("mixed error", mixed["error"] < 1e-5, True)
check("mixed bytes", mixed["bytes"], mixed["experts_hit"] * (192 * (32 + 2) + 2 * 192 + 2 * 64 * 96 + 2 * 64) + 8 * 4 * 64)
paths = glob.glob(sys.argv[1] + "/of-*.json")
check("files of formats", len(paths), 4)
for path in paths:
    error = json.load(open(path))["rows"][0]["error"]
    check(f"error of {path}: {error}", 1e-3 < error < 5e-3, True)
END
# A whole model.
expect 2 "--model takes --tokens" --model "$model" --format bf16
expect 2 "--model takes --tokens" --model "$model" --shape 64,64,4,2
expect 2 "--context is for --model" $tiny --context 5
expect 2 "--context \"-1\" is not a whole number" --model "$model" --context -1
expect 2 "--activation \"nobody\" is not a quantiser" --model "$model" --activation nobody
expect 2 "513 tokens after 0 others: the model's context is 512" --model "$model" --tokens 1,513
expect 2 "8 tokens after 505 others: the model's context is 512" --model "$model" --tokens 8 --context 505
expect 1 "/absent/config.json" --model "$dir/absent"
expect 0 "mxfp4 x none, 2 threads" --model "$model" --tokens 1 --activation none --repeats 3 --threads 2 --seed 5 --json "$dir/model.json"
expect 0 "1 rows compared, 0 of A and 0 of B" --compare "$dir/model.json" "$dir/model.json"
"$moe" bench --model "$model" --tokens 150 --context 100 --repeats 1 --no-floor --json - > "$dir/model2.json"
python3 - "$dir" "$model" << 'END' || failed=$((failed + 1))
import json, math, sys

def check(what, have, want):
    if have != want:
        sys.exit(f"FAILED: {what} is {have}, want {want}")

config = json.load(open(f"{sys.argv[2]}/config.json"))
H, L, V, E, I, K = (config[n] for n in ("hidden_size", "num_hidden_layers", "vocab_size", "num_local_experts",
                                        "intermediate_size", "num_experts_per_tok"))
wide, narrow = (config[n] * config["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
windows = [config["sliding_window"] if t == "sliding_attention" else 10**9 for t in config["layer_types"]]
expert = sum(n * k // 32 * 17 + 2 * n for n, k in ((2 * I, H), (H, I)))
dense = 2 * (H * (wide + 2 * narrow) + wide + 2 * narrow + wide * H + H + E * H + E)

def judge(row, tokens, context, floors):
    steps = min(64, (512 - context) // tokens)
    first = context + steps // 2 * tokens
    seen = sum(min(p + 1, w) for w in windows for p in range(first, first + tokens))
    parts = {"projections": L * 2 * tokens * H * 2 * (wide + narrow), "attention": 4 * wide * seen,
             "router": L * 2 * tokens * H * E, "experts": L * 6 * tokens * K * H * I, "output": 2 * V * H}
    check("sizes", [row[n] for n in ("shape", "layers", "hidden", "inter", "experts", "top_k", "vocabulary", "format")],
          [sys.argv[2], L, H, I, E, K, V, ["mxfp4"]])
    check("tokens", (row["tokens"], row["context"]), (tokens, context))
    for name, flops in parts.items():
        check(name, math.isclose(row["parts"][name], flops, rel_tol=1e-7), True)
    check("flops", math.isclose(row["flops"], sum(parts.values()), rel_tol=1e-7), True)
    keys = sum(min(first, w - 1) + tokens for w in windows)
    check("bytes", math.isclose(row["bytes"], L * dense + 2 * V * H + 8 * narrow * keys + L * row["experts_hit"] * expert,
                                rel_tol=1e-7), True)
    check("experts", K <= row["experts_hit"] <= min(E, K * tokens), True)
    check("order", 0 < row["ms_q1"] <= row["ms"] <= row["ms_q3"], True)
    check("rate", math.isclose(row["tokens_per_second"], 1e3 * tokens / row["ms"], rel_tol=1e-6), True)
    if floors:
        read, f32 = row["ceilings"]["read_gb_per_s"], row["ceilings"]["f32_tflops"]
        check("of read", math.isclose(row["percent_of_read"], 1e-4 * row["bytes"] / read / row["ms"], rel_tol=1e-6), True)
        check("of f32", math.isclose(row["percent_of_f32"], 1e-7 * row["flops"] / f32 / row["ms"], rel_tol=1e-6), True)
    else:
        check("no floor", [row[n] for n in ("percent_of_read", "percent_of_f32", "floor_ms", "ceilings")],
              [None, None, None, {}])
    check("a product among the kernels", any(n.startswith("moek_ggemm_") for n in row["kernels"]), True)

one = json.load(open(f"{sys.argv[1]}/model.json"))["rows"][0]
judge(one, 1, 256, True)
check("as told", (one["activation"], one["repeats"], one["seed"], one["machine"]["threads"]), (["none"], 3, 5, 2))
check("one token's experts", one["experts_hit"], K)
many = json.load(open(f"{sys.argv[1]}/model2.json"))["rows"][0]
judge(many, 150, 100, False)
check("as moe generate does it", many["activation"], ["i16b32"])
END
[ -z "$(ls "$dir" | grep tmp)" ] || { echo "FAILED: left in the folder: $(ls "$dir")"; failed=$((failed + 1)); }
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
