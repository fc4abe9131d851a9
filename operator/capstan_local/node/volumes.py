"""The volumes of a pod as folders of this machine."""

import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstan_local.node.environment import ConfigError, PodFacts, config_data, expand, field_value, resource_value

FetchConfig = Callable[[str, str], Awaitable[Mapping[str, Any] | None]]
"""(kind, name) -> the ConfigMap or Secret in the pod's namespace; None when there is none."""
FetchClaim = Callable[[str], Awaitable[Path]]
"""Name of a claim -> its folder. Raises ConfigError while it is not bound."""
FetchToken = Callable[[Mapping[str, Any]], Awaitable[str]]
"""A projected volume's serviceAccountToken source -> a token."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the content of volumes comes from."""

    config: FetchConfig
    claim: FetchClaim
    token: FetchToken


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int


async def make_volume(volume: Mapping[str, Any], folder: Path, facts: PodFacts, sources: Sources) -> Path:
    """The folder (for hostPath perhaps a file) of one volume, with its content as it is now.

    `folder` is where volumes that live and die with the pod are made. Raises ConfigError when something is missing.
    """
    if "hostPath" in volume:
        return _host_path(volume["hostPath"])
    if "persistentVolumeClaim" in volume:
        return await sources.claim(volume["persistentVolumeClaim"]["claimName"])
    if "emptyDir" in volume:
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # a local folder
        return folder
    files = await _generated_files(volume, facts, sources)
    if files is None:
        kind = next((name for name in volume if name != "name"), "none")
        raise ConfigError(f'volume "{volume["name"]}": type {kind} is not supported on this node')
    write_atomically(folder, files)
    return folder


def is_generated(volume: Mapping[str, Any]) -> bool:
    """Whether the volume's content follows objects of the API server."""
    return any(kind in volume for kind in ("configMap", "secret", "projected"))


def referenced_configs(volume: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(kind, name) of each ConfigMap and Secret a volume shows."""
    found = set()
    for part in (volume, *((volume.get("projected") or {}).get("sources") or [])):
        if "configMap" in part:
            found.add(("ConfigMap", part["configMap"]["name"]))
        if "secret" in part:
            found.add(("Secret", part["secret"].get("secretName") or part["secret"]["name"]))
    return found


def _host_path(source: Mapping[str, Any]) -> Path:
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind in ("", "DirectoryOrCreate") and not path.exists():  # container runtimes make the folder without a type
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    wrong = (kind.startswith("Directory") and not path.is_dir()) or (kind.startswith("File") and not path.is_file())
    if wrong:
        raise ConfigError(f"hostPath type check failed: {path} is not a {kind.removesuffix('OrCreate').lower()}")
    return path


async def _generated_files(volume: Mapping[str, Any], facts: PodFacts, sources: Sources) -> dict[str, File] | None:
    """None for a kind of volume that has no generated files."""
    if "projected" in volume:
        projected = volume["projected"]
        mode = projected.get("defaultMode", 0o644)
        files: dict[str, File] = {}
        for part in projected.get("sources") or []:
            files.update(await _part_files(part, mode, facts, sources) or {})
        return files
    for kind in ("configMap", "secret", "downwardAPI"):
        if kind in volume:
            return await _part_files(volume, volume[kind].get("defaultMode", 0o644), facts, sources)
    return None


async def _part_files(part: Mapping[str, Any], mode: int, facts: PodFacts, sources: Sources) -> dict[str, File]:
    if "configMap" in part:
        return await _config_files("ConfigMap", part["configMap"]["name"], part["configMap"], mode, sources)
    if "secret" in part:
        source = part["secret"]
        return await _config_files("Secret", source.get("secretName") or source["name"], source, mode, sources)
    if "downwardAPI" in part:
        return {
            item["path"]: File(_downward(item, facts).encode(), item.get("mode", mode))
            for item in part["downwardAPI"].get("items") or []
        }
    if "serviceAccountToken" in part:
        source = part["serviceAccountToken"]
        return {source["path"]: File((await sources.token(source)).encode(), 0o600)}
    raise ConfigError(f"projected source {next(iter(part), 'none')} is not supported on this node")


def _downward(item: Mapping[str, Any], facts: PodFacts) -> str:
    if "fieldRef" in item:
        return field_value(item["fieldRef"]["fieldPath"], facts)
    return resource_value(item["resourceFieldRef"], {}, facts)


async def _config_files(
    kind: str, name: str, source: Mapping[str, Any], mode: int, sources: Sources
) -> dict[str, File]:
    obj = await sources.config(kind, name)
    if obj is None:
        if source.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    data = config_data(kind, obj)
    if not source.get("items"):
        return {key: File(value, mode) for key, value in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] in data:
            files[item["path"]] = File(data[item["key"]], item.get("mode", mode))
        elif not source.get("optional"):
            raise ConfigError(f'{kind.lower()} "{name}" has no key {item["key"]!r}')
    return files


def write_atomically(folder: Path, files: Mapping[str, File]) -> None:
    """Makes `folder` show exactly `files`, all at once: as on a real node, names are links into `..data`, which is a
    link to a folder that is never changed. Does nothing when the content is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "..data"
    current = folder / link.readlink() if link.is_symlink() else None
    if current is not None and _content(current) == {path: (file.content, file.mode) for path, file in files.items()}:
        return
    number = int(current.name.removeprefix("..")) + 1 if current is not None else 1
    fresh = folder / f"..{number}"
    fresh.mkdir()
    for path, file in files.items():
        target = _inside(fresh, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
        target.chmod(file.mode)
    new_link = folder / "..data_new"
    new_link.unlink(missing_ok=True)
    new_link.symlink_to(fresh.name)
    new_link.replace(link)
    wanted = {path.split("/")[0] for path in files}
    for name in wanted:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    if current is not None:
        shutil.rmtree(current)


def _inside(folder: Path, path: str) -> Path:
    if path.startswith("/") or ".." in path.split("/"):
        raise ConfigError(f"path {path!r} of a volume must be relative and must not contain '..'")
    return folder / path


def _content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
        if path.is_file()
    }


def mount_point(mount: Mapping[str, Any], volume: Path, variables: Mapping[str, str]) -> Path:
    """What a volumeMount shows: the volume, or the part of it that subPath or subPathExpr names, made if missing."""
    part = expand(mount["subPathExpr"], variables) if mount.get("subPathExpr") else mount.get("subPath") or ""
    if not part:
        return volume
    path = _inside(volume, part)
    if not path.resolve().is_relative_to(volume.resolve()):
        raise ConfigError(f"subPath {part!r} leads out of the volume")
    if not path.exists():
        path.mkdir(parents=True)
    return path
