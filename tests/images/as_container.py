"""Runs a pod's command in its image, as a kubelet would have it done: `as_container.py IMAGE COMMAND…`.

The node of capstan_local runs containers as processes of this machine. Where its images say that `python` is this
program, a process becomes a container of runc: the image's root, read-only; the image's user, without capabilities; the
pod's volumes where the pod wants them; /tmp; the node's network, on which every pod has an address of its own.

IMAGE is a JSON file: {"name", "root", "user", "group", "env", "state", "ran"}. Each start adds a line to `ran`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FS_GROUP = 1000
POD_IP = "CAPSTAN_POD_IP"
"""Variable with the pod's address. A kubelet writes it to /etc/hosts, where a program finds its own name."""
OF_THIS_MACHINE = ("PATH", "HOME", "TMPDIR", "POD_MOUNTS", "PWD", "OLDPWD", "SHLVL", "_")
"""Variables of the node's that mean nothing in a container."""


def main(description: str, *argv: str) -> None:
    image = json.loads(Path(description).read_text())
    mounts: dict[str, str] = json.loads(os.environ["POD_MOUNTS"])
    for place, path in mounts.items():
        _own(Path(path), is_scratch=place == "/tmp")
    name = uuid.uuid4().hex
    bundle = Path(image["state"], name)
    bundle.mkdir(parents=True)
    hosts = bundle / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{os.environ.get(POD_IP, '127.0.0.1')} {os.environ['HOSTNAME']}\n")
    files = {"/etc/hosts": str(hosts), "/etc/resolv.conf": "/etc/resolv.conf"}
    (bundle / "config.json").write_text(json.dumps(oci_config(image, os.environ, mounts | files, argv)))
    with Path(image["ran"]).open("a") as ran:
        ran.write(json.dumps({"image": image["name"], "pod": os.environ["HOSTNAME"], "argv": argv}) + "\n")
    os.execvp("runc", ["runc", "--root", f"{image['state']}/runc", "run", "--bundle", str(bundle), name])


def _own(path: Path, *, is_scratch: bool) -> None:
    """What a kubelet does to volumes for `fsGroup`; into scratch and into the file of last words anybody may write."""
    if path.is_file() or is_scratch:
        path.chmod(0o777 if path.is_dir() else 0o666)
        return
    subprocess.run(["chgrp", "--recursive", str(FS_GROUP), path], check=True)
    subprocess.run(["chmod", "--recursive", "g+rwX,g+s", path], check=True)


def oci_config(
    image: Mapping[str, Any], environ: Mapping[str, str], mounts: Mapping[str, str], argv: Sequence[str]
) -> dict[str, Any]:
    """The runtime's configuration of one container."""
    given = {name: value for name, value in environ.items() if name not in OF_THIS_MACHINE}
    env = image["env"] | {name: _inside(value, mounts) for name, value in given.items()}
    return {
        "ociVersion": "1.0.2",
        "hostname": environ["HOSTNAME"],
        "root": {"path": image["root"], "readonly": True},
        "process": {
            "args": [_inside(part, mounts) for part in argv],
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": "/tmp",
            "user": {"uid": image["user"], "gid": image["group"], "additionalGids": [FS_GROUP]},
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
        },
        "mounts": [*_system_mounts(has_tmp="/tmp" in mounts), *_volumes(mounts)],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def _inside(text: str, mounts: Mapping[str, str]) -> str:
    """`text` with the places on this machine that the node wrote into it turned back into those in the container."""
    for place, path in sorted(mounts.items(), key=lambda mount: len(mount[1]), reverse=True):
        text = text.replace(path, place)
    return text


def _system_mounts(*, has_tmp: bool) -> list[dict[str, Any]]:
    scratch = ["nosuid", "nodev", "mode=1777"]
    tmp = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": scratch}
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*scratch, "size=65536k"]},
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
        *([] if has_tmp else [tmp]),
    ]


def _volumes(mounts: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"destination": place, "type": "bind", "source": path, "options": ["bind", "rw", "nosuid"]}
        for place, path in sorted(mounts.items())
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
