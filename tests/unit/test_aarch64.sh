#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The bits of AArch64 against this machine's: builds libmoe and the checks of its kernel rows and layers
# with the cross compiler, and runs them under qemu-user and here. There, NEON's rows are checked like
# all others: within their bounds, and bit for bit the portable ones. Then the listings of all cases,
# each with a hash of its results, must be the same byte for byte. Here without AMX, with which layers
# of bf16 may take another arithmetic class.
#   test_aarch64.sh SOURCE_FOLDER WORK_FOLDER CHECK_BITS [EVERY]   CHECK_BITS: built here; one case in EVERY
set -euo pipefail
source=$1 work=$2 here=$3 every=${4:-}
jobs=$(nproc)
[ "$jobs" -le 2 ] || jobs=2 # other tests run beside
there=$work/build/tests/checkmoe/check_bits
emulate="qemu-aarch64 -L /usr/aarch64-linux-gnu"
start=$SECONDS
mkdir -p "$work"
rm -f "$work"/*.log "$work"/*.here* "$work"/*.there*
cmake -S "$source" -B "$work/build" -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DMOE_TESTS=OFF -DMOE_CLI=OFF \
    -DMOE_CUDA=OFF -DMOE_HIP=OFF -DMOE_WERROR=ON > "$work/build.log" 2>&1 \
    && cmake --build "$work/build" -j "$jobs" --target check_bits test_cpu_integers >> "$work/build.log" 2>&1 \
    || { cat "$work/build.log"; exit 1; }
echo "built in $((SECONDS - start)) s"

# Longest first. A part is a name, one case of rows in how many, and globs of rows and layers.
cat > "$work/parts" << END
b32 11 moek_ggemm_*_b32
b16 11 moek_ggemm_*_b16
b128 11 moek_ggemm_*_b128
c256 11 moek_ggemm_*_c256
b64 11 moek_ggemm_*_b64
layers 1 layer-*1?6 layer-*2?6
combine 7 moek_combine_*
quantize 7 moek_quantize_*
route 7 moek_route_*
glu 7 moek_glu_*
place 7 moek_place_*
sort 7 moek_sort_*
amx 1 moek_ggemm_*_amx
i32 1 moek_ggemm_*_i32
END
run_part() { # work, here, emulated program, name, every, globs
    local to=$1/$4
    $3 "$5" "${@:6}" > "$to.there" 2> "$to.there.log" || { echo "$4, emulated:"; tail -n 40 "$to.there.log"; return 1; }
    MOE_ISA=avx2 "$2" "$5" "${@:6}" > "$to.here" 2> "$to.here.log" || { echo "$4, here:"; tail -n 40 "$to.here.log"; return 1; }
    [ -s "$to.here" ] || [ "$4" = quantize ] || { echo "$4: no case"; return 1; } # those are checked alone
    LC_ALL=C sort "$to.there" > "$to.there.sorted"
    LC_ALL=C sort "$to.here" > "$to.here.sorted"
    if ! cmp -s "$to.there.sorted" "$to.here.sorted"; then
        echo "$4: other bits than here; < AArch64, > here:"
        diff "$to.there.sorted" "$to.here.sorted" | head -n 20
        return 1
    fi
    echo "$4: $(wc -l < "$to.here") cases listed, the same bits; emulated: $(tail -n 1 "$to.there.log")"
}
export -f run_part
# Every code, scale and row count of integer products; then on a CPU without dot products, which ends
# the program where one of its instructions stands outside of its file.
run_integers() { # work, emulator
    local tests=$1/build/tests/checkmoe log=$1/integers.log
    { $2 "$tests/test_cpu_integers" && $2 -cpu cortex-a53 "$tests/check_bits" 11 'moek_ggemm_any_i*' > /dev/null; } > "$log" 2>&1 \
        && grep -q "^skipped: .*neon_dotprod_b32: " "$log" || { echo "integers, emulated:"; tail -n 40 "$log"; return 1; }
    echo "integers, emulated: $(grep ' passed, ' "$log" | grep -v moek | paste -sd ';')"
}
export -f run_integers
failed=0
run_integers "$work" "$emulate" & integers=$!
sed "s/ [0-9]* / ${every:-&} /" "$work/parts" | xargs -P "$jobs" -L 1 bash -c 'run_part "$@"' - "$work" "$here" "$emulate $there" || failed=1
wait "$integers" || failed=1
# What was to be checked has been there.
for row in any_any_any__neon_{c256,b16,b32,b64,b128} any_{i8,i16}_packed__neon{,_dotprod}_{b16,b32} \
    any_i8_packed__neon{,_dotprod}_i32; do
    grep -qs "^moek_ggemm_$row .* [1-9][0-9]* passed, 0 failed" "$work"/*.there.log || { echo "row $row did not pass"; failed=1; }
done
echo "$((SECONDS - start)) s"
exit $failed
