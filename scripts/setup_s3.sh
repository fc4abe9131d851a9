#!/usr/bin/env bash
# Creates .venv-s3, the S3 and MLflow servers that the tests start, with the versions of requirements-s3.lock. `--lock` writes those.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.venv-s3
python=${PYTHON:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1

[ -x $folder/bin/python ] || "$python" -m venv $folder
if [ "${1:-}" = --lock ]; then
  $folder/bin/python -m pip install --quiet --upgrade 'moto[server,s3]' mlflow
  {
    grep '^#' requirements-s3.lock
    $folder/bin/python -m pip freeze
  } >requirements-s3.lock.new
  mv requirements-s3.lock.new requirements-s3.lock
else
  printf '\033[1m==>\033[0m Installing the S3 and MLflow servers of the tests\n'
  $folder/bin/python -m pip install --quiet -r requirements-s3.lock
fi
