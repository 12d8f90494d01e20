#!/bin/sh
# fetch_headers.sh FOLDER: unpack ONNX Runtime's C++ headers (Debian's libonnxruntime-dev) below FOLDER.
# Nothing is installed, so no root is needed.  The package came with Debian 13: on Debian 12 it is taken
# from there, through a copy of this machine's own package sources.
set -eu

folder=$1
package=libonnxruntime-dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial" "$work/download"

for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ ! -f "$list" ] || sed 's/bookworm/trixie/g' "$list" > "$work/sources/$(basename "$list")"
done
[ ! -f "$work/sources/sources.list" ] || mv "$work/sources/sources.list" "$work/sources/main.list"

apt() {
    apt-get -q -o Acquire::Retries=3 -o APT::Sandbox::User=root -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$work/sources" -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "$@"
}

apt update
(cd "$work/download" && apt download "$package")
mkdir -p "$folder"
dpkg -x "$work/download/$package"_*.deb "$folder"
