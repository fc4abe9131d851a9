"""What exactly a container runs on this machine: program, environment, folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstan_local.node.environment import ConfigError, Configs, PodFacts, build_environment, expand
from capstan_local.node.folder import PodFolder
from capstan_local.node.images import ImageRule
from capstan_local.node.mounts import Mounts
from capstan_local.node.volumes import mount_point

POD_MOUNTS = "POD_MOUNTS"
"""Environment variable with a JSON object {mount path: file or folder of this machine}."""
TERMINATION_LOG = "/dev/termination-log"


@dataclass(frozen=True, slots=True)
class Launch:
    """Ready to be executed."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    mounts: Mounts


def prepare_launch(
    container: Mapping[str, Any],
    rule: ImageRule,
    folder: PodFolder,
    volumes: Mapping[str, Path],
    facts: PodFacts,
    configs: Configs,
    service_variables: Mapping[str, str],
    devices: list[str] | None,
) -> Launch:
    """How `container` is run. Makes its folders. Raises ConfigError when something it refers to is missing.

    `devices`: the accelerators that are its own; None when the node has none at all.
    """
    name = container["name"]
    declared = build_environment(container, facts, configs, service_variables)
    real_paths = {
        mount["mountPath"]: mount_point(mount, volumes[mount["name"]], declared)
        for mount in container.get("volumeMounts") or []
    }
    message = folder.termination_message(name)
    message.parent.mkdir(parents=True, exist_ok=True)
    message.write_bytes(b"")
    real_paths[container.get("terminationMessagePath") or TERMINATION_LOG] = message
    mounts = Mounts(real_paths)

    work = folder.work(name)
    work.mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": ":".join(rule.path),
        "HOME": str(work),
        "TMPDIR": str(folder.temporary),
        "HOSTNAME": facts.pod["spec"].get("hostname") or facts.pod["metadata"]["name"],
        **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices is not None else {}),
        **rule.env,
        **service_variables,
        **{variable: mounts.rewrite(value) for variable, value in declared.items()},
        POD_MOUNTS: json.dumps(mounts.real_paths),
    }
    return Launch(
        _argv(container, rule, mounts, {**service_variables, **declared}), env, _cwd(container, mounts, work), mounts
    )


def _argv(container: Mapping[str, Any], rule: ImageRule, mounts: Mounts, variables: Mapping[str, str]) -> list[str]:
    command = container.get("command")
    argv = [*(command or rule.command or []), *(container.get("args") or [])]
    if not command and not rule.command:
        raise ConfigError(
            f'no command specified: image "{container["image"]}" has no default command on this node; '
            f'set the command of container "{container["name"]}"',
            "CreateContainerError",
        )
    return [mounts.rewrite(expand(part, variables)) for part in argv]


def _cwd(container: Mapping[str, Any], mounts: Mounts, work: Path) -> Path:
    wanted = container.get("workingDir")
    if not wanted:
        return work
    real = mounts.rewrite(wanted)
    if real != wanted:
        Path(real).mkdir(parents=True, exist_ok=True)
    return Path(real)
