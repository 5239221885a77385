#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# probe.sh MOE ARCH: what the plugin asks a device before it uses its rows. On the emulated device as it is all
# families are on. With each fault of tests/emulator/faults.def exactly the families that it touches are off, with
# what was asked; or the device is refused in one line. What is left still computes.
set -u
moe=$1
arch=$2
export MOE_EMULATOR_ARCH=$arch MOE_EMULATOR_QUIET=1
passed=0
failed=0
out=$(mktemp)
err=$(mktemp)
trap 'rm -f "$out" "$err"' EXIT
verdict() { # whether, what
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $2"
        cat "$out" "$err"
    fi
}
families() { # of moe info: "name: ..." or "name off: ..."
    MOE_EMULATOR_FAULT=$1 "$moe" info > "$out" 2> "$err"
    sed -n '/^backend hip/,/^backend/s/^  //p' "$out"
}

bf16="bf16 matrix units"
codes="codes to bf16"
all=$(printf '%s\n' arithmetic "$bf16" "$codes")

# fault, families that are off (all: the device is refused), what was asked
faults="mfma-rows|$bf16|layout: output
mfma-k|$bf16|layout: output
mfma-truncate|$bf16|layout: output
mfma-zero|$bf16|expected 0, came -0
mfma-flush|$bf16|subnormal operands: output
mfma-nan|$bf16|NaN and infinity: output 0, row 0: expected nan
mfma-short|$bf16|output
mfma-places|$bf16|other places: output
launch|$bf16|moek_probe_matrix_bf16: unspecified launch failure
cvt-nan|$codes|expected
div|all|expected
flush|all|came 00000000
lanes|all|a of another lane"
if [ "$arch" = gfx950 ]; then # gfx942 has no such conversions
    faults="$faults
cvt-scale|$codes|mxfp4: code
cvt-select|$codes|mxfp4: code"
fi

found=$(families "")
[ "$(sed 's/: .*//' <<< "$found")" = "$all" ] && ! grep -q " off" <<< "$found"
verdict $? "without a fault"
for sum in 0 1; do
    word=kept
    [ $sum = 1 ] && word="become 0"
    MOE_EMULATOR_SUM=$sum families "" | grep -q "^$bf16: as expected; subnormal sums.*$word"
    verdict $? "what is recorded of subnormal sums, order $sum"
done

while IFS='|' read -r fault off text; do
    found=$(families "$fault")
    if [ "$off" = all ]; then
        [ -z "$found" ] && grep -q "^backend hip .*absent: .*$text" "$out"
        verdict $? "$fault: moe info"
        code=0
        MOE_EMULATOR_FAULT=$fault "$moe" check --device hip > "$out" 2> "$err" || code=$?
        [ $code = 3 ] && [ ! -s "$out" ] && [ "$(wc -l < "$err")" = 1 ] && grep -q "$text" "$err"
        verdict $? "$fault: moe check: code $code"
    else
        [ "$(grep -c . <<< "$found")" = "$(grep -c . <<< "$all")" ] &&
            [ "$(grep " off: " <<< "$found" | sed 's/ off: .*//')" = "$off" ] && grep -q " off: .*$text" <<< "$found"
        verdict $? "$fault: moe info"
    fi
done <<< "$faults"

# Rows of the family are refused, others are not, and layers have the results that they have without it.
refused() { # fault, family that is off, rows that are, rows that are not
    MOE_EMULATOR_FAULT=$1 "$moe" explain --shape 64,64,4,2 --format bf16 --device hip --det batch > "$out" 2> "$err"
    [ "$(grep -cE "moek_ggemm_$3" "$out")" -ge 2 ] &&
        ! grep -E "moek_ggemm_$3" "$out" | grep -qv "($2 off: .*the kernel needs"
    verdict $? "$1: moe explain: rows that are off"
    [ "$(grep -cE "moek_ggemm_$4" "$out")" -ge 2 ] && ! grep -E "moek_ggemm_$4" "$out" | grep -q " off: " &&
        grep -qE "^ \* +moek_ggemm_$4.* runs" "$out"
    verdict $? "$1: moe explain: rows that are not"
    code=0
    MOE_EMULATOR_FAULT=$1 "$moe" check --device hip --kernel "moek_ggemm_any_any_packed*" > "$out" 2> "$err" || code=$?
    [ $code = 3 ] && grep -q "skipped: .*$2 off: " "$out"
    verdict $? "$1: moe check of a row: code $code"
    code=0
    MOE_EMULATOR_FAULT=$1 "$moe" check --device hip --kernel 'layer-?' > "$out" 2> "$err" || code=$?
    [ $code = 0 ]
    verdict $? "$1: moe check of layers: code $code"
}
version=${arch/gfx942/cdna3}
version=${version/gfx950/cdna4}
if [ "$arch" = gfx942 ]; then
    refused mfma-rows "$bf16" "(bf16_any_bf16|any_any_packed)__$version" "any_any_any__gpu"
else
    refused cvt-nan "$codes" "any_any_packed__$version" "(any_any_any__gpu|bf16_any_bf16__$version)"
fi

# A fault that does not exist is none that passes.
MOE_EMULATOR_FAULT=none-such "$moe" info > "$out" 2> "$err"
grep -q "^backend hip .*absent: .*invalid argument" "$out"
verdict $? "an unknown fault"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
