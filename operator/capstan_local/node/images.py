"""Which programs an image stands for on this machine."""

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

HOST_IMAGE = "local/host"


class UnknownImage(Exception):
    """No rule says what the image is."""


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How containers of the images that match `pattern` run here.

    `pattern` is a shell pattern (`*`, `?`, `[..]`), compared with the name as written and without tag and digest.
    """

    pattern: str
    path: list[str]
    """Folders of the container's PATH."""
    env: dict[str, str] = field(default_factory=dict)
    command: list[str] | None = None
    """What runs when the container names no command; None: such a container is an error."""

    def matches(self, image: str) -> bool:
        return any(fnmatch.fnmatchcase(name, self.pattern) for name in (image, without_tag(image)))

    @classmethod
    def read(cls, file: Path) -> list[Self]:
        """The rules in a YAML file: a list of {pattern, path, env, command}. ValueError names what is wrong."""
        document = yaml.safe_load(file.read_text()) or []
        rules = []
        for index, entry in enumerate(document):
            unknown = sorted(set(entry) - {"pattern", "path", "env", "command"})
            if unknown or "pattern" not in entry or "path" not in entry:
                wrong = f"unknown field {unknown[0]!r}" if unknown else "pattern and path are required"
                raise ValueError(f"{file}: rule {index}: {wrong}; a rule is {{pattern, path, env, command}}")
            rules.append(cls(**entry))
        return rules


def without_tag(image: str) -> str:
    """The image's name without tag and digest; the port of a registry is no tag."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]


def host_rule(environ: Mapping[str, str] = os.environ) -> ImageRule:
    """`local/host`: this machine's own programs."""
    return ImageRule(HOST_IMAGE, environ.get("PATH", os.defpath).split(os.pathsep))


def find_rule(image: str, rules: Sequence[ImageRule]) -> ImageRule:
    """The first rule that matches, or `local/host`'s own. Raises UnknownImage."""
    for rule in (*rules, host_rule()):
        if rule.matches(image):
            return rule
    known = ", ".join(dict.fromkeys([*(rule.pattern for rule in rules), HOST_IMAGE]))
    raise UnknownImage(
        f'image "{image}": this node runs images as local programs and no rule matches; '
        f"add a rule for it to the node's image file, or use one of: {known}"
    )
