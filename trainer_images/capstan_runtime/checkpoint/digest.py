"""BLAKE3 in two levels: leaves of 4 MiB, and one root over the manifest that lists them.

A leaf is small enough to be checked when only a range is read, and to say where the damage is; 32 bytes per 4 MiB cost
0.0008 %. BLAKE3 keeps up with NVMe on one core, SHA-256 would need three. `b3sum MANIFEST.json` gives the root.
"""

import base64
from collections.abc import Iterable, Iterator

from blake3 import blake3

ALGORITHM = "blake3"
LEAF_BYTES = 4 * 1024 * 1024
DIGEST_BYTES = 32

Buffer = bytes | memoryview


def digest_of(data: Buffer) -> bytes:
    """32 bytes."""
    return blake3(data).digest()


def name_of(digest: bytes) -> str:
    return f"{ALGORITHM}:{digest.hex()}"


def cut_into_leaves(buffers: Iterable[Buffer], leaf_bytes: int = LEAF_BYTES) -> Iterator[Buffer]:
    """The same bytes in pieces of exactly `leaf_bytes`, the last one shorter. Large buffers are not copied."""
    pending: list[memoryview] = []
    missing = leaf_bytes
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while len(rest) >= missing:
            pending.append(rest[:missing])
            yield pending[0] if len(pending) == 1 else b"".join(pending)
            rest = rest[missing:]
            pending, missing = [], leaf_bytes
        if len(rest):
            pending.append(rest)
            missing -= len(rest)
    if pending:
        yield b"".join(pending)


def pack_digests(digests: Iterable[bytes]) -> str:
    """Many digests as one base64 text."""
    return base64.b64encode(b"".join(digests)).decode()


def unpack_digests(text: str) -> list[bytes]:
    """Raises ValueError for anything `pack_digests` did not make."""
    block = base64.b64decode(text, validate=True)
    if len(block) % DIGEST_BYTES:
        raise ValueError(f"{len(block)} bytes are not a whole number of {DIGEST_BYTES}-byte digests")
    return [block[at : at + DIGEST_BYTES] for at in range(0, len(block), DIGEST_BYTES)]
