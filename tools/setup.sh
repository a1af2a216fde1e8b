#!/usr/bin/env bash
# Makes .venv with what this checkout needs, and does nothing where that was done already.
#   tools/setup.sh        what the commands need
#   tools/setup.sh dev    also what the tests and checks need
set -euo pipefail
cd "$(dirname "$0")/.."

kind="${1:-run}"
python="${PYTHON:-python3}"

die() { printf 'setup: %s\n' "$1" >&2; exit 2; }

command -v "$python" >/dev/null ||
  die "no $python here; install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "Python 3.11 or newer is needed, this is $("$python" -V 2>&1); try make PYTHON=python3.12 ..."

# The stamp's name says for which pins it was made: changed pins install again.
pins=$("$python" -c 'import hashlib, pathlib, sys
print(hashlib.sha256(b"".join(pathlib.Path(p).read_bytes() for p in sys.argv[1:])).hexdigest()[:12])' \
  pyproject.toml constraints.txt)
stamp=".venv/.installed-$kind-$pins"
if [ -e "$stamp" ] || [ -e ".venv/.installed-dev-$pins" ]; then exit 0; fi

if [ ! -x .venv/bin/python ]; then
  echo "setup: making .venv (once; the download takes some minutes)"
  "$python" -m venv .venv || die "cannot make .venv; on Debian and Ubuntu: apt install python3-venv"
fi

pip=(.venv/bin/python -m pip --disable-pip-version-check install)
pin=$(grep -i '^torch==' constraints.txt)
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  "${pip[@]}" "$pin"
else
  # A CPU build is a tenth of the size. Not every index has one: then the plain pin must do.
  "${pip[@]}" "$pin+cpu" 2>/dev/null || "${pip[@]}" "$pin"
fi
case "$kind" in
  dev) "${pip[@]}" -c constraints.txt -e '.[dev]' ;;
  run) "${pip[@]}" -c constraints.txt -e '.[serve]' ;;
  *) die "what is '$kind'? Say nothing, or dev" ;;
esac

rm -f .venv/.installed-*
touch "$stamp"
