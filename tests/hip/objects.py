#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Looks into AMD code objects: objects.py ARGUMENTS READELF OBJDUMP OBJECT...

Every kernel that the host knows is there, takes as many bytes as the host passes and nothing that
only a runtime knows, keeps nothing in memory of its own (no scratch, no spilled vector registers),
calls nothing, addresses memory by its kind, and has the instructions that its row promises. Scalar
registers that are kept in lanes of vector registers are counted, not forbidden: they cost no memory.
"""
import re
import subprocess
import sys

LDS = {"gfx942": 64 << 10, "gfx950": 160 << 10}
REGISTERS = 512  # of a lane, for the waves of a SIMD together; a compute unit has four SIMDs
# Vector registers at most, where a block more on a compute unit is worth it: of few rows four blocks of four
# waves, of many two.
VECTOR = {r"moek_mfma_\w+_many": 256, r"moek_mfma_\w+": 128}
REQUIRED = {
    r"moek_mfma_\w+": ["ds_read_b128|ds_read2_b64", "s_barrier"],
    r"moek_mfma_(?!fp8_|mx_)\w+": ["v_mfma_f32_16x16x(16|32)_bf16"],
    r"moek_mfma_fp8_\w+@gfx942": ["v_mfma_f32_16x16x32_fp8_fp8"],
    r"moek_mfma_fp8_\w+@gfx950": ["v_mfma_f32_16x16x128_f8f6f4"],
    r"moek_mfma_mx_\w+": ["v_mfma_scale_f32_16x16x128_f8f6f4"],
    r"moek_mfma_mxfp4\w*@gfx950": ["v_cvt_scalef32_pk_bf16_fp4"],
    r"moek_mfma_(e4m3|e5m2)(_many)?@gfx950": ["v_cvt_scalef32_pk_bf16_(fp8|bf8)"],
    r"moek_mfma_e4m3fnuz\w*@gfx942": ["v_cvt_pk_f32_fp8"],
    # What is asked of a device is what kernels do.
    "moek_probe_arithmetic": ["v_div_fixup_f32", "v_sqrt_f32", "v_fma_f32", "ds_bpermute_b32"],
    "moek_probe_matrix_bf16": ["v_mfma_f32_16x16x(16|32)_bf16"],
    r"moek_probe_matrix_fp8_\w+@gfx942": ["v_mfma_f32_16x16x32_fp8_fp8"],
    r"moek_probe_matrix_fp8_\w+@gfx950": ["v_mfma_f32_16x16x128_f8f6f4"],
    r"moek_probe_matrix_mx_\w+": ["v_mfma_scale_f32_16x16x128_f8f6f4"],
    "moek_probe_codes_mxfp4@gfx950": ["v_cvt_scalef32_pk_bf16_fp4"],
    "moek_probe_codes_nvfp4": ["v_perm_b32"],
    "moek_probe_codes_(e4m3|e5m2)@gfx950": ["v_cvt_scalef32_pk_bf16_(fp8|bf8)"],
    "moek_probe_codes_e4m3fnuz@gfx942": ["v_cvt_pk_f32_fp8"],
    # Divisions whose bits are promised are the correctly rounded sequence.
    "moek_body_quantize": ["v_div_scale_f32", "v_div_fmas_f32", "v_div_fixup_f32"],
    "moek_sort_many": ["ds_add_u32", "s_barrier"],
    "moek_body_route_64": ["v_div_fixup_f32", "ds_bpermute_b32"],
    "moek_body_ggemm": [r"v_(pk_)?fma(c)?_f32"],
}
# Calls, memory of its own, pointers whose kind of memory the compiler did not find out.
FORBIDDEN = r"s_swappc|s_setpc|s_call|scratch_|buffer_|flat_|image_"

# What of its bits a device is asked for before it is used: what kernels have of these, probes have.
ASKED = (r"v_(mfma|cvt|div|rcp|rsq|sqrt|exp|log|ldexp|frexp|floor|ceil|trunc|rndne|fract|perm|dot|pk_\w+_f|fma_f|mul_f|"
         r"add_f|sub_f)|ds_bpermute|ds_swizzle")

failures = []


def fail(where, text):
    failures.append("%s: %s" % (where, text))


def kernels_of(readelf, path):
    """The metadata of each kernel: {name: {key: value}}, and the target."""
    text = subprocess.run([readelf, "-n", path], check=True, capture_output=True, text=True).stdout
    target = re.search(r"amdhsa.target:\s+\S+--(\w+)", text).group(1)
    out = {}
    for part in re.split(r"^  - (?=\.agpr_count)", text, flags=re.M)[1:]:
        keys = dict(re.findall(r"^\s*(\.\w+):\s+(\S+)\s*$", part, flags=re.M))
        keys["kinds"] = re.findall(r"\.value_kind:\s+(\S+)", part)
        out[keys[".name"]] = keys
    return target, out


def code_of(objdump, path, arch):
    """The mnemonics of each kernel, without the suffixes of encodings."""
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", "--mcpu=" + arch, path], check=True,
                          capture_output=True, text=True).stdout
    out = {}
    for part in re.split(r"^[0-9a-f]+ <", text, flags=re.M)[1:]:
        name = part[:part.index(">")]
        out[name] = set(re.findall(r"^\s+([a-z]\w+)", part, flags=re.M))
    return out


def check(where, arch, keys, code, nbytes, threads):
    name = keys[".name"]
    number = {k: int(v) for k, v in keys.items() if k != "kinds" and v.isdigit()}
    if number[".kernarg_segment_size"] != nbytes:
        fail(where, "takes %d bytes, the host passes %d" % (number[".kernarg_segment_size"], nbytes))
    if keys["kinds"] != ["by_value"]:
        fail(where, "takes %s, not one structure" % keys["kinds"])
    if number[".max_flat_workgroup_size"] != threads:
        fail(where, "is built for %d threads, the host launches up to %d"
             % (number[".max_flat_workgroup_size"], threads))
    if number[".wavefront_size"] != 64 or keys[".uses_dynamic_stack"] != "false":
        fail(where, "waves are not of 64 lanes, or it has a stack")
    for key in (".vgpr_spill_count", ".private_segment_fixed_size"):
        if number[key] != 0:
            fail(where, "%s is %d" % (key, number[key]))
    if number[".group_segment_fixed_size"] > LDS[arch]:
        fail(where, "%d bytes of LDS" % number[".group_segment_fixed_size"])
    waves = -(-threads // 64)
    fits = REGISTERS // -(-waves // 4)
    most = min(next((v for k, v in VECTOR.items() if re.fullmatch(k, name)), 256), fits)
    if number[".vgpr_count"] + number[".agpr_count"] > most:
        fail(where, "%d vector registers, %d at most" % (number[".vgpr_count"], most))
    if number[".sgpr_spill_count"] > 800:
        fail(where, "%d scalar registers in lanes" % number[".sgpr_spill_count"])
    for row, mnemonics in REQUIRED.items():
        of, _, only = row.partition("@")
        for mnemonic in mnemonics if re.fullmatch(of, name) and only in ("", arch) else []:
            if not any(re.match("(%s)(_|$)" % mnemonic, c) for c in code):
                fail(where, "has no " + mnemonic)
    for mnemonic in sorted(code):
        if re.match(FORBIDDEN, mnemonic):
            fail(where, "has " + mnemonic)
    print("%-50s %5d bytes %4d threads %3d VGPR %3d SGPR %3d in lanes" % (
        where, nbytes, threads, number[".vgpr_count"], number[".sgpr_count"], number[".sgpr_spill_count"]))


def main():
    arguments, readelf, objdump = sys.argv[1:4]
    lines = subprocess.run([arguments], check=True, capture_output=True, text=True).stdout.split("\n")
    # name: bytes of its argument, threads of a block, the architecture that it is for or ANY
    host = {n: (int(b), int(t), a) for n, b, t, a in (line.split() for line in lines if line)}
    seen = {arch: set() for arch in LDS}
    used = {(arch, probes): set() for arch in LDS for probes in (False, True)}
    for path in sys.argv[4:]:
        arch, kernels = kernels_of(readelf, path)
        code = code_of(objdump, path, arch)
        for name, keys in sorted(kernels.items()):
            where = "%s %s" % (arch, name)
            if name not in host:
                fail(where, "is not the host's")
                continue
            seen[arch].add(name)
            used[arch, name.startswith("moek_probe_")].update(
                re.sub(r"_(e32|e64|sdwa|dpp)$", "", c) for c in code[name] if re.match(ASKED, c))
            check(where, arch, keys, code[name], *host[name][:2])
    for arch, names in seen.items():
        for name in sorted(n for n in set(host) - names if host[n][2] in ("ANY", arch)):
            fail("%s %s" % (arch, name), "is in no object")
    for arch in LDS:
        for mnemonic in sorted(used[arch, False] - used[arch, True]):
            fail(arch, "kernels have %s, no probe has" % mnemonic)
    for line in failures:
        print("FAILED " + line)
    print("%d kernels, %d failures" % (sum(map(len, seen.values())), len(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
