"""What can be said of the images without building them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import build_images
from scripts.build_images import DOCKERFILES, CannotBuild, PipSettings, build_arguments, read_pip_settings, source_of
from scripts.image_requirements import requirements

FRAMEWORKS = {"jax", "flax", "optax", "torch", "deepspeed", "ray"}
OF_THE_OPERATOR = {"kopf"}
LEFT_OUT = {
    "operator": {*FRAMEWORKS, "numpy", "scikit-learn", "blake3", "obstore", "kubernetes", "matplotlib", "cryptography"},
    "flax-trainer": {*OF_THE_OPERATOR, "torch", "deepspeed", "ray", "matplotlib"},
    "deepspeed-trainer": {*OF_THE_OPERATOR, "jax", "flax", "ray", "matplotlib"},
    "serve-replica": {*OF_THE_OPERATOR, "deepspeed", "matplotlib"},
    "bench": {*OF_THE_OPERATOR, *FRAMEWORKS},
}
"""What an image must not have."""


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str


def stages(dockerfile: Path) -> list[list[Instruction]]:
    """Instructions of each stage, those before the first one left out."""
    joined = re.sub(r"\\\n\s*", "", dockerfile.read_text())
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in lines:
        name, _, text = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, text))
    return found


def texts(stage: Iterable[Instruction], name: str) -> list[str]:
    return [instruction.text for instruction in stage if instruction.name == name]


def extras_of(dockerfile: Path) -> list[str]:
    """That the image installs."""
    (command,) = texts(stages(dockerfile)[0], "RUN")
    return command.partition("image_requirements.py ")[2].partition(" >")[0].split()


def closure(wanted: Iterable[str]) -> set[str]:
    """Names of all that pip installs for these requirements, as the packages installed here tell it."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in requires(name) or []:
                asked = Requirement(text)
                if asked.marker is None or asked.marker.evaluate({"extra": extra}):
                    waiting.append(asked)
    return found


def test_every_image_that_the_chart_names_has_a_dockerfile() -> None:
    chart = Path("charts/capstan")
    started = re.findall(r'"capstan\.started" \(list \. \S+ "(\S+)"\)', (chart / "templates/operator.yaml").read_text())
    operators = yaml.safe_load((chart / "values.yaml").read_text())["operator"]["image"]["repository"]
    assert sorted([operators, *(f"capstan/{name}" for name in started)]) == sorted(
        f"capstan/{name}" for name in DOCKERFILES
    )
    assert all(dockerfile.is_file() for dockerfile in DOCKERFILES.values())
    # They are tagged with the package's version, and looked for with the chart's.
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"] == version


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_last_stage_runs_nothing_and_its_user_is_nobody(name: str) -> None:
    *building, last = stages(DOCKERFILES[name])
    assert [stage[0].text for stage in (*building, last)] == [
        "${BASE} AS wanted",
        "${BASE} AS dependencies",
        "dependencies AS package",
        "${BASE}",
    ]
    assert texts(last, "RUN") == []
    assert texts(last, "COPY") == [
        "--from=dependencies /opt/capstan /opt/capstan",
        "--from=package /staged/opt/capstan /opt/capstan",
    ]
    assert texts(last, "USER") == ["65532:65532"]
    (labels,) = texts(last, "LABEL")
    described = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', labels))
    assert described.keys() == {"title", "description", "version", "revision", "source", "licenses"}
    (variables,) = [text for text in texts(last, "ENV") if "HOME=" in text]
    assert "HOME=/tmp" in variables
    assert "PYTHONDONTWRITEBYTECODE=1" in variables


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_what_it_needs_in_locked_versions_and_no_more(name: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = Path("requirements.lock").read_text().splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    installed = closure(requirements(project, extras_of(DOCKERFILES[name])))
    assert installed - locked == set()
    assert installed & LEFT_OUT[name] == set()


def test_a_build_sees_what_it_copies_and_nothing_else() -> None:
    copied = {
        source
        for dockerfile in DOCKERFILES.values()
        for stage in stages(dockerfile)[:-1]
        for text in texts(stage, "COPY")
        if not text.startswith("--from=")
        for source in text.split()[:-1]
    }
    ignored = [line for line in Path(".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all(Path(source).exists() for source in copied)


def test_pips_settings_are_mounted_and_variables_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index, wheels, bundle = tmp_path / "index/simple", tmp_path / "wheels", tmp_path / "ca.crt"
    index.mkdir(parents=True)
    wheels.mkdir()
    bundle.write_text("")
    listed = (
        f"global.cert='{bundle}'\n:env:.timeout='30'\nglobal.timeout='5'\nglobal.find-links='{wheels} /nowhere'\n"
        f"install.extra-index-url='file://{index} https://mirror.example/simple'\nlist.format='columns'\n"
    )
    monkeypatch.setattr(build_images.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    settings = read_pip_settings()
    assert settings == PipSettings(
        options={
            "timeout": "30",
            "find-links": f"{wheels} /nowhere",
            "extra-index-url": f"file://{index} https://mirror.example/simple",
        },
        folders=(wheels, index.parent),
        ca_bundle=bundle,
    )
    with build_arguments("buildah", settings) as (*folders, configuration, certificates):
        assert folders == [f"--volume={wheels}:{wheels}:ro", f"--volume={index.parent}:{index.parent}:ro"]
        assert certificates == f"--secret=id=ca.crt,src={bundle}"
        file = Path(configuration.removeprefix("--secret=id=pip.conf,src="))
        assert "find-links = " + settings.options["find-links"] in file.read_text().splitlines()
    assert not file.exists()
    with pytest.raises(CannotBuild, match=f"pip's configuration names {wheels}, and Docker mounts no folders"):
        build_arguments("docker", settings).__enter__()


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://somebody:secret@git.example/team/capstan.git", "https://git.example/team/capstan"),
        ("git@git.example:team/capstan.git", ""),
        ("/srv/git/capstan", ""),
    ],
)
def test_the_label_of_the_source_holds_no_password_and_no_folder(remote: str, source: str) -> None:
    assert source_of(remote) == source


def test_a_machine_that_can_build_nothing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_images.shutil, "which", lambda _: None)
    with pytest.raises(CannotBuild, match="neither a Docker engine nor buildah is here; install one"):
        build_images.find_engine()
