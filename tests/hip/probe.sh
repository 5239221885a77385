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
fp8="fp8 matrix units"
mx="scaled matrix units"
codes="codes to bf16"
matrix="$bf16+$fp8"
all="arithmetic+$bf16+$fp8+$codes"
if [ "$arch" = gfx950 ]; then
    matrix="$matrix+$mx"
    all="arithmetic+$matrix+$codes"
fi

# fault | families that are off (refused: the device is) | what was asked of each
faults="mfma-rows|$matrix|layout: output
mfma-k|$matrix|layout: output
mfma-zero|$matrix|expected 0, came -0
mfma-nan|$matrix|NaN and infinity: output .*: expected nan
mfma-short|$matrix|output
mfma-places|$matrix|other places: output
launch|$matrix|moek_probe_matrix_.*: unspecified launch failure
mfma-truncate|$bf16|layout: output
mfma-flush|$bf16|subnormal operands: output
cvt-nan|$codes|expected
div|refused|expected
flush|refused|came 00000000
lanes|refused|a of another lane"
if [ "$arch" = gfx950 ]; then # gfx942 has no such conversions and scales
    faults="$faults
cvt-scale|$codes|mxfp4: code
cvt-select|$codes|mxfp4: code
mx-k|$mx|layout: output
scale-lanes|$mx|layout: output
scale-opsel|$mx|layout: output"
fi

found=$(families "")
[ "$(sed 's/: .*//' <<< "$found" | paste -sd+)" = "$all" ] && ! grep -q " off" <<< "$found"
verdict $? "without a fault"
for sum in 0 1; do
    word=kept
    [ $sum = 1 ] && word="become 0"
    MOE_EMULATOR_SUM=$sum families "" | grep "matrix units" | grep -qv ": as expected; subnormal sums.*$word"
    [ $? = 1 ]
    verdict $? "what is recorded of subnormal sums, order $sum"
done

while IFS='|' read -r fault off text; do
    found=$(families "$fault")
    if [ "$off" = refused ]; then
        [ -z "$found" ] && grep -q "^backend hip .*absent: .*$text" "$out"
        verdict $? "$fault: moe info"
        code=0
        MOE_EMULATOR_FAULT=$fault "$moe" check --device hip --kernel 'moek_sort*' --every 20 > "$out" 2> "$err" || code=$?
        [ $code = 3 ] && [ ! -s "$out" ] && [ "$(wc -l < "$err")" = 1 ] && grep -q "$text" "$err"
        verdict $? "$fault: moe check: code $code"
    else
        [ "$(sed 's/: .*//; s/ off$//' <<< "$found" | paste -sd+)" = "$all" ] &&
            [ "$(grep " off: " <<< "$found" | sed 's/ off: .*//' | paste -sd+)" = "$off" ] &&
            ! grep " off: " <<< "$found" | grep -qv " off: .*$text"
        verdict $? "$fault: moe info"
    fi
done <<< "$faults"

# Rows of the family are refused, others are not and run instead, and layers have the results that they have
# without it.
refused() { # fault, family that is off, a row that is, the row that runs instead, what is explained
    local fault=$1 family=$2 off=$3 on=$4
    shift 4
    MOE_EMULATOR_FAULT='' "$moe" explain --shape 64,64,4,2 "$@" --det batch --device hip > "$out" 2> "$err"
    grep -qE "^ \* +moek_ggemm_$off +runs" "$out"
    verdict $? "without a fault: moe explain: $off"
    MOE_EMULATOR_FAULT=$fault "$moe" explain --shape 64,64,4,2 "$@" --det batch --device hip > "$out" 2> "$err"
    grep -E "moek_ggemm_$off " "$out" | grep -q "($family off: .*the kernel needs .*$family" &&
        grep -qE "^ \* +moek_ggemm_$on +runs" "$out"
    verdict $? "$fault: moe explain: $off"
    local code=0
    MOE_EMULATOR_FAULT=$fault "$moe" check --device hip --kernel "moek_ggemm_$off" > "$out" 2> "$err" || code=$?
    [ $code = 3 ] && grep -q "skipped: .*$family off: " "$out"
    verdict $? "$fault: moe check of a row: code $code"
}
layers() { # fault, layers
    local code=0
    MOE_EMULATOR_FAULT=$1 "$moe" check --device hip --kernel "$2" > "$out" 2> "$err" || code=$?
    [ $code = 0 ]
    verdict $? "$1: moe check of layers: code $code"
}
if [ "$arch" = gfx942 ]; then
    refused mfma-rows "$bf16" any_any_packed__cdna3 any_any_any__gpu_c256 --format bf16
    refused cvt-nan "$codes" any_any_packed__cdna3 bf16_any_bf16__cdna3 --format bf16
    refused cvt-nan "$codes" any_any_packed__cdna3_b128 any_any_any__gpu_b128 --format e4m3fn_block
    layers mfma-rows 'layer-?'
else
    refused scale-lanes "$mx" mx_any_packed__cdna4 any_any_packed__cdna4_b32 --format mxfp4 --activation mx_floor
    refused cvt-nan "$codes" any_any_packed__cdna4 any_any_any__gpu_b32 --format mxfp4
    layers cvt-nan 'layer-?'
    layers mfma-k 'layer-1?'
fi

# A fault that does not exist is none that passes.
MOE_EMULATOR_FAULT=none-such "$moe" info > "$out" 2> "$err"
grep -q "^backend hip .*absent: .*invalid argument" "$out"
verdict $? "an unknown fault"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
