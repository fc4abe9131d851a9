"""Tokens that are bytes of UTF-8 put together to text, as far as it is certain."""

import codecs
from collections.abc import Sequence


class Text:
    """Grows byte by byte. What may still become part of a stop sequence, or of a character, is held back."""

    shows_nothing = False

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> tuple[str, bool]:
        """Text that is certain now, and whether a stop sequence came, which is not part of it."""
        self._held += bytes((token,))
        for stop in self._stops:
            if self._held.endswith(stop):
                text = self._decoder.decode(self._held[: -len(stop)], final=True)
                self._held = b""
                return text, True
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._decoder.decode(certain), False

    def end(self) -> str:
        """What was held back, when nothing more comes; half a character is shown as U+FFFD."""
        return self._decoder.decode(self._held, final=True)


class TokensOnly:
    """In place of a text where tokens mean nothing to people."""

    shows_nothing = True

    def add(self, token: int) -> tuple[str, bool]:
        return "", False

    def end(self) -> str:
        return ""


def shown(token: int) -> str:
    """One byte for people, as OpenAI shows tokens that are no text by themselves."""
    return chr(token) if token < 0x80 else f"bytes:\\x{token:02x}"


def _overlap(held: bytes, stop: bytes) -> int:
    """Length of the longest end of `held` that `stop` begins with."""
    return next((size for size in range(min(len(held), len(stop) - 1), 0, -1) if stop.startswith(held[-size:])), 0)
