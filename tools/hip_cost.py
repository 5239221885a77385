#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the AMD kernels cost on paper: hip_cost.py BUILD rewrites the tables of docs/hip-cost.md

The emulator counts which instructions waves execute; the difference between two lengths of K is what 128 k take,
the rest of a tile is what each tile takes beside. With public figures of the two devices that makes a bound for
each product of a layer. Nothing here was measured on silicon.
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
UNIT = 128              # elements of k that costs are stated for
LONG, SHORT = 2048, 1024 # of k, that are counted
OUTPUTS = 256            # of the product that is counted
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(build, arch, weights, act, hidden, tokens):
    """Counts of the first product's launch: {mnemonic: times}, and the kernel's name."""
    env = dict(os.environ, MOE_PLUGIN_PATH=build + "/libmoe_hip.so", MOE_EMULATOR_ARCH=arch, MOE_EMULATOR_STATS="2",
               MOE_HIP_LIB=build + "/tests/emulator/libamdhip64.so")
    command = [build + "/moe", "bench", "--device", "hip", "--shape", "%d,%d,1,1" % (hidden, OUTPUTS // 2), "--format", weights,
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


def tiles_of():
    """{kernel: (outputs, rows) of a tile}, as the table of kernels has them."""
    with open(HERE + "/src/backends/hip/cdna/kernels.def", encoding="utf-8") as f:
        rows = re.findall(r"^MOE_HIP_MFMA\(\w+, *(\w+), *\w+, *\w+, *(\d+), *(\d+)", f.read(), flags=re.M)
    return {name: (int(outputs), int(height)) for name, outputs, height in rows}


class Kernel:
    """What a kernel takes: cycles of UNIT k, and of a tile beside them."""

    def __init__(self, build, arch, weights, act, tokens):
        (self.name, short), (_, long) = (run(build, arch, weights, act, k, tokens) for k in (SHORT, LONG))
        self.outputs, self.rows = tiles_of()[self.name]
        tiles = OUTPUTS // self.outputs
        fp4 = act == "mx_floor"
        self.each = cycles({m: max(0, n - short.get(m, 0)) / ((LONG - SHORT) / UNIT * tiles) for m, n in long.items()},
                           fp4)
        whole = cycles({m: n / tiles for m, n in short.items()}, fp4)
        self.rest = {u: max(0, whole[u] - self.each[u] * SHORT / UNIT) for u in whole}


def kernel_costs(build, arch, weights, act):
    """The kernels for few and for many rows of an expert."""
    return Kernel(build, arch, weights, act, 1), Kernel(build, arch, weights, act, 64)


def spread(tokens, experts, top_k, costs):
    """Experts that have rows, the kernel that runs, and its blocks of rows, in the mean of uniform routing."""
    p = top_k / experts
    hit = experts * (1 - (1 - p) ** tokens)
    few = tokens * top_k <= costs[0].rows * min(experts, tokens * top_k)
    kernel = costs[0] if few else costs[1]
    height = kernel.rows
    mean = tokens * p
    if tokens == 1:
        return hit, kernel, hit
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
    return hit, kernel, experts * blocks


def product(device, kernel, n, k, bits, hit, blocks, tokens, top_k, unit):
    """Bytes, FLOP, seconds of memory, of the peak, of instructions; and which unit those are of."""
    _, units, clock, memory, peaks = DEVICES[device]
    nbytes = hit * n * k * bits / 8
    flop = 2 * tokens * top_k * n * k
    by_unit = {u: kernel.each[u] * math.ceil(k / UNIT) + kernel.rest[u] for u in kernel.each}
    worst = max(by_unit, key=by_unit.get)
    tiles = math.ceil(blocks * math.ceil(n / kernel.outputs))
    return nbytes, flop, nbytes / memory, flop / peaks[unit], math.ceil(tiles / units) * by_unit[worst] / clock, worst


def number(us):
    return "%.3g" % us if us < 1000 else "%.0f" % us


def layers(device, build, known):
    """The table of a device; fills known: {(architecture, weights, activations): kernels}."""
    arch = DEVICES[device][0]
    lines = ["| layer | tokens | GB | GFLOP | floor, us | instructions, us | of | predicted, us |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, hidden, inter, experts, top_k, weights, act, bits, units in LAYERS:
        if arch not in units:
            continue
        weights, act = FP8[arch] if weights is None else (weights, act)
        costs = known.setdefault((arch, weights, act), None) or kernel_costs(build, arch, weights, act)
        known[(arch, weights, act)] = costs
        for tokens in TOKENS:
            hit, kernel, blocks = spread(tokens, experts, top_k, costs)
            total = [0.0] * 5
            of = set()
            predicted = 0.0
            for n, k in ((2 * inter, hidden), (hidden, inter)):
                *values, worst = product(device, kernel, n, k, bits, hit, blocks, tokens, top_k, units[arch])
                total = [a + b for a, b in zip(total, values)]
                of.add(worst)
                predicted += max(values[2:])
            lines.append("| %s | %d | %.3g | %.3g | %s | %s | %s | %s |" % (
                name, tokens, total[0] / 1e9, total[1] / 1e9, number(max(total[2], total[3]) * 1e6),
                number(total[4] * 1e6), " ".join(sorted(of)), number(predicted * 1e6)))
    return lines


def kernels(known):
    units = ("matrix", "vector", "scalar", "lds", "memory")
    lines = ["| kernel | | tile | matrix | vector | scalar | LDS | memory | tile: vector | tile: scalar |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for (arch, _, _), pair in sorted(known.items()):
        for k in pair:
            lines.append("| `%s` | %s | %d x %d | %s | %.0f | %.0f |" % (
                k.name, arch, k.outputs, k.rows, " | ".join("%.0f" % k.each[u] for u in units), k.rest["vector"],
                k.rest["scalar"]))
    return sorted(set(lines), key=lines.index)


def main():
    build = os.path.abspath(sys.argv[1])
    path = HERE + "/docs/hip-cost.md"
    known = {}
    tables = {device: layers(device, build, known) for device in DEVICES}
    tables["kernels"] = kernels(known)
    with open(path, encoding="utf-8") as f:
        text = f.read()
    for name, lines in tables.items():
        begin = "<!-- %s: generated -->\n" % name
        end = "<!-- end %s -->" % name
        text = text[:text.index(begin) + len(begin)] + "\n".join(lines) + "\n" + text[text.index(end):]
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


if __name__ == "__main__":
    main()
