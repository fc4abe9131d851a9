"""PyPI's JSON API on loopback, for programs that know no other address than https://pypi.org: a proxy that is PyPI."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.certificates import Authority, pem_of


@contextmanager
def pypi(folder: Path, releases: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The environment in which a process finds it. `releases`: by name/version what is answered, a number a status."""
    authority = Authority()
    pair = authority.issue(names=("pypi.org",))
    for name, data in {**pair.files, "ca.crt": pem_of(authority.certificate)}.items():
        (folder / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")  # type: ignore[assignment]
            self.close_connection = False  # the request follows

        def do_GET(self) -> None:
            found = releases.get(self.path.removeprefix("/pypi/").removesuffix("/json"), 404)
            body = b"{}" if isinstance(found, int) else json.dumps(found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {
                "HTTPS_PROXY": f"http://127.0.0.1:{server.server_port}",
                "NO_PROXY": "",
                "REQUESTS_CA_BUNDLE": str(folder / "ca.crt"),
                "XDG_CACHE_HOME": str(folder / "cache"),  # what was answered here must not be remembered elsewhere
                "PIP_NO_CACHE_DIR": "1",
            }
        finally:
            server.shutdown()
            thread.join()
