"""TLS at a pod's door: the certificate of a Secret, which may be renewed while connections last."""

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capstan_runtime.errors import ConfigError
from capstan_runtime.serve_replica.settings import Settings
from capstan_runtime.serving.mounted import Mounted

CERTIFICATE, KEY = "tls.crt", "tls.key"
HANDSHAKE_SECONDS = 10.0
"""For a client to end its handshake. asyncio and uvloop would hold its connection for 60."""
GOODBYE_SECONDS = 10.0
"""For a client to take what was sent and to say that it has seen the end. uvloop would wait 30, and a drain with it
for every idle connection whose client does not listen."""
_OF_TWO_MINDS = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def open_tls(settings: Settings, say: Callable[[str], None]) -> ssl.SSLContext | None:
    """What connections are to be accepted with; None: they are plain. Raises ConfigError naming the Secret's entry
    at fault."""
    tls, folder = settings.config.guards.tls, settings.tls
    if tls is None or folder is None:
        return None
    return follow_certificate(folder, tls.secret_ref.name, say)


def follow_certificate(
    folder: Path, secret: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> ssl.SSLContext:
    """Accepts each connection with the certificate and key that lie in `folder` then. A pair that is of no use is told
    once, and the one before it stays. Raises ConfigError if the first is of no use."""

    def note(error: OSError) -> None:
        say(f"TLS: Secret {secret}: {error}; new connections get the certificate from before")

    try:
        pairs = Mounted(folder, lambda: _load(folder), clock, note)
    except OSError as error:
        raise ConfigError(
            f"tls.secretRef: Secret {secret}: {error}; a Secret of type kubernetes.io/tls holds both as PEM"
        ) from error

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in every handshake, with or without SNI."""
        connection.context = pairs.current()

    # Each pair has a context of its own: a key of another kind would join the old one in the same context instead of
    # replacing it, and a pair that does not match would leave it without a key.
    door = pairs.current()
    door.sni_callback = choose
    return door


def _load(folder: Path) -> ssl.SSLContext:
    """Raises OSError whose text names the entry at fault."""
    for entry in (CERTIFICATE, KEY):
        try:
            (folder / entry).read_bytes()
        except OSError as error:
            raise OSError(f"{entry}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # The empty password keeps OpenSSL from asking the terminal for that of an encrypted key.
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY, password="")  # nosec B106  # it has none
    except ssl.SSLError as error:
        raise OSError(_fault(folder, error)) from error
    return context


def _fault(folder: Path, error: ssl.SSLError) -> str:
    if error.reason in _OF_TWO_MINDS:
        return f"{KEY} does not belong to {CERTIFICATE}"
    if error.reason:
        return f"{CERTIFICATE} and {KEY}: {error.reason.lower().replace('_', ' ')}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(folder / CERTIFICATE)
    except ssl.SSLError:
        return f"{CERTIFICATE} is no certificate in PEM"
    return f"{KEY} is no private key in PEM, or has a passphrase"


def server_options(context: ssl.SSLContext | None) -> dict[str, Any]:
    """Arguments of an event loop's `create_server`."""
    if context is None:
        return {}
    return {"ssl": context, "ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": GOODBYE_SECONDS}
