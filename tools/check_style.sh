#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Style as a gate: formatting, blanks, invisible characters, licence tags, file sizes, the order in
# which folders may include each other, and names of this or that machine.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
say() {
    echo "style: $*"
    fail=1
}
sources=$(git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.def')
for f in $sources $(git ls-files '*.sh' '*.py' '*.cmake' '*CMakeLists.txt'); do
    head -3 "$f" | grep -q 'SPDX-License-Identifier: Apache-2.0' || say "$f: no licence tag"
done
bad=$(git grep -nIE '[[:blank:]]+$' -- ':!models' ':!tests/oracles' ':!LICENSE' ':!tests/fuzz/corpus' || true)
[ -z "$bad" ] || say "trailing blanks: $bad"
bad=$(git grep -nIP '\x{200B}|\x{200E}|\x{202E}|\x{FEFF}' -- '*.c' '*.h' '*.md' || true)
[ -z "$bad" ] || say "invisible characters: $bad"
big=$(git ls-files -z ':!models' ':!tests/oracles' | xargs -0 du -k | awk '$1 > 200 {print $2}')
[ -z "$big" ] || say "larger than 200 KiB: $big"
if command -v clang-format > /dev/null; then
    files=$(git ls-files '*.c' '*.h')
    # shellcheck disable=SC2086
    clang-format --dry-run -Werror $files 2> /tmp/moe-format.$$ || say "clang-format: $(grep -c 'error:' /tmp/moe-format.$$) places, first $(head -1 /tmp/moe-format.$$)"
    rm -f /tmp/moe-format.$$
fi
# A folder of src/ may include only itself and those to its left.
order="numerics core quant ops io backends api"
allowed=""
for d in $order; do
    allowed="$allowed $d"
    pattern=$(echo $allowed | tr ' ' '|')
    bad=$(grep -rnE '#include "[a-z_]+/' "src/$d" | grep -vE "#include \"(moe|$pattern)/" || true)
    [ -z "$bad" ] || say "src/$d includes to its right: $bad"
done
exit $fail
