"""Waiting that gives way to an event."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def unless(event: asyncio.Event, work: Coroutine[None, None, T]) -> T | None:
    """What `work` returns; None, with `work` cancelled, when `event` is set first."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for pending in (task, stop):
            pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def pause(seconds: float | None, *events: asyncio.Event) -> None:
    """Returns after `seconds` (None: never), or as soon as one of `events` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
