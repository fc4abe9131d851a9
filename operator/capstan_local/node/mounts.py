"""Where the mounts of a container really are. Nothing can be mounted without root, so paths are rewritten."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath


class Mounts:
    """Mount path -> file or folder of this machine, for one container."""

    def __init__(self, real_paths: Mapping[str, Path]) -> None:
        self.real_paths = {str(PurePosixPath(mount)): str(path) for mount, path in real_paths.items()}
        alternatives = "|".join(re.escape(path) for path in sorted(self.real_paths, key=len, reverse=True))
        # A path begins where no other path, word or host name goes on: `--dir=/data/x`, `a:/data`, `file:///data`, but
        # not `/mnt/data`, `s3://data`, `${ROOT}/data`; and it ends at a slash or where the name cannot go on.
        self._pattern = (
            re.compile(rf"((?<![\w./)}}~-])|(?<=file://))({alternatives})(?![\w-]|\.\w)") if alternatives else None
        )

    def rewrite(self, text: str) -> str:
        """`text` with every path under a mount replaced by the real one."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self.real_paths[match[2]], text)
