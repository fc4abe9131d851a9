"""The supervisor's listening socket and its connections."""

import asyncio

from aiohttp import web

_KEEP_ALIVE_SECONDS = 10.0
_CONNECTION_SECONDS = 60.0


class Front:
    """Serves an application on one address until it is closed, or cut off."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        self._listener: asyncio.Server | None = None

    async def open(self, address: str, port: int) -> None:
        """Raises OSError when it cannot listen there."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: self._short_lived(loop), address, port)

    async def close(self) -> None:
        """Lets requests under way end."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def cut(self) -> None:
        """Stops listening and resets every connection, in the middle of whatever it was sending."""
        if self._listener is not None:
            self._listener.close()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _short_lived(self, loop: asyncio.AbstractEventLoop) -> asyncio.BaseProtocol:
        """A connection that ends, between two requests, a minute after it was opened: one that never sends a request,
        or never ends one, would otherwise stay for ever."""
        assert self._runner.server is not None
        connection = self._runner.server()
        loop.call_later(_CONNECTION_SECONDS, connection.close)
        return connection
