"""The process of `fcos serve`: socket, logs, signals."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from ..errors import ConfigError
from .app import create_app
from .middleware import JsonFormatter
from .settings import Settings

if TYPE_CHECKING:
    from ..inference.predictor import Detector

log = logging.getLogger(__name__)


def open_socket(host: str, port: int) -> socket.socket:
    """Reserve an address. It accepts connections when the service is ready.

    Args:
        host: name or IP address of a network interface of this machine.
        port: port; 0: any free one.

    Raises:
        ConfigError: the address does not exist or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except OSError:
            opened.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"--host {host} --port {port}: {reason}; choose another host or port") from None
    return opened


class Server(uvicorn.Server):
    """Server of a detector. It prints its address when it accepts connections.

    Args:
        detector: trained detector.
        settings: options of the service.
    """

    def __init__(self, detector: Detector, settings: Settings):
        self._app = create_app(detector, settings)
        config = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.timeout) + 5,  # for clients that do not read their answers
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"serving on http://{host}:{port} (Ctrl-C stops)", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the accepted requests and stop the application."""
        self._app.state.service.stop_waiting()
        await super().shutdown(sockets)


def serve(detector: Detector, settings: Settings, opened: socket.socket) -> None:
    """Run the service until SIGINT or SIGTERM, then answer the accepted requests.

    Args:
        detector: trained detector.
        settings: options of the service.
        opened: result of `open_socket`.

    Raises:
        ConfigError: the detector fails on its first image.
    """
    with _json_logs():
        _serve(detector, settings, opened)


@contextmanager
def _json_logs() -> Iterator[None]:
    """Write the logs of the service and of uvicorn to stderr, as one line of JSON each."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    loggers = {name: logging.getLogger(name) for name in (__package__, "uvicorn")}
    for logger in loggers.values():
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    loggers["uvicorn"].getChild("error").setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger in loggers.values():
            logger.removeHandler(handler)
            logger.propagate = True


def _serve(detector: Detector, settings: Settings, opened: socket.socket) -> None:
    if settings.token is None and not opened.getsockname()[0].startswith(("127.", "::1")):
        log.warning("other machines can use this service; --token TOKEN restricts it")
    server = Server(detector, settings)
    # uvicorn handles the signals and repeats them at its end, which these handlers ignore: stopping is no failure.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[opened])
    except SystemExit:  # uvicorn's answer to a failed start, see below
        pass
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
    if not server.started:
        raise ConfigError("the detector failed on its first image; the lines above contain the reason")
