#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A whole model as transformers runs it on a CPU, beside `moe bench --model`, by turns in one call:

    python3 bench/peers_model.py MODEL --moe build/moe --out FILE [--tokens 1,512] [--threads N] [--rounds N]

Both run steps of one sequence, ids uniform over the vocabulary: T tokens appended to their context (256
tokens before one, none before more), logits of the last alone, and the largest of them. Every round runs
all of moe's activations, then the peer in float32 and in bfloat16 (weights dequantised when it loads),
each for some seconds; a figure is the median over the rounds' medians. The program is to be started on
the CPUs that it may use (taskset)."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import time

import torch
import transformers

DECODE_CONTEXT = 256
SECONDS = 1.5  # of a peer's row in a round
MOST_STEPS = 64  # of a sequence


def load(model, dtype):
    m = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, quantization_config=transformers.Mxfp4Config(dequantize=True))
    return m.eval()


def feed(model, ids, cache):
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    out.logits[0, -1].argmax().item()
    return out.past_key_values


def peer_row(model, tokens, generator):
    """Milliseconds of a step, the median."""
    config = model.config
    room = config.max_position_embeddings
    context = min(DECODE_CONTEXT, room // 2) if tokens == 1 else 0
    steps = min(MOST_STEPS, (room - context) // tokens)

    def draw(count):
        return torch.randint(0, config.vocab_size, (1, count), generator=generator)

    times = []
    begin = None
    with torch.inference_mode():
        while begin is None or time.perf_counter() - begin < SECONDS or len(times) < 3:
            cache = transformers.DynamicCache(config=config)
            if context:
                cache = feed(model, draw(context), cache)
            taken = []
            for _ in range(steps):
                ids = draw(tokens)
                first = time.perf_counter()
                cache = feed(model, ids, cache)
                taken.append(1e3 * (time.perf_counter() - first))
            if begin is None:  # the first sequence warms up
                begin = time.perf_counter()
            else:
                times += taken
    return context, statistics.median(times)


def moe_rows(args, activation):
    command = [args.moe, "bench", "--model", args.model, "--tokens", args.tokens, "--threads", str(args.threads),
               "--json", "-"] + (["--activation", activation] if activation else [])
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--moe", default="build/moe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tokens", default="1,512")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator()
    generator.manual_seed(1)
    peers = {"float32": load(args.model, torch.float32), "bfloat16": load(args.model, torch.bfloat16)}
    figures = {}  # (who, activation or type, tokens) -> the rounds' medians
    last = {}
    for _ in range(args.rounds):
        for activation in (None, "none"):
            for row in moe_rows(args, activation):
                key = ("moe", row["activation"][0], row["tokens"], row["context"])
                figures.setdefault(key, []).append(row["ms"])
                last[key] = row
        for name, model in peers.items():
            for tokens in map(int, args.tokens.split(",")):
                context, ms = peer_row(model, tokens, generator)
                figures.setdefault(("transformers", name, tokens, context), []).append(ms)
    rows = []
    for key, times in figures.items():
        who, form, tokens, context = key
        ms = statistics.median(times)
        row = {"program": who, "form": form, "tokens": tokens, "context": context, "ms": round(ms, 4),
               "ms_of_rounds": [round(t, 4) for t in times], "tokens_per_second": round(1e3 * tokens / ms, 1)}
        if key in last:
            of = last[key]
            row.update({n: of[n] for n in ("flops", "bytes", "version", "commit", "kernels")})
            row["ceilings"] = of["ceilings"]
            row["percent_of_f32"] = round(1e-7 * of["flops"] / of["ceilings"]["f32_tflops"] / ms, 1)
            row["percent_of_read"] = round(1e-4 * of["bytes"] / of["ceilings"]["read_gb_per_s"] / ms, 1)
        rows.append(row)
        print(f"{who:13} {form:9} {tokens:5} tokens after {context:4}: {ms:9.4g} ms, {1e3 * tokens / ms:9.5g} tokens/s")
    machine = next(iter(last.values()))["machine"] if last else {}
    result = {"model": args.model, "rounds": args.rounds, "threads": args.threads, "machine": machine,
              "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
              "command": f"python3 bench/peers_model.py {args.model} --tokens {args.tokens} --threads {args.threads}",
              "rows": rows}
    with open(args.out + ".new", "w") as f:
        f.write(json.dumps(result, indent=1) + "\n")
    os.replace(args.out + ".new", args.out)


if __name__ == "__main__":
    main()
