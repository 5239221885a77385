#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# libmoe as others use it: installed, found by CMake and by pkg-config, extended by a plugin.
#   consumer.sh SOURCE_DIR BUILD_DIR WORK_DIR CMAKE CC
set -u
source=$1 build=$2 work=$3 cmake=$4 cc=$5
model=$source/models/tiny-gpt-oss
prefix=$work/prefix
passed=0
failed=0
expect() { # exit code, text on either stream, command
    local code=$1 text=$2 out status
    shift 2
    out=$("$@" 2>&1)
    status=$?
    if [ "$status" = "$code" ] && { [ -z "$text" ] || printf '%s' "$out" | grep -qF -- "$text"; }; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: %s: exit %s, want %s; want text: %s; got:\n%s\n' "$*" "$status" "$code" "$text" "$(printf '%s' "$out" | tail -15)"
    fi
}
done_with() {
    echo "$passed passed, $failed failed"
    exit "$([ "$failed" = 0 ] && echo 0 || echo 1)"
}
unset MOE_PLUGIN_PATH MOE_ISA
rm -rf "$work"
mkdir -p "$work"

# -- Install, then move the tree: nothing in it may know where it was.
expect 0 "moeConfig.cmake" "$cmake" --install "$build" --prefix "$work/first"
mv "$work/first" "$prefix" || done_with
libdir=$(dirname "$(find "$prefix" -name libmoe.so)")

# -- CMake: shared, static, and the plugin.
expect 0 "Build files have been written" "$cmake" -S "$source/tests/consumer" -B "$work/cmake" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_COMPILER="$cc" -DCMAKE_PREFIX_PATH="$prefix" -DEXAMPLES="$source/examples"
expect 0 "Built target toy_layer" "$cmake" --build "$work/cmake"
cd "$work/cmake" || done_with
for kind in "" _static; do
    expect 0 "0x4061" ./first_layer$kind
    expect 0 "of the bound" ./mmap_weights$kind "$model"
done
readelf -d first_layer | grep -q 'NEEDED.*libmoe.so.0' || { echo "FAILED: first_layer does not need libmoe.so.0"; failed=$((failed + 1)); }
readelf -d first_layer_static | grep -q 'NEEDED.*libmoe' && { echo "FAILED: first_layer_static needs libmoe"; failed=$((failed + 1)); }

# -- pkg-config: shared, and a program without any shared library.
export PKG_CONFIG_PATH=$libdir/pkgconfig
# shellcheck disable=SC2046
compile() { # output, flags of pkg-config, package, source, flags of the compiler
    local out=$1 kind=$2 package=$3 file=$4
    shift 4
    "$cc" -std=c17 -O1 "$source/examples/$file" -o "$work/$out" "$@" $(pkg-config $kind --cflags --libs "$package")
}
expect 0 "" compile pc_shared "" moe 01_first_layer.c
expect 0 "0x4061" env LD_LIBRARY_PATH="$libdir" "$work/pc_shared"
expect 0 "" compile pc_io_shared "" moe_io 03_mmap_weights.c -lm
expect 0 "of the bound" env LD_LIBRARY_PATH="$libdir" "$work/pc_io_shared" "$model"
expect 0 "" compile pc_static --static moe 01_first_layer.c -static
expect 0 "0x4061" "$work/pc_static"
expect 0 "" compile pc_io_static --static moe_io 03_mmap_weights.c -static
expect 0 "of the bound" "$work/pc_io_static" "$model"

# -- The plugin: by explicit path (file, folder), by the variable, in libmoe's own folder.
toy=$work/cmake/plugins/libmoe_backend_toy.so
other=$work/cmake/plugins999/libmoe_backend_toy.so
moe=$prefix/bin/moe
same="the same bits on both"
[ "$(nm -D --defined-only "$toy" | awk '{print $NF}')" = moe_backend_entry ] ||
    { echo "FAILED: the plugin exports more than moe_backend_entry"; failed=$((failed + 1)); }
expect 0 "$same" ./toy_layer toy "$toy"
expect 0 "$same" ./toy_layer toy "$(dirname "$toy")"
expect 0 "ggemm_any_any_float__toy ran 2 times" ./toy_layer toy "$toy"
expect 0 "loaded 1 time" ./toy_layer toy "$toy"
expect 0 "weights are mxfp4, the kernel takes bf16" ./toy_layer toy "$toy"
expect 0 "toy: desc.latent = 64, must be 0" ./toy_layer toy "$toy"
expect 0 "$same" env MOE_PLUGIN_PATH="/nonexistent:$(dirname "$toy")" ./toy_layer toy
expect 0 "$same" env MOE_PLUGIN_PATH="$toy" ./toy_layer toy
expect 0 "backend toy    ready: loops in plain C" env MOE_PLUGIN_PATH="$toy" "$moe" info
expect 0 "moek_ggemm_any_any_float__toy" env MOE_PLUGIN_PATH="$toy" "$moe" info --kernels
expect 0 '"name": "toy", "available": true' env MOE_PLUGIN_PATH="$toy" "$moe" info --json
cp "$toy" "$libdir/"
expect 0 "$same" ./toy_layer toy
expect 0 "backend toy    ready: loops in plain C" "$moe" info
rm "$libdir/libmoe_backend_toy.so"

# -- Refusals: each is a reason, and the context that asks for nothing of the kind works.
expect 1 'no backend for name "toy"' ./toy_layer toy
expect 1 "no backend for name \"toy\"" env -C "$(dirname "$toy")" "$work/cmake/toy_layer" toy
expect 1 "built for backend ABI 999, this library has 4" ./toy_layer toy "$other"
expect 0 "backend toy    absent: $other: built for backend ABI 999" env MOE_PLUGIN_PATH="$other" "$moe" info
expect 0 "$same" env MOE_PLUGIN_PATH="$other:$toy" ./toy_layer toy
expect 1 "must be an absolute path" ./toy_layer toy plugins/libmoe_backend_toy.so
expect 0 "a relative path: plugins are never taken from the working directory" env MOE_PLUGIN_PATH=plugins "$moe" info
expect 1 'no backend for name "toy"' env MOE_PLUGIN_PATH=plugins ./toy_layer toy
expect 0 "has no symbol moe_backend_entry" env MOE_PLUGIN_PATH="$libdir/libmoe_io.so" LD_LIBRARY_PATH="$libdir" "$moe" info
echo "not a library" > "$work/libmoe_cuda.so"
expect 0 "libmoe_cuda.so: " env MOE_PLUGIN_PATH="$work" "$moe" info
expect 3 "no backend for device \"cuda\": $work/libmoe_cuda.so: " env MOE_PLUGIN_PATH="$work" "$moe" check --device cuda
expect 3 'no backend for device "cuda"' "$moe" check --device cuda
expect 0 "backend hip    absent: no libmoe_hip.so in" "$moe" info

# -- A program with raised privileges ignores the variable. Needs root, and files that may be setuid.
setuid_copy() { cp "$1" "$2" && chown 65534 "$2" && chmod 4755 "$2"; }
if [ "$(id -u)" = 0 ] && chmod a+rx "$work" && setuid_copy "$(command -v id)" "$work/id" && [ "$("$work/id" -u)" = 65534 ]; then
    setuid_copy "$moe" "$work/moe"
    out=$(MOE_PLUGIN_PATH=$toy "$work/moe" info 2>&1)
    if printf '%s' "$out" | grep -q "backend cpu" && ! printf '%s' "$out" | grep -q "backend toy"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: a setuid program takes plugins from MOE_PLUGIN_PATH, or does not run:\n%s\n' "$out"
    fi
else
    echo "skipped: the setuid case needs root and a file system that honours setuid"
fi

"$source/tests/consumer/toy_format/toy_format.sh" "$source" "$work/format" "$cmake" "$cc" && passed=$((passed + 1)) || failed=$((failed + 1))
done_with
