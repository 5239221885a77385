#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what is generated from the tables: the format table of docs/formats.md, the support matrix of
README.md, and its copy of the first example. `--check` fails where a file is not what the tables say."""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def rows(path, macro):
    """Arguments of every `macro(...)` row of a table file."""
    text = re.sub(r"//[^\n]*", "", open(os.path.join(ROOT, path)).read())
    for m in re.finditer(macro + r"\(((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*)\)", text):
        yield [a.strip().strip('"') for a in re.findall(r'\s*("[^"]*"|[^,]+)', m.group(1))]


SCALES = {"S_NONE": "none", "S_F32": "f32", "S_FLOAT": "f32, bf16, f16", "S_BLOCK": "f32, bf16, e8m0",
          "S_E8M0": "e8m0", "S_E4M3": "e4m3fn"}


def extent(value, unit):
    return "all " + unit if value == "0" else value


def format_table():
    out = ["| format | element | scale per (outputs x k) | scales | second level | zero point | source |",
           "| --- | --- | --- | --- | --- | --- | --- |"]
    for f in rows("src/quant/formats.def", "MOE_FORMAT_ROW"):
        _, name, elem, bn, bk, scales, scale2, zero, free, source = f
        elem = elem.replace("MOE_", "").lower().replace("i8", "int8").replace("u8", "uint8")
        group = "none" if scales == "S_NONE" else "%s x %s%s" % (
            extent(bn, "n"), extent(bk, "k"), " (free)" if free == "1" else "")
        out.append("| %s | %s | %s | %s | %s | %s | %s |" % (
            name, elem, group, SCALES[scales], "f32" if scale2 == "1" else "-",
            "-" if zero == "-1" else zero + ", or given", source))
    return "\n".join(out)


def kernel_rows(backend, op):
    """How many rows a backend's table has for an op; a backend without a folder has none."""
    path = os.path.join(ROOT, "src/backends", backend, "kernels.def")
    return len(re.findall(r"MOE_KERNEL\(%s," % op, open(path).read())) if os.path.exists(path) else 0


def cpu_names(op):
    """Names of the CPU's rows for an op, as they stand in its table."""
    text = open(os.path.join(ROOT, "src/backends/cpu/kernels.def")).read()
    return re.findall(r"MOE_KERNEL\(%s, +([^,]*)," % op, text)


def support_matrix():
    built_in = [r[0] for r in rows("src/backends/backends.def", "MOE_BACKEND")]
    assert built_in == ["cpu"], "teach this table the new backend"
    ops = ["route", "place", "sort", "quantize", "ggemm", "glu", "combine"]
    plugins = ["cuda", "hip"]
    sets = {"avx2": "run", "avx512": "recorded", "amx": "recorded", "neon": "emulated"}
    words = {"cuda": "plugin", "hip": "emulated"}
    out = ["| op | cpu ref | cpu ref_fma (AVX2) | %s | %s |"
           % (" | ".join("cpu " + isa for isa in sets), " | ".join(plugins)),
           "| --- | --- | --- " + "| --- " * (len(sets) + len(plugins)) + "|"]
    for op in ops:
        assert kernel_rows("cpu", op) > 0, op
        cells = [words[p] if kernel_rows(p, op) > 0 else "absent" for p in plugins]
        names = "".join(cpu_names(op))
        tuned = [word if "__" + isa in names else "absent" for isa, word in sets.items()]
        out.append("| %s | run | run | %s |" % (op, " | ".join(tuned + cells)))
    formats = ", ".join(f[1] for f in rows("src/quant/formats.def", "MOE_FORMAT_ROW"))
    out += ["", "*run*: executed by every `make check`. *recorded*: executed where the CPU has it, else proven "
            "by a record in `tests/ledger`. *plugin*: in a library of its own, built where its compiler is "
            "found; `moe check --device cuda` executes it on the device, and `make check` runs the bodies that GPUs "
            "share on the host. *emulated*: machine code that `make check` executes in an emulator: a plugin's, where "
            "clang-22 is, for gfx942 and gfx950; for AArch64 all rows of the CPU, where the cross compiler and qemu-user "
            "are; never on silicon. Weight formats of ggemm, on every backend: " + formats + "."]
    return "\n".join(out)


def example():
    text = open(os.path.join(ROOT, "examples/00_twenty_lines.c")).read()
    return "```c\n" + text.split("\n", 1)[1].strip() + "\n```"


def splice(path, tag, body, check):
    full = os.path.join(ROOT, path)
    text = open(full).read()
    begin, end = "<!-- %s: generated -->" % tag, "<!-- end %s -->" % tag
    i, j = text.index(begin) + len(begin), text.index(end)
    new = text[:i] + "\n" + body + "\n" + text[j:]
    if new == text:
        return True
    if check:
        print("%s: the table \"%s\" is stale; run tools/gen_support_table.py" % (path, tag))
        return False
    open(full, "w").write(new)
    return True


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    ok = splice("docs/formats.md", "formats", format_table(), check)
    ok = splice("README.md", "support", support_matrix(), check) and ok
    ok = splice("README.md", "example", example(), check) and ok
    sys.exit(0 if ok else 1)
