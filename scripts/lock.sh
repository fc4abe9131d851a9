#!/usr/bin/env bash
# Resolves pyproject.toml's extras in a fresh environment and writes what pip chose to requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/python -m pip --disable-pip-version-check"
$pip install --quiet 'pip>=24' wheel 'setuptools<82' 'hatchling>=1.27' editables
$pip install --quiet torch==2.13.0 ninja
DS_BUILD_OPS=0 $pip install --quiet --no-build-isolation --editable '.[operator,local,flax,deepspeed,serve,sign,bench,dev]'
$pip install --quiet --ignore-requires-python --no-deps helm-sdkpy tritonclient  # scripts/setup.sh says why like this
{
  echo "# Written by \`make lock\`. scripts/setup.sh installs exactly these."
  # The local part of a version (+cpu) names one build; any build of that version will do.
  $pip freeze --all --exclude-editable --exclude pip | sed -E 's/ @ .*//; s/\+[a-z0-9.]+$//'
} >requirements.lock
