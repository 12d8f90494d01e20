#!/bin/sh
# An aarch64 userland in FOLDER: Python and what it needs from Debian, numpy and ONNX Runtime from PyPI, and beside
# it qemu, which runs it on any Linux.  All is unpacked, nothing is installed, and nobody needs to be root.
# Everything is taken from Debian 13, through a copy of this machine's own package sources: ONNX Runtime does not
# load under the qemu of Debian 12.
#
#     fetch_root.sh FOLDER PYTHON       PYTHON makes an environment whose pip fetches the wheels
set -eu

folder=$1 python=$2
constraints=$(cd "$(dirname "$0")/../../.." && pwd)/constraints.txt
rm -rf "$folder.partial" && mkdir -p "$folder.partial"
cd "$folder.partial"
work=$PWD/work
mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial" "$work/arm64" "$work/here" root

for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ ! -f "$list" ] || sed 's/bookworm/trixie/g' "$list" > "$work/sources/$(basename "$list")"
done
[ ! -f "$work/sources/sources.list" ] || mv "$work/sources/sources.list" "$work/sources/main.list"

apt() {
    apt-get -q -o Acquire::Retries=3 -o APT::Sandbox::User=root -o Dir::Etc::sourcelist=/dev/null \
        -o APT::Architectures::=arm64 -o Dir::Etc::sourceparts="$work/sources" -o Dir::State::lists="$work/lists" \
        -o Dir::Cache="$work/cache" "$@" > /dev/null
}

apt update
cd "$work/arm64"
apt download python3.13-minimal:arm64 libpython3.13-minimal:arm64 libpython3.13-stdlib:arm64 libc6:arm64 \
    libgcc-s1:arm64 libstdc++6:arm64 libexpat1:arm64 zlib1g:arm64 libssl3t64:arm64 libffi8:arm64 \
    libbz2-1.0:arm64 liblzma5:arm64 libuuid1:arm64
cd "$work/here"
apt download qemu-user
cd "$work/.."
for package in "$work"/arm64/*.deb; do dpkg -x "$package" root; done
[ -e root/lib ] || ln -s usr/lib root/lib
dpkg -x "$work"/here/qemu-user_*.deb "$work/qemu" && cp "$work/qemu/usr/bin/qemu-aarch64" qemu-aarch64
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work/wheels" \
    --python-version 3.13 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    --constraint "$constraints" numpy onnxruntime
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" packages; done
rm -rf "$work"

# A python3 that starts itself anew under qemu: qemu does not follow a program that starts another one.
cat > python3 <<'END'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
PYTHONHOME=$here/root/usr PYTHONPATH=$here/packages${PYTHONPATH:+:$PYTHONPATH} \
    exec "$here/qemu-aarch64" -L "$here/root" -0 "$here/python3" "$here/root/usr/bin/python3.13" "$@"
END
chmod +x python3
cd .. && rm -rf "$(basename "$folder")" && mv "$(basename "$folder").partial" "$(basename "$folder")"
