"""The smallest world: rank 0 collects everybody's payload over TCP and sends all of them back."""

import socket
import struct
import time

from capstan_runtime.errors import PeerLost

_LENGTH = struct.Struct("<I")


class SocketWorld:
    """Ranks of one attempt, joined when the constructor returns. Every wait ends after `patience_seconds`."""

    def __init__(self, rank: int, world: int, coordinator: str, patience_seconds: float) -> None:
        self.rank, self.world = rank, world
        host, port = coordinator.rsplit(":", 1)
        self._peers: list[socket.socket] = []
        try:
            if rank == 0:
                self._accept(host, int(port), patience_seconds)
            else:
                self._connect(host, int(port), patience_seconds)
        except OSError as error:
            raise PeerLost(f"rank {rank} could not join the world of {world}: {error}") from error

    def _accept(self, host: str, port: int, patience_seconds: float) -> None:
        with socket.create_server((host, port), reuse_port=False) as server:
            server.settimeout(patience_seconds)
            by_rank: dict[int, socket.socket] = {}
            while len(by_rank) < self.world - 1:
                peer, _ = server.accept()
                peer.settimeout(patience_seconds)
                by_rank[_LENGTH.unpack(_receive(peer, _LENGTH.size))[0]] = peer
        self._peers = [by_rank[rank] for rank in sorted(by_rank)]

    def _connect(self, host: str, port: int, patience_seconds: float) -> None:
        give_up_at = time.monotonic() + patience_seconds
        while True:
            try:
                peer = socket.create_connection((host, port), timeout=patience_seconds)
                break
            except ConnectionRefusedError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.02)
        peer.settimeout(patience_seconds)
        peer.sendall(_LENGTH.pack(self.rank))
        self._peers = [peer]

    def exchange(self, payload: bytes) -> list[bytes]:
        try:
            if self.rank == 0:
                payloads = [payload, *(_receive_framed(peer) for peer in self._peers)]
                answer = b"".join(_LENGTH.pack(len(each)) + each for each in payloads)
                for peer in self._peers:
                    peer.sendall(answer)
                return payloads
            self._peers[0].sendall(_LENGTH.pack(len(payload)) + payload)
            return [_receive_framed(self._peers[0]) for _ in range(self.world)]
        except OSError as error:
            raise PeerLost(f"rank {self.rank} lost a peer: {error}") from error

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


def _receive_framed(peer: socket.socket) -> bytes:
    return _receive(peer, _LENGTH.unpack(_receive(peer, _LENGTH.size))[0])


def _receive(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        data += piece
    return data
