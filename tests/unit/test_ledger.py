#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/source_hash.py and tests/ledger/ledger.py on a small project of their own."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOL = os.path.join(os.path.dirname(TESTS), 'tools', 'source_hash.py')
LEDGER = os.path.join(TESTS, 'ledger', 'ledger.py')
FOLDER = 'src/backends/cuda'
FILES = {
    FOLDER + '/kernels.def': '// MOE_KERNEL(op, name, ...)\n'
                             'MOE_KERNEL(glu,   any__gpu,    NONE)\n'
                             'MOE_KERNEL(sort,  i32__gpu,    NONE)\n'
                             'MOE_KERNEL(ggemm, bf16__sm90a, WIDE)\n'
                             'MOE_KERNEL(ggemm, f16__sm90a,  NARROW)\n'
                             'MOE_KERNEL(ggemm, mx__sm90a,   NARROW)\n',
    'include/moe/arith.def': 'MOE_ARITH(NONE, none)\nMOE_ARITH(WIDE, wide, 24)\n'
                             'MOE_ARITH(NARROW, narrow, 13)\n',
    FOLDER + '/ops.cu': '#include "backends/gpu/glu.cuh"\n#include "backends/gpu/sort.cuh"\nint ops;\n',
    FOLDER + '/ggemm_two.cu': '#include "wide.cuh"\n// rows bf16__sm90a and f16__sm90a\nint two;\n',
    FOLDER + '/ggemm_one.cu': '#include <stdio.h>\n#include "moe/backend.h"\nint mx__sm90a;\n',
    FOLDER + '/wide.cuh': '#include "numerics/fma.h"\n#include "nowhere.h"\n',
    'src/backends/gpu/glu.cuh': '#include "dev_sim.h"\n'
                                '#include "numerics/fma.h"\nint glu;\n',
    'src/backends/gpu/sort.cuh': 'int sort;\n',
    'src/numerics/fma.h': '#include "moe/backend.h"\nconst char *a = "// no comment";\n',
    'include/moe/plan.h': 'int plan;\n',
    'src/backends/gpu/dev_sim.h': 'int sim;\n',
    'include/moe/backend.h': '#include "arith.def"\n#include "plan.h"\nint backend; /* one\ntwo */\n',
}
ROWS = ['moek_glu_any__gpu', 'moek_sort_i32__gpu', 'moek_ggemm_bf16__sm90a',
        'moek_ggemm_f16__sm90a', 'moek_ggemm_mx__sm90a']


class Project(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name
        self.records = os.path.join(self.root, 'records')
        os.mkdir(self.records)
        for path, text in FILES.items():
            self.put(path, text)

    def put(self, path, text):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)

    def call(self, *arguments):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                              check=False)
        return done.returncode, done.stdout + done.stderr

    def hashes(self):
        code, text = self.call(TOOL, '--root', self.root, '--rows', FOLDER)
        self.assertEqual(code, 0, text)
        return dict(line.split() for line in text.splitlines())

    def changed_by(self, path, text):
        """The rows whose hash changes with a file."""
        before = self.hashes()
        self.put(path, text)
        after = self.hashes()
        self.put(path, FILES[path])
        self.assertEqual(self.hashes(), before)
        return [row for row in ROWS if before[row] != after[row]]

    def record(self, name, **changes):
        row = name
        content = {'row': row, 'arith': 'none', 'sources': self.hashes()[row], 'device': 'a board',
                   'seed': 1, 'cases': 3, 'passed': 9, 'failed': 0}
        content.update(changes)
        with open(os.path.join(self.records, row + '.json'), 'w', encoding='utf-8') as file:
            json.dump(content, file)

    def ledger(self, folder=FOLDER):
        return self.call(LEDGER, '--root', self.root, '--ledger', self.records, folder)

    def test_rows(self):
        self.assertEqual(list(self.hashes()), ROWS)
        self.assertTrue(all(len(value) == 64 for value in self.hashes().values()))

    def test_what_changes_a_hash(self):
        glu, sort, bf16, f16, mx = ROWS
        self.assertEqual(self.changed_by('src/backends/gpu/glu.cuh', 'int glu2;\n'), [glu])
        self.assertEqual(self.changed_by('src/backends/gpu/sort.cuh', 'int sort2;\n'), [sort])
        self.assertEqual(self.changed_by(FOLDER + '/ops.cu', FILES[FOLDER + '/ops.cu'] + 'int b;\n'),
                         [glu, sort])
        self.assertEqual(self.changed_by(FOLDER + '/wide.cuh', 'int w;\n'), [bf16, f16])
        self.assertEqual(self.changed_by('src/numerics/fma.h', 'int f;\n'), [glu, bf16, f16])
        self.assertEqual(self.changed_by('include/moe/backend.h', 'int c;\n'), [glu, bf16, f16, mx])
        self.assertEqual(self.changed_by(FOLDER + '/ggemm_one.cu', 'int mx__sm90a = 1;\n'), [mx])

        table = FILES['include/moe/arith.def']
        self.assertEqual(self.changed_by('include/moe/arith.def', table.replace('13', '14')), [f16, mx])
        rows = FILES[FOLDER + '/kernels.def']
        self.assertEqual(self.changed_by(FOLDER + '/kernels.def', rows.replace('WIDE', 'NARROW')), [bf16])

    def test_what_does_not(self):
        text = FILES['include/moe/backend.h']
        for path, other in (('include/moe/backend.h', '// new\n\n' + text.replace('two', '3') + '\n'),
                            ('include/moe/plan.h', 'int plan2;\n'),
                            ('src/backends/gpu/dev_sim.h', 'int sim2;\n'),
                            ('include/moe/arith.def',
                             FILES['include/moe/arith.def'] + 'MOE_ARITH(NEW, new, 1)\n'),
                            (FOLDER + '/kernels.def',
                             FILES[FOLDER + '/kernels.def'].replace('sort,  i', 'sort, i'))):
            self.assertEqual(self.changed_by(path, other), [], path)
        text = FILES['src/numerics/fma.h'].replace('// no', '// yes')
        self.assertNotEqual(self.changed_by('src/numerics/fma.h', text), [])

    def test_files(self):
        before = self.call(TOOL, '--root', self.root, FOLDER + '/ggemm_two.cu')
        self.assertEqual((before[0], len(before[1].strip())), (0, 64))
        self.put('src/numerics/fma.h', 'int f;\n')
        self.assertNotEqual(self.call(TOOL, '--root', self.root, FOLDER + '/ggemm_two.cu'), before)
        self.assertEqual(self.call(TOOL, '--root', self.root, 'none.cu')[0], 1)
        self.assertEqual(self.call(TOOL)[0], 2)

    def test_output_is_kept(self):
        path = os.path.join(self.root, 'generated', 'rows.txt')
        for _ in range(2):
            self.assertEqual(self.call(TOOL, '--root', self.root, '--rows', FOLDER, '--output',
                                       path)[0], 0)
            os.utime(path, (5, 5)) if os.path.getmtime(path) != 5 else None
        self.assertEqual(os.path.getmtime(path), 5)
        with open(path, encoding='utf-8') as file:
            self.assertEqual(len(file.readlines()), len(ROWS))

    def test_unheld(self):
        self.put(FOLDER + '/kernels.def', 'MOE_KERNEL(route, f32__sm90a, X)\n')
        code, text = self.call(TOOL, '--root', self.root, '--rows', FOLDER)
        self.assertEqual(code, 1)
        self.assertIn('moek_route_f32__sm90a: no .cu file', text)
        self.put(FOLDER + '/kernels.def', 'MOE_KERNEL(route, f32__gpu, X)\n')
        self.assertIn('there is no src/backends/gpu/route.cuh', self.ledger()[1])

    def test_by_name_of_the_file(self):
        self.put(FOLDER + '/kernels.def', 'MOE_KERNEL(ggemm, other__sm90a, X)\n')
        before = self.hashes()
        self.put(FOLDER + '/ggemm_one.cu', 'int one;\n')
        self.assertNotEqual(self.hashes(), before)

    def test_host(self):
        folder = 'src/backends/cpu'
        rows = ('#define ROWS(isa) \\\n    MOE_KERNEL(glu, any##suffix, isa, 1)\n'
                'MOE_KERNEL(ggemm, any__avx2, MOEI_ISA_AVX2_FMA)\n'
                'MOE_KERNEL(ggemm, any__avx512, MOEI_ISA_AVX512)\n'
                'MOE_KERNEL(ggemm, any__amx, MOEI_ISA_AMX_BF16)\n')
        self.put(folder + '/kernels.def', rows)
        self.put(folder + '/avx/ggemm_any.c', '#include "vector.h"\n// any__avx2 and any__avx512\n')
        self.put(folder + '/avx/vector.h', 'int vector;\n')
        code, text = self.call(TOOL, '--root', self.root, '--rows', folder)
        self.assertEqual(code, 1)
        self.assertIn(f'moek_ggemm_any__amx: no .c file of {folder} holds it', text)
        self.put(folder + '/amx/ggemm_any.c', 'int any__amx;\n')
        both = ('--rows', FOLDER, '--rows', folder)
        code, text = self.call(TOOL, '--root', self.root, *both)
        self.assertEqual(code, 0, text)
        before = dict(line.split() for line in text.splitlines())
        self.assertEqual(list(before), ROWS + ['moek_ggemm_any__avx512', 'moek_ggemm_any__amx'])
        self.put(folder + '/avx/vector.h', 'int wider;\n')
        after = dict(line.split() for line in
                     self.call(TOOL, '--root', self.root, *both)[1].splitlines())
        self.assertEqual([row for row in before if before[row] != after[row]],
                         ['moek_ggemm_any__avx512'])
        self.assertIn('FAILED: moek_ggemm_any__amx: no record', self.ledger(folder)[1])

    def test_no_rows(self):
        self.assertEqual(self.ledger('src/backends/none'), (0, 'no rows to record\n'))

    def test_records(self):
        for row in ROWS:
            self.record(row)
        code, text = self.ledger()
        self.assertEqual(code, 0, text)
        self.assertEqual(text.splitlines()[0], 'recorded moek_glu_any__gpu on a board')
        self.assertEqual(len(text.splitlines()), len(ROWS))
        self.put('src/backends/gpu/sort.cuh', 'int other;\n')
        code, text = self.ledger()
        self.assertEqual(code, 1)
        self.assertIn('FAILED: moek_sort_i32__gpu: the record is stale', text)
        self.assertEqual(text.count('FAILED'), 1)

    def test_bad_records(self):
        for row in ROWS:
            self.record(row)
        glu = ROWS[0]
        for changes, said in (({'failed': 1}, '9 passed, 1 failed'), ({'cases': 0}, 'in 0 cases'),
                              ({'row': 'other'}, 'is of other')):
            self.record(glu, **changes)
            code, text = self.ledger()
            self.assertEqual(code, 1)
            self.assertIn(said, text)
        for text in ('', '[1]', '{}', '{"row": 3'):
            with open(os.path.join(self.records, glu + '.json'), 'w', encoding='utf-8') as file:
                file.write(text)
            code, text = self.ledger()
            self.assertEqual(code, 1, text)
            self.assertIn(f'FAILED: {glu}', text)
        os.remove(os.path.join(self.records, glu + '.json'))
        self.assertIn(f'FAILED: {glu}: no record', self.ledger()[1])
        self.record(glu)
        os.rename(os.path.join(self.records, glu + '.json'), os.path.join(self.records, 'x.json'))
        self.assertIn('FAILED: x.json: a record of a row that is not there', self.ledger()[1])


if __name__ == '__main__':
    unittest.main()
