"""Builds Capstan's images with Docker or buildah, whichever works here, and writes what is inside each of them, as
CycloneDX JSON, to build/sbom. docs/images.md says what can be chosen."""

import argparse
import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DOCKERFILES = {
    "operator": Path("Dockerfile"),
    "flax-trainer": Path("trainer_images/flax/Dockerfile"),
    "deepspeed-trainer": Path("trainer_images/deepspeed/Dockerfile"),
    "serve-replica": Path("trainer_images/serve/Dockerfile"),
    "bench": Path("trainer_images/bench/Dockerfile"),
}
"""Name of an image -> what it is built from. The chart's values name the same."""
LOCAL_BASE = "localhost/capstan/base:bookworm"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
SBOM_IN_IMAGE = "/opt/capstan/sbom.cdx.json"
SBOM_FOLDER = Path("build/sbom")
CA_BUNDLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
"""Variables that name the certificates this machine trusts, where they are not those of its distribution."""


class CannotBuild(Exception):
    """The message is one line that says why, and what to do."""


@dataclass(frozen=True, slots=True)
class PipSettings:
    """How pip reaches packages on this machine. Enters builds as mounts, never a layer."""

    options: dict[str, str]
    """As in a section of pip.conf."""
    folders: tuple[Path, ...]
    """Files and folders of this machine that the options name."""
    ca_bundle: Path | None
    """None: the base's own certificates will do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 built, 1 not."""
    options = _parser().parse_args(arguments)
    try:
        engine = find_engine()
        base = options.base
        if base == "local":
            base = _local_base(engine)
        torch_index = find_torch_index() if options.torch_index is None else options.torch_index
        with build_arguments(engine, read_pip_settings()) as private:
            for name in options.images:
                _build(engine, name, options, base, torch_index, private)
    except CannotBuild as error:
        print(f"build_images: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build_images", description=__doc__)
    parser.add_argument("--base", default="", help="base of all stages; empty: the Dockerfiles' own; local: Debian's")
    parser.add_argument("--variant", choices=["cpu", "cuda"], default="cpu", help="builds of torch and JAX")
    parser.add_argument("--registry", default="", help="put before the names")
    parser.add_argument("--tag", default=project()["version"], help="default: the package's version")
    parser.add_argument("--torch-index", help="index of torch's CPU build; default: PyTorch's, unless pip's own has it")
    parser.add_argument("--deepspeed-ops", default="", help="DeepSpeed's extensions to compile, by spaces")
    parser.add_argument("images", nargs="*", metavar="IMAGE", default=list(DOCKERFILES), help="default: all")
    return parser


def project() -> dict[str, str]:
    """The table of pyproject.toml that describes the package."""
    found: dict[str, str] = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return found


def find_engine() -> str:
    """`docker` or `buildah`. CannotBuild when neither works."""
    # A client alone builds nothing: it is asked for its engine.
    if shutil.which("docker") and _answer(["docker", "info"]) is not None:
        return "docker"
    if shutil.which("buildah"):
        return "buildah"
    raise CannotBuild("neither a Docker engine nor buildah is here; install one, such as `apt install buildah`")


def _local_base(engine: str) -> str:
    if engine != "buildah" or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise CannotBuild("BASE=local: needs buildah, debootstrap and root; name a base of your registry instead")
    if _answer(["buildah", "inspect", "--type", "image", LOCAL_BASE]) is None:
        print(f"==> {LOCAL_BASE}, from Debian's packages", flush=True)
        _run(["scripts/local_base.sh", LOCAL_BASE])
    return LOCAL_BASE


def find_torch_index() -> str:
    """Where torch's CPU build is: empty when the index that pip uses anyway has it, as some mirrors do."""
    (pinned,) = [line for line in Path("requirements.lock").read_text().splitlines() if line.startswith("torch==")]
    look = ["install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--report=-", pinned]
    done = subprocess.run([sys.executable, "-m", "pip", *look], capture_output=True, text=True)
    if done.returncode != 0:
        return TORCH_INDEX
    (found,) = json.loads(done.stdout)["install"]
    return "" if "+cpu" in found["metadata"]["version"] else TORCH_INDEX


def read_pip_settings() -> PipSettings:
    """What `pip config list` tells of this machine's files and variables, the latter over the former."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    options: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in ("global", "install", ":env:"):
            options[option] = ast.literal_eval(value)
    bundle = next((path for path in (options.pop("cert", ""), *map(os.environ.get, CA_BUNDLES)) if path), None)
    return PipSettings(options, tuple(_paths_in(options.values())), Path(bundle) if bundle else None)


def _paths_in(values: Iterable[str]) -> Iterator[Path]:
    for word in " ".join(values).split():
        # The pages of an index of files link to what lies beside it.
        path = Path(urlsplit(word).path).parent if word.startswith("file://") else Path(word)
        if path.is_absolute() and path.exists():
            yield path


@contextmanager
def build_arguments(engine: str, pip: PipSettings) -> Iterator[list[str]]:
    """Arguments that let a build see this machine's pip settings, as long as the context is open."""
    if engine == "docker" and pip.folders:
        raise CannotBuild(
            f"pip's configuration names {pip.folders[0]}, and Docker mounts no folders into a build; "
            "use an index with an http(s) URL, or buildah"
        )
    with tempfile.TemporaryDirectory(prefix="capstan-images-") as folder:
        arguments = [f"--volume={path}:{path}:ro" for path in dict.fromkeys(pip.folders)]
        if pip.options:
            file = Path(folder, "pip.conf")
            # An option of several values is written on several lines, or with spaces: pip takes either.
            parser = configparser.RawConfigParser()
            parser["global"] = pip.options
            with file.open("w") as opened:
                parser.write(opened)
            arguments.append(f"--secret=id=pip.conf,src={file}")
        if pip.ca_bundle:
            arguments.append(f"--secret=id=ca.crt,src={pip.ca_bundle}")
        yield arguments


def _build(
    engine: str, name: str, options: argparse.Namespace, base: str, torch_index: str, private: Sequence[str]
) -> None:
    image = f"{options.registry.rstrip('/')}/capstan/{name}:{options.tag}".lstrip("/")
    values = {
        "BASE": base,
        "VARIANT": options.variant,
        "TORCH_INDEX": torch_index,
        "DEEPSPEED_OPS": options.deepspeed_ops if name == "deepspeed-trainer" else "",
        "VERSION": project()["version"],
        "REVISION": _answer(["git", "rev-parse", "HEAD"]) or "",
        "SOURCE": source_of(_answer(["git", "remote", "get-url", "origin"]) or ""),
    }
    command = {
        # Layers are kept between builds, as Docker does; without isolation it works where nothing may be mounted.
        "buildah": ["buildah", "build", "--layers", "--isolation=chroot", "--format=oci"],
        "docker": ["docker", "build"],
    }[engine]
    arguments = [f"--build-arg={key}={value}" for key, value in values.items() if value]
    started = time.monotonic()
    print(f"==> {image}", flush=True)
    _run([*command, *private, *arguments, f"--file={DOCKERFILES[name]}", f"--tag={image}", "."])
    sbom = SBOM_FOLDER / f"{name}.json"
    _copy_sbom(engine, image, sbom)
    print(f"==> {image}: {time.monotonic() - started:.0f} s; what is inside: {sbom}", flush=True)


def source_of(remote: str) -> str:
    """The public address of a remote, without whoever fetches from it; empty when it is none."""
    url = urlsplit(remote)
    return f"https://{url.hostname}{url.path.removesuffix('.git')}" if url.scheme == "https" else ""


def _copy_sbom(engine: str, image: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    create, copy, remove = {
        "docker": (["docker", "create", image], ["docker", "cp"], ["docker", "rm"]),
        "buildah": (["buildah", "from", "--pull=never", image], [], ["buildah", "rm"]),
    }[engine]
    container = _output(create)
    try:
        if engine == "docker":
            _output([*copy, f"{container}:{SBOM_IN_IMAGE}", str(target)])
        else:
            mounted = _output(["buildah", "mount", container])
            shutil.copyfile(mounted + SBOM_IN_IMAGE, target)
    finally:
        _output([*remove, container])


def _answer(command: Sequence[str]) -> str | None:
    """What it prints; None when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotBuild(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command)
    if done.returncode != 0:
        raise CannotBuild(f"`{' '.join(command[:2])}` exited with {done.returncode}; its last lines are above")


if __name__ == "__main__":
    raise SystemExit(main())
