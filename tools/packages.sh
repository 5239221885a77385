#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sees to it that the Debian packages of a build are there: says which are missing, installs them when
# root, else prints the one line that does. With --amd: those that make and execute AMD's code objects,
# which a build and its tests can do without.
set -euo pipefail
want="gcc g++ cmake make pkg-config libjansson-dev libpcre2-dev libxxhash-dev python3"
if [ "${1:-}" = --amd ]; then
    want="clang-22 lld-22 llvm-22"
fi
missing=""
for p in $want; do
    case $p in
    gcc | g++ | cmake | make | python3) command -v "$p" > /dev/null || missing="$missing $p" ;;
    *) dpkg-query -W -f='${Status}' "$p" 2> /dev/null | grep -q "ok installed" \
        || missing="$missing $p" ;;
    esac
done
[ -z "$missing" ] && exit 0
install() {
    export DEBIAN_FRONTEND=noninteractive
    [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing > /dev/null
}
echo "packages needed:$missing"
if install; then
    echo "packages installed:$missing"
elif [ "${1:-}" = --amd ]; then
    echo "without them the tests hip-* are left out (Debian 12 has them in its security archive)"
else
    echo "install them with: sudo apt-get install$missing"
    exit 1
fi
