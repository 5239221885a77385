#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the AMD kernels cost on paper: hip_cost.py BUILD > docs/hip-cost.md

The emulator counts which instructions a wave executes; the difference between two lengths of K is what a slice
of 128 k takes, the rest of a tile is what each tile takes beside. With public figures of the two devices that
makes a bound for each product of a layer; nothing here was measured on silicon.
"""
import math
import os
import re
import subprocess
import sys

# Public figures: compute units, clock in Hz, bytes per second of memory, dense FLOP per second.
DEVICES = {
    "MI300X": ("gfx942", 304, 2.1e9, 5.3e12, {"bf16": 1307e12, "fp8": 2615e12}),
    "MI355X": ("gfx950", 256, 2.4e9, 8.0e12, {"bf16": 2.5e15, "fp8": 5.0e15, "fp4": 10.0e15}),
}
# Cycles of a matrix instruction on one SIMD.
MATRIX = {"v_mfma_f32_16x16x16_bf16": 16, "v_mfma_f32_16x16x32_bf16": 16, "v_mfma_f32_16x16x32_fp8_fp8": 16,
          "v_mfma_f32_16x16x128_f8f6f4": 32, "v_mfma_scale_f32_16x16x128_f8f6f4": 32}
VECTOR = 4     # cycles of a vector instruction: 64 lanes on 16 units
LDS = 128      # bytes per cycle of a compute unit
VECTOR_L1 = 64 # bytes per cycle of a compute unit from its first cache
WAVES = 4      # of a block, one on each SIMD

# Name, H, I, experts, top k; weights' format, activations, and unit of the peak by architecture.
LAYERS = [
    ("gpt-oss-20b, mxfp4", 2880, 2880, 32, 4, "mxfp4", "none", 4.25, {"gfx942": "bf16", "gfx950": "bf16"}),
    ("gpt-oss-120b, mxfp4", 2880, 2880, 128, 4, "mxfp4", "none", 4.25, {"gfx942": "bf16", "gfx950": "bf16"}),
    ("gpt-oss-120b, mxfp4 x mxfp8", 2880, 2880, 128, 4, "mxfp4", "mx_floor:e4m3fn", 4.25, {"gfx950": "fp8"}),
    ("gpt-oss-120b, mxfp4 x mxfp4", 2880, 2880, 128, 4, "mxfp4", "mx_floor", 4.25, {"gfx950": "fp4"}),
    ("qwen3-30b-a3b, bf16", 2048, 768, 128, 8, "bf16", "none", 16, {"gfx942": "bf16", "gfx950": "bf16"}),
    ("mixtral-8x7b, bf16", 4096, 14336, 8, 2, "bf16", "none", 16, {"gfx942": "bf16", "gfx950": "bf16"}),
    ("deepseek-v3, fp8 128x128", 7168, 2048, 256, 8, None, None, 8, {"gfx942": "fp8", "gfx950": "fp8"}),
]
FP8 = {"gfx942": ("e4m3fnuz_block", "fp8_group_recip:e4m3fnuz"), "gfx950": ("e4m3fn_block", "fp8_group_recip")}
TOKENS = [1, 8, 32, 128, 512, 2048, 8192]
FEW, MANY, OUTPUTS, SLICE = 16, 64, 64, 128


def run(build, arch, weights, act, hidden, tokens):
    """Counts of the first product's launch: {mnemonic: times}, and the kernel's name."""
    env = dict(os.environ, MOE_PLUGIN_PATH=build + "/libmoe_hip.so", MOE_EMULATOR_ARCH=arch, MOE_EMULATOR_STATS="2",
               MOE_HIP_LIB=build + "/tests/emulator/libamdhip64.so")
    command = [build + "/moe", "bench", "--device", "hip", "--shape", "%d,128,1,1" % hidden, "--format", weights,
               "--tokens", str(tokens), "--repeats", "1", "--sets", "1"]
    if act != "none":
        command += ["--activation", act]
    text = subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True).stderr
    launches = re.split(r"emulator: kernel (\w+): \d+ instructions of waves\n", text)[1:]
    for name, body in zip(launches[::2], launches[1::2]):
        if name.startswith("moek_mfma"):
            return name, {m: int(n) for m, n in re.findall(r"emulator: (\w+) (\d+)\n", body)}
    raise SystemExit("no product on matrix units of %s x %s on %s" % (weights, act, arch))


def bytes_of(mnemonic):
    """Bytes that a memory or LDS instruction moves for 64 lanes."""
    m = re.search(r"_b(\d+)$|_(?:dword|u?short|u?byte|i8|u8|i16|u16)(?:x(\d))?", mnemonic)
    words = int(m.group(1)) / 32 if m and m.group(1) else int(m.group(2)) if m and m.group(2) else 1
    return 64 * 4 * words * (2 if "read2" in mnemonic or "write2" in mnemonic else 1)


def cycles(counts, fp4):
    """Cycles of a tile by what makes them: {unit: cycles of its busiest SIMD, or of the compute unit}."""
    out = {"matrix": 0, "vector": 0, "scalar": 0, "lds": 0, "memory": 0}
    for name, n in counts.items():
        if name in MATRIX:
            out["matrix"] += n / WAVES * (16 if fp4 else MATRIX[name])
        elif name.startswith("v_"):
            out["vector"] += n / WAVES * VECTOR
        elif name.startswith("ds_"):
            out["lds"] += n * bytes_of(name) / LDS
        elif name.startswith(("global_", "flat_", "buffer_")):
            out["memory"] += n * bytes_of(name) / VECTOR_L1
        else:
            out["scalar"] += n / WAVES * VECTOR
    return out


def kernel_costs(build, arch, weights, act):
    """For few and for many rows: name, cycles of a slice, cycles of a tile beside its slices."""
    out = {}
    fp4 = act == "mx_floor"
    for rows in (FEW, MANY):
        tokens = 1 if rows == FEW else MANY
        (name, short), (_, long) = (run(build, arch, weights, act, k, tokens) for k in (1024, 2048))
        slices = (2048 - 1024) // SLICE
        tiles = 256 // OUTPUTS
        each = cycles({m: max(0, long.get(m, 0) - short.get(m, 0)) / slices / tiles for m in long}, fp4)
        whole = cycles({m: n / tiles for m, n in short.items()}, fp4)
        out[rows] = (name, each, {u: max(0, whole[u] - each[u] * 1024 / SLICE) for u in whole})
    return out


def spread(tokens, experts, top_k):
    """Experts that have rows, and tiles of rows by their height, in the mean of uniform routing."""
    p = top_k / experts
    hit = experts * (1 - (1 - p) ** tokens)
    few = tokens * top_k <= FEW * min(experts, tokens * top_k)
    height = FEW if few else MANY
    mean = tokens * p
    if tokens == 1:
        return hit, height, hit
    sigma = math.sqrt(tokens * p * (1 - p))
    blocks = 0.0
    if mean < 50: # binomial, in logarithms
        for r in range(1, min(tokens, 400) + 1):
            log = (math.lgamma(tokens + 1) - math.lgamma(r + 1) - math.lgamma(tokens - r + 1) + r * math.log(p) +
                   (tokens - r) * math.log1p(-p))
            blocks += math.exp(log) * math.ceil(r / height)
    else:
        for i in range(-40, 41):
            weight = math.exp(-((i / 10) ** 2) / 2)
            blocks += weight * math.ceil(max(1, mean + sigma * i / 10) / height)
        blocks /= sum(math.exp(-((i / 10) ** 2) / 2) for i in range(-40, 41))
    return hit, height, experts * blocks


def product(device, costs, n, k, bits, hit, height, blocks, tokens, top_k, unit):
    """Bytes, FLOP, seconds of memory, of the peak, of instructions; and which unit those are of."""
    _, units, clock, memory, peaks = DEVICES[device]
    _, each, rest = costs[height]
    nbytes = hit * n * k * bits / 8
    flop = 2 * tokens * top_k * n * k
    slices = math.ceil(k / SLICE)
    by_unit = {u: each[u] * slices + rest[u] for u in each}
    worst = max(by_unit, key=by_unit.get)
    tiles = math.ceil(blocks * math.ceil(n / OUTPUTS))
    return nbytes, flop, nbytes / memory, flop / peaks[unit], math.ceil(tiles / units) * by_unit[worst] / clock, worst


def number(us):
    return "%.3g" % us if us < 1000 else "%.0f" % us


def main():
    build = os.path.abspath(sys.argv[1])
    print(__doc__.split("\n\n")[0] and open(os.path.join(os.path.dirname(__file__), "hip_cost.md")).read().rstrip())
    known = {}
    for device, (arch, *_rest) in DEVICES.items():
        print("\n## %s (%s)\n" % (device, arch))
        print("| layer | tokens | GB | GFLOP | floor, us | instructions, us | of | predicted, us |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, hidden, inter, experts, top_k, weights, act, bits, units in LAYERS:
            if arch not in units:
                continue
            weights, act = FP8[arch] if weights is None else (weights, act)
            key = (arch, weights, act)
            if key not in known:
                known[key] = kernel_costs(build, arch, weights, act)
            for tokens in TOKENS:
                hit, height, blocks = spread(tokens, experts, top_k)
                total = [0.0] * 5
                of = set()
                predicted = 0.0
                for n, k in ((2 * inter, hidden), (hidden, inter)):
                    *values, worst = product(device, known[key], n, k, bits, hit, height, blocks, tokens, top_k,
                                             units[arch])
                    total = [a + b for a, b in zip(total, values)]
                    of.add(worst)
                    predicted += max(values[2:])
                print("| %s | %d | %.3g | %.3g | %s | %s | %s | %s |" % (
                    name, tokens, total[0] / 1e9, total[1] / 1e9, number(max(total[2], total[3]) * 1e6),
                    number(total[4] * 1e6), " ".join(sorted(of)), number(predicted * 1e6)))
    print("\n## Kernels: cycles of a slice of 128 k, and of a tile beside its slices\n")
    print("| kernel | | matrix | vector | scalar | LDS | memory | tile: vector | tile: memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (arch, _, _), costs in sorted(known.items()):
        for rows in (FEW, MANY):
            name, each, rest = costs[rows]
            print("| `%s` | %s | %s | %.0f | %.0f |" % (
                name, arch, " | ".join("%.0f" % each[u] for u in ("matrix", "vector", "scalar", "lds", "memory")),
                rest["vector"], rest["memory"]))


if __name__ == "__main__":
    main()
