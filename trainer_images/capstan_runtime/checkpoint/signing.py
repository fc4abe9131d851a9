"""Signatures over a checkpoint's manifest, which covers every byte of it, by the OpenSSF's `model-signing`.

A digest tells damage; somebody who can write to the store can also write a whole new checkpoint whose digests fit. A
signature tells who made it. It is a Sigstore bundle of its own file, so that a checkpoint can be checked without us:

    model_signing verify key FOLDER --signature FOLDER/MANIFEST.sig --public_key KEY --ignore_unsigned_files
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from capstan_runtime.checkpoint.layout import MANIFEST, SIGNATURE, SaveName
from capstan_runtime.checkpoint.store import ObjectMissing, Readable
from capstan_runtime.checkpoint.verified import reading
from capstan_runtime.contract import env
from capstan_runtime.errors import ConfigError, CorruptCheckpoint

MOST_BYTES = 1 << 20
"""Of a signature; one over a manifest has 2 KB. What is larger is none, and is not worth reading."""


class NotSigned(CorruptCheckpoint):
    """The manifest does not carry a signature of the key that was asked for. Its bytes may be whole: it is no reason
    to mark the checkpoint for ever, only not to use it with this key."""


def sign_manifest(manifest: bytes, private_key: Path) -> bytes:
    """The signature over the manifest's bytes, a Sigstore bundle as JSON. Takes milliseconds; the first call of a
    process imports the library, about half a second.

    `private_key` is a PEM file with an ECDSA key without a password. Raises ConfigError for any other, and when
    `model-signing` is not installed; call it once before training, so that this is known before the first save.
    """
    signing = _library().signing.Config()
    try:
        signing.use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # all of these, for all that a file can hold
        raise ConfigError(
            f"{env.SIGNING_KEY}: {private_key} is not an ECDSA private key in PEM without a password: "
            f"{_first_line(error)}"
        ) from error
    with _as_model(manifest) as folder, TemporaryDirectory() as outside:
        signature = Path(outside) / SIGNATURE
        signing.sign(folder, signature)
        return signature.read_bytes()


def check_signature(manifest: bytes, signature: bytes | None, public_key: str) -> None:
    """Returns when `signature` is one over exactly these bytes by the owner of `public_key`, the text of a PEM.

    `signature` None: there is none. Raises NotSigned; ConfigError for what is no public key, and when `model-signing`
    is not installed.
    """
    with TemporaryDirectory() as outside, _as_model(manifest) as folder:
        verifying = _library().verifying.Config()
        key = Path(outside) / "public.pem"
        key.write_text(public_key)
        try:
            verifying.use_elliptic_key_verifier(public_key=key)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"checkpoint.verify.publicKey: is not an ECDSA public key in PEM: {_first_line(error)}"
            ) from error
        if signature is None:
            raise NotSigned(f"{MANIFEST}: is not signed, and checkpoint.verify.publicKey asks for a signature")
        if len(signature) > MOST_BYTES:
            raise NotSigned(f"{SIGNATURE}: has {len(signature)} bytes, no signature has more than {MOST_BYTES}")
        file = Path(outside) / SIGNATURE
        file.write_bytes(signature)
        try:
            verifying.verify(folder, file)
        except Exception as error:  # whatever a stranger wrote: the library raises what it stumbles over
            raise NotSigned(
                f"{SIGNATURE}: is not a signature of {MANIFEST} by this key: {_first_line(error)}"
            ) from error


def require_signature(store: Readable, name: SaveName, manifest: bytes, public_key: str) -> None:
    """Returns when beside the checkpoint's manifest, whose bytes are given, there is a signature over them by the owner
    of `public_key`, the text of a PEM. Raises NotSigned, StoreUnavailable, ConfigError; CorruptCheckpoint when the disk
    cannot read it."""
    key = f"{name}/{SIGNATURE}"
    with reading(key):
        try:
            signature = store.get(key)
        except ObjectMissing:
            signature = None
    check_signature(manifest, signature, public_key)


@contextmanager
def _as_model(manifest: bytes) -> Iterator[Path]:
    """A folder that holds nothing but the manifest: what the library signs is a folder, and all of it. So a signature
    by the same key over something else, or over nothing, does not pass."""
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoint"
        folder.mkdir()
        (folder / MANIFEST).write_bytes(manifest)
        yield folder


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(
            f"checkpoint signatures need a package that is not installed ({error}): pip install 'capstan[sign]'"
        ) from error
    module: ModuleType = model_signing
    return module


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
