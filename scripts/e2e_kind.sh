#!/usr/bin/env bash
# From nothing to a finished job on a cluster of kind: images, chart, example, doctor. It makes a cluster of its own and
# deletes that one alone. Needs Docker, kind, kubectl and helm, and is not run in CI, which has none of them.
#   KEEP=1           leaves the cluster for a look; the last line says how to delete it
#   SKIP_IMAGES=1    takes the images that `make images` has built before
#   --dry-run        says what would be done, and does nothing
set -euo pipefail
cd "$(dirname "$0")/.."

name=capstan-e2e
namespace=capstan-system
job=digits-flax
job_seconds=900
python=${PYTHON:-.venv/bin/python}
dry_run=
case "${1:-}" in
  "") ;;
  --dry-run) dry_run=1 ;;
  *)
    echo "e2e_kind.sh: $1 is unknown; call it without arguments, or with --dry-run" >&2
    exit 2
    ;;
esac

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
run() {
  if [ -n "$dry_run" ]; then
    printf '    %s\n' "$*"
  else
    "$@"
  fi
}

folder=$(mktemp -d)
export KUBECONFIG=$folder/kubeconfig # never the one of whoever calls
made=

finish() {
  code=$?
  if [ -n "$made" ] && [ "$code" != 0 ] && [ -z "$dry_run" ]; then
    say "It failed; what is there:"
    kubectl get pods,trainingjobs --all-namespaces || true
    kubectl -n "$namespace" logs deployment/capstan --tail=50 || true
  fi
  if [ -n "$made" ] && [ -z "${KEEP:-}" ]; then
    say "Deleting the cluster $name"
    run kind delete cluster --name "$name"
    rm -rf "$folder"
  elif [ -n "$made" ]; then
    say "Kept: export KUBECONFIG=$KUBECONFIG; kind delete cluster --name $name"
  else
    rm -rf "$folder"
  fi
  exit "$code"
}
trap finish EXIT

if [ -z "$dry_run" ]; then
  for tool in docker kind kubectl helm; do
    command -v "$tool" >/dev/null || {
      echo "e2e_kind.sh: $tool is not on PATH; install it, or use the embedded cluster: make demo" >&2
      exit 1
    }
  done
  docker info >/dev/null 2>&1 || {
    echo "e2e_kind.sh: docker: its engine does not answer; start it" >&2
    exit 1
  }
  if kind get clusters 2>/dev/null | grep -qx "$name"; then
    echo "e2e_kind.sh: a cluster $name is there already, and may be somebody's; kind delete cluster --name $name" >&2
    exit 1
  fi
fi
version=$("$python" -c 'from importlib.metadata import version; print(version("capstan"))')

if [ -z "${SKIP_IMAGES:-}" ]; then
  say "Building images"
  run make images IMAGES="operator flax-trainer"
fi
say "Creating the cluster $name"
run kind create cluster --name "$name" --config tests/kind/cluster.yaml --kubeconfig "$KUBECONFIG" --wait 180s
made=1
run kind load docker-image --name "$name" "capstan/operator:$version" "capstan/flax-trainer:$version"

say "Installing Capstan"
run helm install capstan charts/capstan --namespace "$namespace" --create-namespace --wait --timeout 180s

say "Training $job"
# On one node a volume for one node is enough, and it is all that kind has.
sed 's/ReadWriteMany/ReadWriteOnce/' "examples/$job/job.yaml" >"$folder/job.yaml"
run kubectl apply -f "$folder/job.yaml"
run kubectl wait "trainingjob/$job" --for=condition=Succeeded --timeout="${job_seconds}s"
run kubectl get trainingjobs

say "Asking the doctor"
run "$python" -m capstan_operator doctor

say "Removing Capstan; the job and its checkpoints stay"
run helm uninstall capstan --namespace "$namespace" --wait
run kubectl get "trainingjob/$job"
