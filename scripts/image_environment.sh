#!/usr/bin/env bash
# What the Dockerfiles run while they build; the image's environment is /opt/capstan, everything else stays behind.
#   image_environment.sh tools                   what installs and lists the rest; a layer that all images' builds share
#   image_environment.sh dependencies            what wanted.txt asks for, in the versions of requirements.lock
#   image_environment.sh package                 Capstan itself, in /staged, and the list of all that is inside
# VARIANT=cpu|cuda chooses the builds of torch and JAX, TORCH_INDEX is where torch's CPU build comes from (empty: pip's own
# index), DEEPSPEED_OPS names extensions to compile, such as "FUSED_ADAM CPU_ADAM". A build may mount pip's configuration
# and a CA bundle as /run/secrets/pip.conf and /run/secrets/ca.crt.
set -euo pipefail
environment=/opt/capstan
tools=/opt/tools
[ ! -e /run/secrets/pip.conf ] || export PIP_CONFIG_FILE=/run/secrets/pip.conf
[ ! -e /run/secrets/ca.crt ] || export PIP_CERT=/run/secrets/ca.crt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CONSTRAINT=$PWD/requirements.lock

stop() { printf 'image_environment.sh: %s\n' "$*" >&2; exit 1; }
# Bytecode comes later, in a form that no image's clock can make stale.
install() { "$tools/bin/pip" --python "$environment/bin/python" install --quiet --no-compile --no-warn-script-location "$@"; }
# Checked by nobody at import: what is in an image does not change. Some packages ship files of other Pythons, which do not
# compile here and are not imported here either.
compile() { "$environment/bin/python" -m compileall -qq -j 0 --invalidation-mode unchecked-hash "$1" || true; }

tools() {
  python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' ||
    stop "BASE has no python3 of 3.11 or newer with venv; docs/images.md says what a base needs"
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet hatchling cyclonedx-bom
}

dependencies() {
  python3 -m venv --without-pip "$environment"
  local wanted=$tools/wanted.txt
  cp wanted.txt "$wanted"
  if [ "$VARIANT" = cuda ]; then
    sed -i 's/^jax>=/jax[cuda13]>=/' "$wanted"
  elif [ -n "$TORCH_INDEX" ] && grep -q '^torch==' "$wanted"; then
    # Of that index nothing but torch, which there is of exactly this version and for CPUs alone.
    install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' "$wanted")"
  fi
  if grep -q '^deepspeed' "$wanted"; then
    # It has no wheel, and its build asks the installed torch what it can compile.
    install "$(grep '^torch==' "$wanted")" ninja
    deepspeed_build "$wanted"
  else
    install --requirement "$wanted"
  fi
  check_versions
  compile "$environment/lib"
}

deepspeed_build() {
  export DS_BUILD_OPS=0
  local op
  for op in ${DEEPSPEED_OPS:-}; do export "DS_BUILD_$op=1"; done
  if [ -n "${DEEPSPEED_OPS:-}" ]; then
    apt-get update
    apt-get install --yes --no-install-recommends g++
    [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
      apt-get install --yes --no-install-recommends python3-dev
  fi
  PATH=$environment/bin:$PATH install --use-pep517 --no-build-isolation --requirement "$1"
}

check_versions() {
  # CUDA's libraries are pinned by torch and JAX themselves, and are not in the lock.
  "$tools/bin/python" - "$("$tools/bin/pip" --python "$environment/bin/python" list --format=freeze)" <<'PYTHON'
import os, re, sys
from pathlib import Path

def plain(line):
    name, _, version = line.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower(), version.partition("+")[0]

locked = dict(map(plain, filter(lambda line: "==" in line, Path("requirements.lock").read_text().splitlines())))
installed = dict(map(plain, sys.argv[1].splitlines()))
strange = [f"{name}=={version}" for name, version in installed.items() if locked.get(name) != version]
if os.environ["VARIANT"] == "cuda":
    print("not in requirements.lock, chosen by torch and JAX:", *strange)
elif strange:
    sys.exit(f"image_environment.sh: {', '.join(strange)}: not in requirements.lock; run `make lock`")
PYTHON
}

package() {
  "$tools/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$tools/wheels" .
  install --no-deps "$tools"/wheels/capstan-*.whl
  install --no-deps --ignore-installed --root /staged "$tools"/wheels/capstan-*.whl
  compile /staged
  "$tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --mc-type application --output-reproducible \
    --output-file "/staged$environment/sbom.cdx.json" "$environment/bin/python"
}

"$@"
