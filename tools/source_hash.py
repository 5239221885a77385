#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hashes of what kernels are made of: files and every header of the project that they reach.

    source_hash.py [--root DIR] FILE...
        one hash of these files and all that they include
    source_hash.py [--root DIR] --rows FOLDER [--rows FOLDER...] [--output FILE]
        "row hash" for every row of FOLDER/kernels.def that continuous integration cannot run

Comments, blanks at the ends of lines and empty lines do not count, so that a kernel keeps its record
(tests/ledger) when its text is only explained better. Of the public headers backend.h and types.h
count, the contract of an op and what its arguments are; of the tables, a row's own lines in
kernels.def and arith.def.

A row of FOLDER/kernels.def is held by the .cu files of FOLDER that contain its name; where none
does, by those that are named after its op (ggemm_*.cu). Of a CPU's rows, those for instruction sets
that few machines have are held by the .c files below FOLDER that contain their names. A row "..__gpu.." is a body of
gpu/<op>.cuh that ops.cu instantiates: of the other ops' bodies it depends on none."""
import argparse
import hashlib
import os
import re
import sys

ROW = re.compile(r'^MOE_KERNEL\((\w+),\s*(\w+),.*$', re.M)
RARE_ISA = re.compile(r'\bMOEI_ISA_(AVX512|AMX)\w*')
ARITH = re.compile(r'^MOE_ARITH\((\w+),.*$', re.M)
ARITH_TABLE = 'include/moe/arith.def'
PUBLIC = ('include/moe/backend.h', 'include/moe/types.h')
OTHER_DEVICES = ('dev_sim.h', 'dev_hip.h')
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)
# A string or character constant, or a comment.
TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/', re.S)


def read(root, path):
    with open(os.path.join(root, path), encoding='utf-8') as file:
        return file.read()


def essence(text):
    """The text without comments, blanks at line ends and empty lines."""
    text = TOKEN.sub(lambda m: ' ' if m.group().startswith(('//', '/*')) else m.group(), text)
    lines = (line.strip() for line in text.splitlines())
    return '\n'.join(line for line in lines if line) + '\n'


def resolve(root, path, name):
    """The file of the project that an include of `path` names; None: a header of the system."""
    for folder in (os.path.dirname(path), 'src', 'include'):
        candidate = os.path.normpath(os.path.join(folder, name))
        if os.path.isfile(os.path.join(root, candidate)):
            return candidate
    return None


def reach(root, files, leave_out=()):
    """The files and all that they include, but for `leave_out`."""
    found = set()
    left = list(files)
    while left:
        path = os.path.normpath(left.pop())
        public = path.startswith('include' + os.sep)
        if path in found or path in leave_out or (public and path not in PUBLIC):
            continue
        found.add(path)
        for name in INCLUDE.findall(essence(read(root, path))):
            other = resolve(root, path, name)
            if other is not None:
                left.append(other)
    return found


def hash_of(root, files, lines=()):
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode() + b'\0')
    for path in sorted(files):
        total.update(path.encode() + b'\0' + essence(read(root, path)).encode() + b'\0')
    return total.hexdigest()


def rows_of(root, folder):
    """Every row that needs a record, as a match: op, name after moek_<op>_; none where there is no
    such folder."""
    table = os.path.join(folder, 'kernels.def')
    if not os.path.isfile(os.path.join(root, table)):
        return []
    rows = ROW.finditer(essence(read(root, table)))
    return [row for row in rows if 'MOEI_ISA_' not in row.group() or RARE_ISA.search(row.group())]


def lines_of(root, row):
    """A row's text, and that of its arithmetic class."""
    words = set(re.findall(r'\w+', row.group()))
    classes = []
    if os.path.isfile(os.path.join(root, ARITH_TABLE)):
        classes = ARITH.finditer(essence(read(root, ARITH_TABLE)))
    return [' '.join(line.split()) for line in
            [row.group(), *(c.group() for c in classes if c.group(1) in words)]]


def units_of(root, folder, suffix):
    """Files of a folder, or of the folders in it."""
    top = os.path.join(root, folder)
    return sorted(os.path.relpath(os.path.join(path, file), root) for path, _, files in os.walk(top)
                  for file in files if file.endswith(suffix))


def sources_of(root, folder, row, ops):
    """The files of a row. LookupError: no file holds it."""
    op, name = row.groups()
    row = row.group()
    shared = os.path.join(os.path.dirname(folder), 'gpu')
    leave_out = [os.path.join(shared, header) for header in OTHER_DEVICES]
    if name.split('__')[-1].startswith('gpu'):
        bodies = {other: os.path.join(shared, other + '.cuh') for other in ops}
        if not os.path.isfile(os.path.join(root, bodies[op])):
            raise LookupError(f'moek_{op}_{name}: there is no {bodies[op]}')
        leave_out += [path for other, path in bodies.items() if other != op]
        return reach(root, [os.path.join(folder, 'ops.cu'), bodies[op]], leave_out)
    host = 'MOEI_ISA_' in row
    units = units_of(root, folder, '.c' if host else '.cu')
    word = re.compile(r'(?<![a-z0-9])' + re.escape(name) + r'\b')
    holders = [path for path in units if word.search(read(root, path))]
    if not holders and not host:
        holders = [path for path in units if os.path.basename(path).startswith(op + '_')]
    if not holders:
        raise LookupError(f'moek_{op}_{name}: no {".c" if host else ".cu"} file of {folder} holds it')
    return reach(root, holders, leave_out)


def row_hashes(root, folder):
    """{row: hash} for a folder with a kernels.def."""
    rows = rows_of(root, folder)
    ops = sorted({row.group(1) for row in rows})
    hashes = {}
    for row in rows:
        op, name = row.groups()
        files = sources_of(root, folder, row, ops)
        hashes[f'moek_{op}_{name}'] = hash_of(root, files, lines_of(root, row))
    return hashes


def write_if_other(path, text):
    """Nothing that depends on the file is made anew where it stays as it is."""
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
            if file.read() == text:
                return
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


def main():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description='Hashes of the sources of kernels.')
    parser.add_argument('--root', default=here, help='root of the project')
    parser.add_argument('--rows', metavar='FOLDER', action='append', help='folder with a kernels.def')
    parser.add_argument('--output', metavar='FILE', help='of --rows; default: standard output')
    parser.add_argument('files', nargs='*')
    a = parser.parse_args()
    if (a.rows is None) == (not a.files):
        parser.error('give files, or --rows')
    try:
        if a.files:
            print(hash_of(a.root, reach(a.root, a.files)))
            return 0
        hashes = {}
        for folder in a.rows:
            hashes.update(row_hashes(a.root, folder))
    except (LookupError, OSError) as error:
        print(f'source_hash.py: {error}', file=sys.stderr)
        return 1
    text = ''.join(f'{row} {value}\n' for row, value in hashes.items())
    if a.output:
        write_if_other(a.output, text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
