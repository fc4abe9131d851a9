#!/usr/bin/env bash
# Creates the virtual environment $1 with the versions of requirements.lock. Safe to repeat: what is there stays.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: scripts/setup.sh FOLDER}
python=${PYTHON:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }
# pip repeats a line for everything that is already there; only what is new is news.
install() { "$venv/bin/python" -m pip install "$@" | { grep -v -e '^Requirement already satisfied' -e '^Looking in' || true; }; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  stop "$python is $("$python" -V 2>&1 || true); Python 3.11 or newer is needed: make PYTHON=python3.11 setup"

started=$SECONDS
if [ ! -x "$venv/bin/python" ]; then
  say "Creating $venv with $("$python" -V)"
  "$python" -m venv "$venv"
fi
say "Installing the pinned packages (about 3 GB with PyTorch and JAX; a few minutes the first time)"
install 'pip>=24' wheel
# DeepSpeed's build asks the installed torch what it can compile, so torch comes first and the build sees it.
install "$(grep '^torch==' requirements.lock)"
grep -v -e '^deepspeed==' -e '^helm-sdkpy==' -e '^tritonclient==' requirements.lock >"$venv/plain.txt"
install -r "$venv/plain.txt"
# For the tests. Helm's wheel asks for Python 3.12 and runs on 3.11; Triton's client asks for an older ml-dtypes than JAX
# and runs with the newer one.
install --ignore-requires-python --no-deps "$(grep '^helm-sdkpy==' requirements.lock)"
install --no-deps "$(grep '^tritonclient==' requirements.lock)"
DS_BUILD_OPS=0 install --no-build-isolation --no-deps "$(grep '^deepspeed==' requirements.lock)"
say "Installing capstan itself (editable)"
install --no-build-isolation --no-deps --editable .
say "Ready after $((SECONDS - started)) s: $venv"
