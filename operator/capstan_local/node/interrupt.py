"""Waiting that gives way to an event.

Nothing in this package uses asyncio.wait_for: in Python 3.11 it swallows a cancellation that arrives together with the
result, and what was to end goes on. `async with asyncio.timeout()` does not.
"""

import asyncio
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
        await asyncio.wait({task})  # not `await task`: its cancellation is not to be confused with our own
        if not task.cancelled():
            task.exception()  # seen: what was given up may also have failed


async def pause(seconds: float | None, *events: asyncio.Event) -> None:
    """Returns after `seconds` (None: never), or as soon as one of `events` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
