#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No CUDA kernel spills registers, has a stack frame, or reads local memory: cuda_resources.sh PLUGIN CUOBJDUMP
set -euo pipefail
usage=$("$2" -res-usage "$1" 2>&1 | grep -E 'Function|REG:')
kernels=$(grep -c 'REG:' <<< "$usage")
bad=$(grep -E -B1 'STACK:[1-9]|LOCAL:[1-9]' <<< "$usage" || true)
code=$("$2" -sass "$1" 2>/dev/null | grep -E '^[[:space:]]*/\*[0-9a-f]+\*/.*[[:space:]](LDL|STL)[.[:space:]]' | head -5 || true)
[ "$kernels" -ge 20 ] || { echo "FAILED: $kernels kernels found in $1, at least 20 are there"; exit 1; }
[ -z "$bad$code" ] || { echo "FAILED: stack frames, local memory or its instructions:"; echo "$bad$code"; exit 1; }
echo "$kernels kernels: no stack frame, no local memory, no LDL or STL"
