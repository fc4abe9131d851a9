#!/usr/bin/env bash
# Fill DEST with the binaries of a real Kubernetes control plane, for use as KUBEBUILDER_ASSETS.
#
#   scripts/unpack_control_plane.sh SRC DEST
#
# SRC holds kube-apiserver.xz, kube-controller-manager.xz and kube-scheduler.xz. etcd comes from the PATH; when it is
# missing, Debian's etcd-server is installed, which needs root. Running it again does only what is still missing.
set -euo pipefail

if [[ $# -ne 2 ]]; then
  echo "usage: $0 SRC DEST" >&2
  exit 2
fi
src=$1
mkdir -p "$2"
dest=$(cd "$2" && pwd)

if ! compgen -G "$src/*.xz" >/dev/null; then
  echo "unpack_control_plane: no *.xz in '$src'; pass the folder that holds kube-apiserver.xz" >&2
  exit 1
fi

# Written beside the target and renamed, so that an interrupted run never leaves half a binary that looks whole.
for archive in "$src"/*.xz; do
  name=$(basename "$archive" .xz)
  if [[ -x "$dest/$name" && ! "$archive" -nt "$dest/$name" ]]; then
    continue
  fi
  echo "unpacking $name"
  partial=$(mktemp "$dest/.$name.XXXXXX")
  trap 'rm -f "$partial"' EXIT
  xz -dc "$archive" >"$partial"
  python3 "$(dirname "$0")/mend_kubernetes_binary.py" "$partial"
  chmod 0755 "$partial"
  mv -f "$partial" "$dest/$name"
  trap - EXIT
done

if ! command -v etcd >/dev/null && [[ ! -x "$dest/etcd" ]]; then
  if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "unpack_control_plane: etcd is not on the PATH; install it (Debian: apt-get install etcd-server) and run again" >&2
    exit 1
  fi
  echo "installing etcd-server"
  # The package's own daemon must not start: tests bring up private etcds on free ports.
  install_etcd() {
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends -qq \
      -o DPkg::Lock::Timeout=120 etcd-server >/dev/null
  }
  install_etcd || { apt-get update -qq && install_etcd; }
fi
if [[ ! -x "$dest/etcd" ]]; then
  ln -sfn "$(command -v etcd)" "$dest/etcd"
fi

for name in kube-apiserver etcd; do
  [[ -x "$dest/$name" ]] || { echo "unpack_control_plane: '$dest/$name' is missing after unpacking '$src'" >&2; exit 1; }
done
echo "control plane ready: export KUBEBUILDER_ASSETS=$dest"
