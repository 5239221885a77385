#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A new weight format with a new element type: copies the sources, adds one file (log4.h to src/numerics/) and one
# row (row.txt to src/quant/formats.def), counts what differs, builds the program and checks the format with it.
#   toy_format.sh SOURCE_DIR WORK_DIR CMAKE CC
set -eu
source=$1 work=$2 cmake=$3 cc=$4
here=$source/tests/consumer/toy_format
fail() {
    echo "FAILED: toy format: $*"
    exit 1
}
rm -rf "$work"
mkdir -p "$work/tree"
for part in CMakeLists.txt CHANGELOG.md LICENSE NOTICE README.md bench cli cmake docs examples include model src tests tools; do
    cp -r "$source/$part" "$work/tree/"
done

cp "$here/log4.h" "$work/tree/src/numerics/log4.h"
table=$work/tree/src/quant/formats.def
last=$(grep -n '^MOE_FORMAT_ROW(' "$table" | tail -1 | cut -d: -f1)
sed -i "${last}r $here/row.txt" "$table"

# What was touched: one file more, one line more in another.
touched=$(diff -rq "$source/src" "$work/tree/src" || true)
[ "$(printf '%s\n' "$touched" | wc -l)" = 2 ] || fail "more than one file and one row: $touched"
[ "$(diff "$source/src/quant/formats.def" "$table" | grep -c '^[<>]')" = 1 ] || fail "more than one row in formats.def"

build() {
    "$cmake" -S "$work/tree" -B "$work/build" -DMOE_TESTS=OFF -DMOE_CUDA=OFF -DMOE_HIP=OFF -DMOE_AVX512=OFF -DCMAKE_BUILD_TYPE=None -DCMAKE_C_COMPILER="$cc" \
        -DCMAKE_C_FLAGS=-O0 && "$cmake" --build "$work/build" --target moe_cli
}
build > "$work/log" 2>&1 || { tail -20 "$work/log"; fail "does not build"; }
out=$("$work/build/moe" check --format mxlog4) || fail "$out"
printf '%s\n' "$out" | tail -1 | grep -q '^[1-9][0-9]* passed, 0 failed' || fail "nothing was checked: $out"
"$work/build/moe" explain --shape 64,32,8,2 --format mxlog4 | grep -Eq ' \*  moek_ggemm_any_any_any__(ref|avx)' || fail "no plan"
echo "toy format: one file, one row; $(printf '%s\n' "$out" | tail -1)"
