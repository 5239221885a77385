#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what the built libraries and the headers offer with the lists under abi/, and fails with the lines
that differ: exported symbols, values of enumerators, sizes of structs, offsets and sizes of their members.
    tools/check_abi.py BUILD_DIR [--update]
--update rewrites the lists. Runs tools/check_symbols.sh too. Needs a C compiler ($CC, else cc) and binutils."""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADERS = ["moe/" + name for name in sorted(os.listdir(os.path.join(ROOT, "include/moe"))) if name.endswith(".h")]


def symbols(build):
    out = []
    for lib in ("libmoe.so", "libmoe_io.so"):
        text = subprocess.run(["nm", "-D", "--defined-only", os.path.join(build, lib)], check=True,
                              capture_output=True, text=True).stdout
        for line in text.splitlines():
            out.append("%s %s" % (lib, line.split()[-1]))
    return sorted(out)


def header_text():
    """What the headers say once preprocessed, so that enumerators from tables are there."""
    code = "".join('#include "%s"\n' % h for h in HEADERS)
    text = subprocess.run([os.environ.get("CC", "cc"), "-std=c17", "-E", "-I", os.path.join(ROOT, "include"), "-x",
                           "c", "-"], input=code, check=True, capture_output=True, text=True).stdout
    out, ours = [], False
    for line in text.splitlines():
        marker = re.match(r'# \d+ "([^"]*)"', line)
        if marker:
            ours = os.path.join(ROOT, "include") in marker.group(1)
        elif ours:
            out.append(line)
    return "\n".join(out)


def probe(text):
    """Enum constants, and structs with their fields, as a C program prints them."""
    enums = []
    for body in re.findall(r"\benum\s*\w*\s*\{([^}]*)\}", text):
        enums += re.findall(r"\b(MOE[IK]?_\w+)\b\s*(?:=|,|$)", body)
    structs = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\n\} \w+;", text, re.S):
        fields = []
        for line in body.split(";"):
            line = line.strip()
            m = re.search(r"\(\*(\w+)\)\s*\(", line)
            if m:
                fields.append(m.group(1))
            elif line:
                for part in line.split(","):
                    m = re.search(r"(\w+)\s*(?:\[[^\]]*\])*$", part.strip())
                    fields.append(m.group(1))
        structs[name] = fields
    code = "".join('#include "%s"\n' % h for h in HEADERS) + "#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{\n"
    for e in enums:
        code += '    printf("enum %s %%lld\\n", (long long)%s);\n' % (e, e)
    for s, fields in structs.items():
        code += '    printf("struct %s %%zu\\n", sizeof(%s));\n' % (s, s)
        for f in fields:
            code += '    printf("struct %s.%s %%zu %%zu\\n", offsetof(%s, %s), sizeof((%s *)0)->%s);\n' % (s, f, s, f, s, f)
    code += "    return 0;\n}\n"
    with tempfile.TemporaryDirectory() as d:
        src, exe = os.path.join(d, "probe.c"), os.path.join(d, "probe")
        open(src, "w").write(code)
        subprocess.run([os.environ.get("CC", "cc"), "-std=c17", "-I", os.path.join(ROOT, "include"), src, "-o", exe],
                       check=True)
        lines = subprocess.run([exe], check=True, capture_output=True, text=True).stdout.splitlines()
    return (sorted(l[5:] for l in lines if l.startswith("enum ")),
            sorted(l[7:] for l in lines if l.startswith("struct ")))


def main():
    arguments = [a for a in sys.argv[1:] if a != "--update"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    build, update = arguments[0], "--update" in sys.argv
    enums, structs = probe(header_text())
    failed = False
    for name, lines in (("symbols", symbols(build)), ("enums", enums), ("structs", structs)):
        path = os.path.join(ROOT, "abi", name + ".txt")
        new = "\n".join(lines) + "\n"
        old = open(path).read() if os.path.exists(path) else ""
        if old == new:
            print("abi/%s.txt: %d entries, as recorded" % (name, len(lines)))
            continue
        if update:
            open(path, "w").write(new)
            print("abi/%s.txt: written, %d entries" % (name, len(lines)))
            continue
        failed = True
        before, after = set(old.splitlines()), set(lines)
        if any(re.match(r"(?i)moe[ik]_", line) for line in before ^ after):
            print("abi/%s.txt: what plugins compile against has changed: raise MOE_BACKEND_ABI" % name)
        for line in sorted(before - after):
            print("abi/%s.txt: - %s" % (name, line))
        for line in sorted(after - before):
            print("abi/%s.txt: + %s" % (name, line))
    if subprocess.run([os.path.join(ROOT, "tools/check_symbols.sh"), build]).returncode != 0:
        failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
