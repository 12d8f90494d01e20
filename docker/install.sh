#!/bin/sh
# Installs ernie-export into a place of its own.  One script for a bare machine and for the images of docker/.
set -eu

usage() {
    cat <<'TEXT'
install.sh [OPTION]... PACKAGE

Installs PACKAGE, a wheel of ernie-export or a clone of it, with Python 3.11 or newer.
Nothing of an earlier installation is touched before the new one has answered.

  --for EXTRAS       what to install beside it, as pyproject.toml names it (default: run,distribute)
  --at FOLDER        where (default: /opt/ernie-export)
  --command FILE     the command's link (default: /usr/local/bin/ernie-export)
  --wheels FOLDER    take every package from this folder, and nothing from a network:
                     pip download --dest FOLDER --constraint constraints.txt 'PACKAGE[run,distribute]'
  --constraints FILE exact versions (default: constraints.txt of the clone that holds this script)
  --system-packages  let it see the system's Python packages: TensorRT, where a stack brings it
TEXT
}

mistake() {
    echo "install.sh: $1" >&2
    exit 2
}

failed() {
    echo "install.sh: $1" >&2
    exit 1
}

extras=run,distribute at=/opt/ernie-export command=/usr/local/bin/ernie-export wheels='' system='' package=''
constraints=$(dirname "$0")/../constraints.txt
[ -f "$constraints" ] || constraints=''
while [ $# -gt 0 ]; do
    case $1 in
        --for | --at | --command | --wheels | --constraints)
            [ $# -gt 1 ] || mistake "$1 needs a value. See install.sh --help."
            case $1 in
                --for) extras=$2 ;;
                --at) at=$2 ;;
                --command) command=$2 ;;
                --wheels) wheels=$2 ;;
                --constraints) constraints=$2 ;;
            esac
            shift ;;
        --system-packages) system=--system-site-packages ;;
        --help) usage; exit 0 ;;
        -*) mistake "there is no option $1. See install.sh --help." ;;
        *) [ -z "$package" ] || mistake "one PACKAGE at a time: $package or $1."; package=$1 ;;
    esac
    shift
done
[ -n "$package" ] || mistake "which PACKAGE? Give a wheel of ernie-export or a clone of it. See install.sh --help."
[ -e "$package" ] || mistake "$package is not there. Give a wheel of ernie-export or a clone of it."
[ -z "$wheels" ] || [ -d "$wheels" ] || mistake "$wheels is no folder. --wheels names one with the packages' files."
[ -z "$constraints" ] || [ -f "$constraints" ] || mistake "$constraints is not there. --constraints names a file."
[ ! -e "$command" ] || [ -L "$command" ] || mistake "$command is no link of ours. Move it away, or name another with --command."

# Python, with what makes an environment.
if ! python3 -c 'import ensurepip, venv' 2> /dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        failed "python3 with venv is not installed. On Debian or Ubuntu: sudo apt-get install python3-venv"
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends python3-venv ca-certificates > /dev/null
    rm -rf /var/lib/apt/lists/*
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    failed "$(python3 --version) is too old. ernie-export needs Python 3.11 or newer."

mkdir -p "$at" 2> /dev/null && [ -w "$at" ] || failed "$at cannot be written. Run it as root, or name another folder with --at."
new=$(mktemp -d "$at/version-XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$new"
# shellcheck disable=SC2086  # an option or nothing
python3 -m venv $system "$new"
set -- --quiet --no-cache-dir --disable-pip-version-check
[ -z "$wheels" ] || set -- "$@" --no-index --find-links "$wheels"
[ -z "$constraints" ] || set -- "$@" --constraint "$constraints"
"$new/bin/python" -m pip install "$@" "${package}[$extras]" ||
    failed "$package could not be installed: pip says why above. $at is as it was."
version=$("$new/bin/ernie-export" --version) || failed "$package does not run. $at is as it was."

# The new one is whole: it takes the place of the old one in one step.
trap - EXIT
ln -s "$(basename "$new")" "$at/current.new"
mv -T "$at/current.new" "$at/current"
for old in "$at"/version-*; do [ "$old" = "$new" ] || rm -rf "$old"; done
mkdir -p "$(dirname "$command")"
ln -sfn "$at/current/bin/ernie-export" "$command"
echo "$version, as $command"
