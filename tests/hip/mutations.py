#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plants mistakes in the sources of AMD's kernels, one at a time, and expects that `moe check` under
emulation notices each: mutations.py CONFIG [GLOB | PART/PARTS]

CONFIG is what tests/hip/CMakeLists.txt writes: compilers, flags, paths. A mistake is a text that a
source has once, however its lines are broken, and that becomes another; the changed file lies in a
folder that the compiler looks into first. One object is compiled from it, with the flags of the
plugin and with the kernels that the check runs (the others trap: cases that meet one do not count),
and the plugin is linked again around it. Without a mistake ("nothing") the check must pass.
"""
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys

TILE = "src/backends/hip/cdna/tile.cuh"
MFMA = "src/backends/hip/cdna/ggemm_mfma.cuh"
CODES = "src/backends/hip/cdna/ggemm_codes.cuh"
DECODE = "src/backends/hip/cdna/decode.cuh"
PACKED = "src/backends/hip/packed.c"
QUANTIZE = "src/backends/gpu/quantize.cuh"

BF16 = ("ggemm_bf16", "gfx942", ["moek_mfma_row_bf16"], ["moek_ggemm_bf16_*", "--quick", "--repeat", "4"])
MANY = ("ggemm_bf16", "gfx942", ["moek_mfma_row_bf16", "moek_mfma_row_bf16_many"], ["moek_ggemm_bf16_*", "--repeat", "4"])


def packed(source, arch, kernel, fmt, every):
    return (source, arch, ["moek_mfma_" + kernel],
            ["moek_ggemm_any_any_packed__*", "--format", fmt, "--quick", "--every", str(every)])


MXFP4_3 = packed("ggemm_fp4", "gfx942", "mxfp4", "mxfp4", 5)
MXFP4_4 = packed("ggemm_fp4", "gfx950", "mxfp4", "mxfp4", 5)
NVFP4 = packed("ggemm_fp4", "gfx942", "nvfp4", "nvfp4", 5)
INT4 = packed("ggemm_int", "gfx942", "u4", "int4_group", 9)
INT8 = packed("ggemm_int", "gfx950", "u8", "int8_channel", 5)
E4M3_3 = packed("ggemm_fp8", "gfx942", "e4m3", "e4m3fn_block", 5)
E4M3 = packed("ggemm_fp8", "gfx950", "e4m3", "e4m3fn_block", 5)
FNUZ = ("ggemm_codes", "gfx942", ["moek_mfma_fp8_e4m3fnuz"],
        ["moek_ggemm_e4m3fnuz_any_packed__cdna3", "--format", "e4m3fnuz_block", "--quick", "--every", "2"])
FP8_4 = ("ggemm_codes", "gfx950", ["moek_mfma_fp8_e4m3"],
         ["moek_ggemm_fp8_*", "--format", "e4m3fn_block", "--quick"])
MX = ("ggemm_codes", "gfx950", ["moek_mfma_mx_mxfp4"], ["moek_ggemm_mx_*", "--format", "mxfp4", "--quick"])
APART = (*FP8_4[:3], FP8_4[3] + ["--apart"])
QUANTISERS = ("bodies", "gfx942", ["quantize", "dequantize"], ["moek_quantize_*", "--every", "23"])
SORT = ("bodies", "gfx950", ["sort", "sort_few"], ["moek_sort_*", "--every", "3"])
HOST = (None, "gfx942", [], ["moek_ggemm_any_any_packed__*", "--format", "mxfp4", "--quick", "--every", "9"])
HOST_4 = (None, "gfx950", [], HOST[3])
HOST_MX = (None, "gfx950", [], MX[3])

# name: what is compiled and checked, then (file, text, what it becomes)...
MUTATIONS = {
    "nothing": [BF16],
    "nothing-packed": [MXFP4_4],
    "nothing-quantised": [QUANTISERS],
    # Barriers
    "barrier-before-lds-is-written": [MXFP4_3, (MFMA, "dev_sync(); // all have read the slice before", "")],
    "barrier-after-lds-is-written": [BF16, (MFMA, "dev_sync(); if (k0 + SLICE < k_end) {", "if (k0 + SLICE < k_end) {")],
    "barrier-before-sums-are-written": [BF16, (TILE, "dev_sync(); // all have read what LDS had", "")],
    "barrier-after-tiles-are-counted": [BF16, ("src/backends/gpu/tiles.cuh", "} } dev_sync(); }", "} } }")],
    "barrier-after-slots-are-counted": [SORT, ("src/backends/hip/sort_many.cuh", "dev_sync(); return done;",
                                               "return done;")],
    "barrier-after-sums-are-written": [BF16, (TILE, "dev_sync(); if (n >= a->w.n) {", "if (n >= a->w.n) {")],
    # Lanes
    "lanes-of-sums-exchanged": [BF16, (TILE, "lds->y[16 * p + lane % 16]", "lds->y[16 * p + lane / 16]"),
                                (TILE, "lane / 16 * 4) = sums", "lane % 16 / 4 * 4) = sums")],
    "octet-of-weights": [MXFP4_4, (MFMA, ": octet * 4);", ": (octet ^ 1) * 4);")],
    "nan-of-fnuz": [E4M3_3, (DECODE, "(((codes & nonzero", "(((codes")],
    "wrong-half-of-a-pair": [MXFP4_3, (DECODE, "moei_f32_bits(low), 0x07060302u", "moei_f32_bits(low), 0x03020706u")],
    "one-part-of-the-sums": [MANY, (TILE, "sums[q][first / 16 + p]", "sums[q][p]")],
    "codes-of-neighbouring-k": [MX, (CODES, "i / 2 * 64 + part * 16 + i % 2 * 8", "part * 32 + i * 8")],
    # Ends
    "row-not-clamped": [BF16, (TILE, "return t->i0 + i < t->i1 ? t->i0 + i : t->i1 - 1;", "return t->i0 + i;")],
    "row-past-the-last-stored": [BF16, (TILE, "i < PART && t->i0 + first + i < t->i1;", "i < PART;")],
    "tail-of-k-not-zeroed": [BF16, (TILE, "if (count >= 16) {", "if (count > 0) {")],
    "tail-of-codes-not-zeroed": [MXFP4_3, (MFMA, "const int64_t some = bits < most ? bits : most;",
                                           "const int64_t some = bits > 0 ? most : 0;")],
    "die-ends-too-early": [BF16, (TILE, "(tiles + MOEI_HIP_DIES - 1) / MOEI_HIP_DIES;", "tiles / MOEI_HIP_DIES;")],
    # Scales
    "cdna4-bytes-exchanged": [MXFP4_4, (MFMA, "lane % 16 * 4 + tile % 2 :", "lane % 16 * 4 + tile % 2 * 2 :"),
                              (MFMA, "at % 4 * 64 + at / 4 % 2 * 2", "at % 4 * 64 + at / 4 % 2")],
    "cdna4-lane": [MXFP4_4, (MFMA, "at / 8 * 256 + at % 4 * 64 +", "at / 8 * 256 + (at + 1) % 4 * 64 +")],
    "scale-of-another-32": [MXFP4_3, (MFMA, ": at / 4 * 64 + at % 4)", ": at / 4 * 64 + (at % 4 ^ 1))")],
    "scale-of-another-16": [NVFP4, (MFMA, "lane % 16 * 8 + lane / 32;", "lane % 16 * 8 + lane / 16 % 2;")],
    "fold-with-the-next-scale": [INT4, (MFMA, "w_scales + (k >> g->group_shift) * g->packed.outputs",
                                        "w_scales + ((k >> g->group_shift) + 1) * g->packed.outputs")],
    "fold-adds-again": [INT4, (MFMA, "sum[q][p][r] = 0.0f;", "")],
    "fold-with-the-first-scale-of-x": [E4M3, (MFMA, "fold_x ? l->x_scale[i]", "fold_x ? l->x_scale[0]")],
    "mx-scale-of-the-other-half": [MX, (CODES, "(STEPS == 2 ? 2 * i : 0)", "(STEPS == 2 ? 2 * (1 - i) : 0)")],
    "mx-scales-of-x-exchanged": [MX, (CODES, "(thread / ROWS * 16 + thread % 16) * COLUMNS",
                                      "(thread % 16 * 4 + thread / ROWS) * COLUMNS")],
    "fold-with-the-scale-of-another-row": [FNUZ, (CODES, "scales)[row]", "scales)[row ^ 1]")],
    "zero-point-dropped": [INT4, (DECODE, "(float)(odd >> 8 * i & 0xFF) - zero", "(float)(odd >> 8 * i & 0xFF)")],
    "zero-point-of-the-first-group": [INT4, (
        MFMA, "((at * MOEI_HIP_MFMA_STEP) >> g->group_shift) * (uint32_t)p->outputs]", "0]")],
    "scale-of-a-neighbour": [INT8, (TILE, "p->scales_at))[n];", "p->scales_at))[n / 2 * 2];")],
    # Codes on both sides
    "codes-of-a-last-byte": [MX, (CODES, "if (BITS % 8 != 0 && bits > 0", "if (BITS > 8 && bits > 0")],
    "codes-barrier-after-lds-is-written": [FNUZ, (CODES, "dev_sync(); const int32_t k = k0 + SLICE;",
                                                  "const int32_t k = k0 + SLICE;")],
    "codes-of-16-outputs": [MX, (CODES, "(uint32_t)(square % 2) * 8 : 0", "0u : 0u")],
    "codes-of-few-scales": [HOST_MX, (PACKED, "if (!any && (", "if ((")],
    "codes-past-the-last-128": [APART, (CODES, "at + STEPS < last ? at + STEPS : last", "at + STEPS")],
    # Quantisers
    "division-by-reciprocal": [QUANTISERS, (
        "src/numerics/hd.h", "return a / b;", "return a * __builtin_amdgcn_rcpf(b);")],
    "fp8-not-clamped": [QUANTISERS, (QUANTIZE, "if (r.clamps) {", "if (false) {"), (
        "src/numerics/fp8.h", "overflow == MOEI_OVERFLOW_SATURATE ? 0x7Eu : 0x7Fu;", "0x7Fu;")],
    # The host's side
    "shuffle-of-eight-outputs": [HOST, (PACKED, "+ n % TILE * TILE;", "+ (n % 8 * 2 + n % TILE / 8) * TILE;")],
    "cdna4-layout-bytes-exchanged": [HOST_4, (PACKED, "g / 4 % 2 * 2 + n / 16 % 2;", "g / 4 % 2 + n / 16 % 2 * 2;")],
}


class Wrong(Exception):
    """The mutation itself, not the code, is wrong."""


def run(command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if done.returncode != 0:
        raise Wrong("%s ends with %d:\n%s" % (command[0], done.returncode, done.stdout[-2000:]))


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def plant(config, folder, edits):
    """The changed files under `folder`. Returns their names."""
    texts = {}
    for name, text, becomes in edits:
        source = texts.get(name) or read(os.path.join(config["source"], name))
        pattern = r"\s+".join(re.escape(word) for word in text.split())
        texts[name], count = re.subn(pattern, lambda _, to=becomes: to, source)
        if count != 1:
            raise Wrong("%s has %d times: %s" % (name, count, text))
    for name, text in texts.items():
        write(os.path.join(folder, name), text)
    return list(texts)


def source_with(config, source, kernels):
    """The text of a device source in which all kernels but some trap."""
    hip = os.path.join(config["source"], "src/backends/hip")
    bodies = source == "bodies"
    path = os.path.join(hip, "bodies.hip" if bodies else "cdna/%s.hip" % source)
    rows = os.path.join(config["source"], "src/backends/gpu/bodies.def") if bodies else os.path.join(
        hip, "cdna/kernels.def")
    names = re.findall(r"^MOE_GPU_BODY\((\w+)," if bodies else r"^MOE_HIP_MFMA\(\w+,\s*(\w+),", read(rows), re.M)
    if not set(kernels) <= set(names):
        raise Wrong("no kernel %s" % kernels)
    text = "".join("#define BODY_%s(...) %s\n" % (n, "__VA_ARGS__" if n in kernels else "__builtin_trap()")
                   for n in names)
    if bodies:
        body = "moei_gpu_##name(&l.a);"
        whole = read(path)
        if whole.count(body) != 1:
            raise Wrong("bodies.hip has other bodies")
        return text + whole.replace(body, "BODY_##name(%s);" % body[:-1])
    # After the headers, which define the kernels' macro.
    head, rest = re.match(r"(.*\n#include [^\n]*\n)(.*)", read(path), re.S).groups()
    return (head + text + "#undef MOEI_HIP_KERNEL\n"
            "#define MOEI_HIP_KERNEL(name, ...) MOEI_HIP_GLOBAL(MOEI_HIP_MFMA_THREADS) \\\n"
            "    name(const moei_hip_mfma_args a) { const moei_hip_mfma_args *g = &a; (void)g; BODY_##name(__VA_ARGS__); }\n"
            + rest)


def build(config, folder, of, files):
    """The plugin with the changed files in it. Returns its path."""
    source, arch, kernels, _ = of
    include = ["-I" + os.path.join(folder, "src")] + ["-I" + i for i in config["include"]]
    objects = [o for o in config["objects"] if not o.endswith("/objects.c.o")]
    for name in files:
        if name.endswith(".c"):
            base = os.path.basename(name)
            made = os.path.join(folder, base + ".o")
            run([config["cc"], "-std=gnu17", "-O1", "-fPIC", "-ffp-contract=off", *include, "-c", "-o", made,
                 os.path.join(folder, name)])
            objects = [o for o in objects if not o.endswith("/" + base + ".o")] + [made]
    if source is not None:
        text = os.path.join(folder, source + ".hip")
        write(text, source_with(config, source, kernels))
        run([config["clang"], *(f for f in config["flags"] if f != "-Werror"), "--offload-arch=" + arch,
             "--ld-path=" + config["lld"], *include, "-o", os.path.join(folder, "%s.%s.hsaco" % (source, arch)), text])
    made = os.path.join(folder, "objects.o")
    run([config["cc"], "-std=gnu17", "-fPIC", *include, "-Wa,-I" + folder, "-Wa,-I" + config["hsaco"], "-c", "-o", made,
         os.path.join(config["source"], "src/backends/hip/objects.c")])
    plugin = os.path.join(folder, "libmoe_hip.so")
    run([config["cc"], "-shared", "-o", plugin, *objects, made, "-Wl,-z,defs", "-lpthread", "-ldl", "-lm"])
    return plugin


def check(config, plugin, of):
    """What fails with the plugin: the first line, or None. Cases that met a kernel that traps do not
    count: they say so before anything of them is compared."""
    _, arch, _, what = of
    env = dict(os.environ, MOE_PLUGIN_PATH=plugin, MOE_HIP_LIB=config["emulator"], MOE_EMULATOR_ARCH=arch,
               MOE_EMULATOR_ORDER="1")
    trapped = set()
    lines = []
    with subprocess.Popen([config["moe"], "check", "--device", "hip", "--kernel", *what], env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as moe:
        for line in moe.stdout:
            lines.append(line)
            failure = re.match(r"FAIL(?:ED:)? *(.*)", line)
            if failure and "`s_trap" in line:
                trapped.add(failure.group(1).partition(": hip: ")[0])
            elif failure and not failure.group(1).startswith(tuple(trapped)):
                moe.kill()
                return failure.group(1)
    if not re.search(r"[1-9]\d* passed, \d+ failed", "".join(lines[-3:])) or moe.returncode != (1 if trapped else 0):
        raise Wrong("the check ends with %d:\n%s" % (moe.returncode, "".join(lines[-9:])))
    return None


def main():
    config = json.loads(read(sys.argv[1]))
    what = sys.argv[2] if len(sys.argv) > 2 else "*"
    names = [name for name in MUTATIONS if fnmatch.fnmatch(name, what)]
    if "/" in what:
        part, parts = map(int, what.split("/"))
        names = list(MUTATIONS)[part - 1::parts]
    passed = failed = 0
    for name in names:
        of, *edits = MUTATIONS[name]
        folder = os.path.join(config["folder"], name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        try:
            found = check(config, build(config, folder, of, plant(config, folder, edits)), of)
            good = (found is not None) == bool(edits)
            text = found or "nothing fails"
        except Wrong as e:
            good, text = False, str(e)
        shutil.rmtree(folder, ignore_errors=True)
        passed += good
        failed += not good
        print("%s %-34s %s" % ("" if good else "FAILED:", name, text if not good else text[:150]), flush=True)
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
