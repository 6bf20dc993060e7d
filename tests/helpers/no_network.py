"""Guard against HTTP requests to other machines, including requests of child processes."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_requests(patch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Redirect all HTTP requests to a proxy that refuses them, and fail at the end if there was one.

    Yields:
        List of the first line of each request. A test that makes requests on purpose clears it.
    """
    requests: list[bytes] = []

    class Refuse(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            requests.append(self.rfile.readline().strip())
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
            patch.setenv(name.upper(), f"http://127.0.0.1:{server.server_address[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1,localhost")
        try:
            yield requests
        finally:
            server.shutdown()
            thread.join()
    assert not requests, requests
