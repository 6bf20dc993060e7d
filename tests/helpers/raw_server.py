"""Server that sends prepared bytes, also bytes that break the HTTP protocol."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Ignore errors: clients may close the connection."""


@contextmanager
def raw_server(responses: Mapping[str, bytes], *, drip: float | None = None) -> Iterator[str]:
    """Serve prepared bytes on a local port.

    Args:
        responses: complete response by path, such as `/a.jpg`, including status line and header.
        drip: pause in seconds after each byte, which goes on with zeros after the end, until the context ends. None:
            sends the response at once and closes the connection.

    Yields:
        URL of the server.
    """
    stop = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().split(b" ")[1].decode()
            while self.rfile.readline().strip():
                pass
            if drip is None:
                self.wfile.write(responses[path])
                return
            rest = iter(responses[path])
            while not stop.wait(drip):
                self.wfile.write(bytes([next(rest, 0)]))

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            stop.set()
            server.shutdown()
            thread.join()


def response(content: bytes, *, header: str = "Content-Type: image/jpeg", length: int | None = None) -> bytes:
    """Return a response with status 200.

    Args:
        content: body.
        header: additional header lines, separated by newlines.
        length: value of Content-Length; None: the length of the body.
    """
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(content) if length is None else length}", *header.splitlines()]
    return "\r\n".join([*lines, "", ""]).encode() + content
