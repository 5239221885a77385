#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what the built libraries and headers offer with the lists under abi/: exported symbols, enum
values, struct sizes and offsets. check_abi.py BUILD_DIR [--update]"""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADERS = ["moe/moe.h", "moe/io.h"]


def symbols(build):
    out = []
    for lib in ("libmoe.so", "libmoe_io.so"):
        text = subprocess.run(["nm", "-D", "--defined-only", os.path.join(build, lib)], check=True,
                              capture_output=True, text=True).stdout
        for line in text.splitlines():
            name = line.split()[-1]
            if not name.startswith("moe_"):
                sys.exit("%s exports %s, which does not begin with moe_" % (lib, name))
            out.append("%s %s" % (lib, name))
    return sorted(out)


def needed(build):
    """Libraries each .so may need; returns complaints."""
    allowed = {"libmoe.so": {"libc.so.6", "libm.so.6", "libpthread.so.0"},
               "libmoe_io.so": {"libc.so.6", "libm.so.6", "libjansson.so.4", "libmoe.so.0"}}
    bad = []
    for lib, may in allowed.items():
        text = subprocess.run(["readelf", "-d", os.path.join(build, lib)], check=True, capture_output=True,
                              text=True).stdout
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", text):
            if name not in may and not name.startswith("ld-linux") and not re.match(r"lib(asan|ubsan|tsan|gcc_s)", name):
                bad.append("%s needs %s" % (lib, name))
    return bad


def header_text():
    out = ""
    for name in sorted(os.listdir(os.path.join(ROOT, "include/moe"))):
        text = open(os.path.join(ROOT, "include/moe", name)).read()
        out += re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S) + "\n"
    return out


def probe(text):
    """Enum constants, and structs with their fields, as a C program prints them."""
    enums = []
    for body in re.findall(r"\benum\s*\w*\s*\{([^}]*)\}", text):
        enums += re.findall(r"\b(MOE_\w+)\b\s*(?:=|,|$)", body)
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
            code += '    printf("struct %s.%s %%zu\\n", offsetof(%s, %s));\n' % (s, f, s, f)
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
    build, update = sys.argv[1], "--update" in sys.argv
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
        for line in sorted(before - after):
            print("abi/%s.txt: - %s" % (name, line))
        for line in sorted(after - before):
            print("abi/%s.txt: + %s" % (name, line))
    for complaint in needed(build):
        print(complaint)
        failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
