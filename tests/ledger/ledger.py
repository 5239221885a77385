#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Looks whether every kernel row that this machine cannot run has a record of a machine that could:
tests/ledger/<row>.json, which `moe check [--device D] --ledger tests/ledger` writes. A record holds
for the sources it was made from alone.

    ledger.py [--root DIR] [--ledger DIR] FOLDER...

FOLDER: with a kernels.def, relative to the root. Prints a line per row; fails where a record is
missing or stale, or one is there for a row that is not."""
import argparse
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, 'tools'))
import source_hash  # noqa: E402


def fault_of(record, row, sources):
    """What is wrong with a record, or None."""
    for key in ('row', 'arith', 'sources', 'device', 'seed', 'cases', 'passed', 'failed'):
        if key not in record:
            return f'has no "{key}"'
    if record['row'] != row:
        return f'is of {record["row"]}'
    if record['failed'] != 0 or record['cases'] < 1 or record['passed'] < 1:
        return f'{record["passed"]} passed, {record["failed"]} failed in {record["cases"]} cases'
    if record['sources'] != sources:
        return f'is stale: made from {record["sources"][:12]}, the sources are {sources[:12]}'
    return None


def look(ledger, row, sources):
    """A line about a row, and whether its record holds."""
    path = os.path.join(ledger, row + '.json')
    try:
        with open(path, encoding='utf-8') as file:
            record = json.load(file)
        fault = fault_of(record, row, sources)
    except FileNotFoundError:
        return f'FAILED: {row}: no record', False
    except (ValueError, OSError, TypeError, AttributeError) as error:
        return f'FAILED: {row}: {error}', False
    if fault is not None:
        return f'FAILED: {row}: the record {fault}', False
    return f'recorded {row} on {record["device"]}', True


def main():
    parser = argparse.ArgumentParser(description='Checks the records of kernel rows.')
    parser.add_argument('--root', default=ROOT, help='root of the project')
    parser.add_argument('--ledger', default=HERE, help='folder of the records')
    parser.add_argument('folders', nargs='+')
    a = parser.parse_args()
    rows = {}
    try:
        for folder in a.folders:
            rows.update(source_hash.row_hashes(a.root, folder))
    except (LookupError, OSError) as error:
        print(f'FAILED: {error}')
        return 1
    good = True
    for row, sources in rows.items():
        line, holds = look(a.ledger, row, sources)
        good = good and holds
        print(line)
    names = sorted(os.listdir(a.ledger)) if os.path.isdir(a.ledger) else []
    for name in names:
        if name.endswith('.json') and name[:-5] not in rows:
            good = False
            print(f'FAILED: {name}: a record of a row that is not there')
    if not rows and good:
        print('no rows to record')
    elif not good:
        print('repeat with  moe check --device D --ledger tests/ledger  on a machine that can run them')
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
