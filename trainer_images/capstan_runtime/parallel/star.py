"""Little messages between the ranks over TCP: everybody is connected to rank 0, which collects and hands out.

Beside the framework's own ways to talk, because what waits here must hear at once that another process died: a broken
connection says so within milliseconds, and rank 0 tells the others whose it was. A host that goes dark without a word
is noticed by the kernel's probes within `_DARK_SECONDS`. A signal's handler runs while a rank waits.
"""

import hashlib
import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Mapping

from capstan_runtime.errors import PeerLost

_KEY_BYTES = 16
_HELLO = struct.Struct(f"<{_KEY_BYTES}sI")
"""The key that only ranks of this attempt know, and the rank."""
_LENGTH = struct.Struct("<I")
_VERDICT = struct.Struct("<i")
"""Before the answers: _ALL_HERE, or the rank that was lost."""
_ALL_HERE = -1
MOST_BYTES = 64 * 1024
"""Of one rank's payload: rank 0 holds all of them, and sends all of them to all."""
_HELLO_SECONDS = 2.0
_KNOCK_SECONDS = 0.05
"""Between two calls to a rank 0 that does not listen yet."""
_PROBE_AFTER_SECONDS, _PROBE_EVERY_SECONDS, _PROBES = 5, 2, 4
_DARK_SECONDS = _PROBE_AFTER_SECONDS + _PROBE_EVERY_SECONDS * _PROBES


class Star:
    """This rank's connections. `exchange` is for one thread."""

    def __init__(self, rank: int, size: int, peers: Mapping[int, socket.socket], patience_seconds: float) -> None:
        """`peers` by rank: everybody at rank 0, rank 0 elsewhere. `patience_seconds` bounds every exchange."""
        self._rank = rank
        self._size = size
        self._peers = peers
        self._patience_seconds = patience_seconds

    def exchange(self, payload: bytes) -> list[bytes]:
        """Every rank's payload, in rank order. Raises PeerLost when one is gone, late beyond patience, or sends what no
        rank sends; its message names the rank. Raises ValueError when `payload` is too long."""
        if len(payload) > MOST_BYTES:
            raise ValueError(f"rank {self._rank}: {_too_long(len(payload))}; send less, or through the store")
        if self._size == 1:
            return [payload]
        give_up_at = time.monotonic() + self._patience_seconds
        return self._collect(payload, give_up_at) if self._rank == 0 else self._ask(payload, give_up_at)

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()

    def _collect(self, payload: bytes, give_up_at: float) -> list[bytes]:
        """Rank 0's side: whoever is lost first is named to all that are left."""
        received: dict[int, bytearray] = {rank: bytearray() for rank in self._peers}
        with selectors.DefaultSelector() as waiting:
            for rank, peer in self._peers.items():
                waiting.register(peer, selectors.EVENT_READ, rank)
            while waiting.get_map():
                ready = waiting.select(max(0.0, give_up_at - time.monotonic()))
                if not ready:
                    late = sorted(key.data for key in waiting.get_map().values())
                    raise self._lost(late[0], f"ranks {late} sent nothing within {self._patience_seconds:.0f} s")
                for key, _ in ready:
                    if self._receive_some(key.data, received[key.data]):
                        waiting.unregister(key.fileobj)
        answers = [payload, *(bytes(received[rank][_LENGTH.size :]) for rank in sorted(received))]
        message = b"".join([_VERDICT.pack(_ALL_HERE), *(_LENGTH.pack(len(each)) + each for each in answers)])
        for rank, peer in self._peers.items():
            try:
                _send(peer, message, give_up_at)
            except OSError as error:
                raise self._lost(rank, f"rank {rank} went away: {error}") from error
        return answers

    def _receive_some(self, rank: int, received: bytearray) -> bool:
        """What has come of a rank's message is added to `received`. True when that is all of it."""
        try:
            piece = self._peers[rank].recv(_missing(received))
        except OSError as error:
            raise self._lost(rank, f"rank {rank} went away: {error}") from error
        if not piece:
            raise self._lost(rank, f"rank {rank} went away")
        received += piece
        missing = _missing(received)
        if missing > MOST_BYTES:
            raise self._lost(rank, f"rank {rank} went astray: {_too_long(missing)}")
        return not missing

    def _lost(self, lost: int, message: str) -> PeerLost:
        """Tells those that are left, as far as they listen, and gives back what to raise."""
        for rank, peer in self._peers.items():
            if rank != lost:
                try:
                    _send(peer, _VERDICT.pack(lost), time.monotonic() + _HELLO_SECONDS)
                except OSError:
                    continue  # it is lost, too, and this one was first
        return PeerLost(message)

    def _ask(self, payload: bytes, give_up_at: float) -> list[bytes]:
        """Every other rank's side."""
        center = self._peers[0]
        try:
            _send(center, _LENGTH.pack(len(payload)) + payload, give_up_at)
            (lost,) = _VERDICT.unpack(_receive(center, _VERDICT.size, give_up_at))
            if lost != _ALL_HERE:
                raise PeerLost(f"rank {lost} went away, says rank 0")
            return [_receive_framed(center, give_up_at) for _ in range(self._size)]
        except TimeoutError as error:
            raise PeerLost(f"rank 0 sent nothing within {self._patience_seconds:.0f} s") from error
        except _Astray as error:
            raise PeerLost(f"rank 0 went astray: {error}") from error
        except OSError as error:
            raise PeerLost(f"rank 0 went away: {error}") from error


def form_star(
    rank: int,
    size: int,
    host: str,
    publish: Callable[[bytes], None],
    read_published: Callable[[], bytes],
    form_seconds: float,
    patience_seconds: float,
) -> Star:
    """The star of this attempt, once all ranks are in it. Raises PeerLost if they are not within `form_seconds`.

    Rank 0 listens on `host`, on a port of the kernel's choosing, and tells where by `publish`; the others learn it from
    `read_published`, which waits for it.
    """
    give_up_at = time.monotonic() + form_seconds

    def welcome() -> Mapping[int, socket.socket]:
        key = secrets.token_bytes(_KEY_BYTES)
        with _listen(host, 0, size) as listener:
            publish(key + f"{host}:{listener.getsockname()[1]}".encode())
            return _welcome(size, listener, key, give_up_at)

    def call() -> socket.socket:
        published = read_published()
        return _call(rank, published[_KEY_BYTES:].decode(), published[:_KEY_BYTES], give_up_at)

    return _formed(rank, size, welcome, call, patience_seconds)


def form_star_at(
    rank: int, size: int, address: str, secret: bytes, form_seconds: float, patience_seconds: float
) -> Star:
    """As `form_star`, where there is nothing yet to publish by: rank 0 listens at `address`, which every rank knows.
    `secret` is what only ranks of this attempt know."""
    give_up_at = time.monotonic() + form_seconds
    key = hashlib.sha256(secret).digest()[:_KEY_BYTES]
    host, _, port = address.rpartition(":")

    def welcome() -> Mapping[int, socket.socket]:
        with _listen(host, int(port), size) as listener:
            return _welcome(size, listener, key, give_up_at)

    def call() -> socket.socket:
        while True:
            try:
                return _call(rank, address, key, give_up_at)
            except ConnectionRefusedError:
                # Rank 0 is not there yet: its pod may have more to import.
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(_KNOCK_SECONDS)

    return _formed(rank, size, welcome, call, patience_seconds)


def _formed(
    rank: int,
    size: int,
    welcome: Callable[[], Mapping[int, socket.socket]],
    call: Callable[[], socket.socket],
    patience_seconds: float,
) -> Star:
    """The star that rank 0 makes by `welcome`, and all others by `call`. Raises PeerLost."""
    if size == 1:
        return Star(rank, size, {}, patience_seconds)
    try:
        peers = welcome() if rank == 0 else {0: call()}
    except OSError as error:
        raise PeerLost(f"rank {rank} could not be connected with the others: {error}") from error
    for peer in peers.values():
        _probe(peer)
    return Star(rank, size, peers, patience_seconds)


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """On this one address: on all of them, another pod of the same machine may already have the port."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=backlog)


def _welcome(size: int, listener: socket.socket, key: bytes, give_up_at: float) -> Mapping[int, socket.socket]:
    peers: dict[int, socket.socket] = {}
    while len(peers) < size - 1:
        listener.settimeout(max(0.01, give_up_at - time.monotonic()))
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            missing = sorted(set(range(1, size)) - set(peers))
            raise PeerLost(f"ranks {missing} did not come") from None
        rank = _recognise(peer, key)
        if rank is None or not 0 < rank < size or rank in peers:
            peer.close()  # some stranger
        else:
            peers[rank] = peer
    return peers


def _recognise(peer: socket.socket, key: bytes) -> int | None:
    """The rank of who is calling; None: nobody who knows the key."""
    try:
        told, rank = _HELLO.unpack(_receive(peer, _HELLO.size, time.monotonic() + _HELLO_SECONDS))
    except OSError:
        return None
    return rank if hmac.compare_digest(told, key) else None


def _call(rank: int, address: str, key: bytes, give_up_at: float) -> socket.socket:
    host, _, port = address.rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=max(0.01, give_up_at - time.monotonic()))
    _send(peer, _HELLO.pack(key, rank), give_up_at)
    return peer


def _probe(peer: socket.socket) -> None:
    """Has the kernel notice, and say, when the other host has gone dark; and send small messages at once."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_SECONDS)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _DARK_SECONDS)


def _missing(received: bytearray) -> int:
    """Bytes still to come of a message that begins with its length."""
    if len(received) < _LENGTH.size:
        return _LENGTH.size - len(received)
    return _LENGTH.size + int(_LENGTH.unpack_from(received)[0]) - len(received)


def _send(peer: socket.socket, message: bytes, give_up_at: float) -> None:
    peer.settimeout(max(0.01, give_up_at - time.monotonic()))
    peer.sendall(message)


class _Astray(Exception):
    """What came is no message of a rank."""


def _too_long(size: int) -> str:
    return f"a message of {size:,} bytes is longer than the {MOST_BYTES:,} that one rank may send"


def _receive_framed(peer: socket.socket, give_up_at: float) -> bytes:
    (size,) = _LENGTH.unpack(_receive(peer, _LENGTH.size, give_up_at))
    if size > MOST_BYTES:
        raise _Astray(_too_long(size))
    return _receive(peer, size, give_up_at)


def _receive(peer: socket.socket, size: int, give_up_at: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        peer.settimeout(max(0.01, give_up_at - time.monotonic()))
        piece = peer.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        data += piece
    return bytes(data)
