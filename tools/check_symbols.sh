#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the shared libraries need and offer: libmoe.so needs libc and libm alone, libmoe_io.so adds
# libjansson, libxxhash and libmoe; every symbol begins with moe_; nothing asks for an executable stack.
#   tools/check_symbols.sh BUILD_DIR
set -euo pipefail
build=${1:?usage: tools/check_symbols.sh BUILD_DIR}
fail=0
check() { # library, then patterns of what it may need
    local lib=$1 pattern name
    shift
    [ -e "$build/$lib" ] || { echo "$build/$lib is not there"; fail=1; return; }
    while read -r name; do
        local allowed=0
        for pattern in 'libc.so.*' 'ld-linux*' "$@"; do
            # shellcheck disable=SC2053
            [[ $name == $pattern ]] && allowed=1
        done
        [ $allowed = 1 ] || { echo "$lib needs $name"; fail=1; }
    done < <(readelf -d "$build/$lib" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    while read -r name; do
        [[ $name == moe_* ]] || { echo "$lib exports $name, which does not begin with moe_"; fail=1; }
    done < <(nm -D --defined-only "$build/$lib" | awk '{print $NF}')
    ! readelf -lW "$build/$lib" | grep 'GNU_STACK.*RWE' || { echo "$lib wants an executable stack"; fail=1; }
}
check libmoe.so 'libm.so.*'
check libmoe_io.so 'libm.so.*' 'libjansson.so.*' 'libxxhash.so.*' 'libmoe.so.*'
exit $fail
