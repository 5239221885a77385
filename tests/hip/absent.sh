#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# absent.sh MOE PLUGIN: without HIP's runtime, or with something else in its place, every command ends
# with one line that says so, and code 3.
set -u
moe=$1
export MOE_PLUGIN_PATH=$2
passed=0
failed=0
out=$(mktemp)
err=$(mktemp)
trap 'rm -f "$out" "$err"' EXIT
expect() { # reason, arguments of moe
    local reason=$1 code=0
    shift
    "$moe" "$@" > "$out" 2> "$err" || code=$?
    if [ $code = 3 ] && [ ! -s "$out" ] && [ "$(wc -l < "$err")" = 1 ] && grep -qF "$reason" "$err"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: moe $*: code $code, expected 3 and one line with \"$reason\""
        cat "$out" "$err"
    fi
}
none="no HIP runtime: libamdhip64.so"
lacks="the HIP runtime lacks hipInit"
missing="/nonexistent/libamdhip64.so"
layer="--shape 32,32,4,2 --format bf16 --tokens 4"
if ldconfig -p 2> /dev/null | grep -q libamdhip64; then
    echo "libamdhip64 is installed: that none is found is not tried"
else
    unset MOE_HIP_LIB
    expect "$none" check --device hip
    expect "$none" bench $layer --device hip
fi
export MOE_HIP_LIB=$missing
expect "$missing" check --device hip
expect "$missing" bench $layer --device hip
MOE_HIP_LIB=libm.so.6
expect "$lacks" check --device hip
"$moe" info > "$out"
if grep -qF "backend hip    absent: $lacks" "$out"; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    echo "FAILED: moe info"
    cat "$out"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
