"""ASGI middleware: request ids, logs, metrics, security headers, and an answer to every unexpected error."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import uuid
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import Problem, to_response

log = logging.getLogger(__name__)

_MAX_HEAD = 32_768  # bytes of the URL and the headers; the HTTP library limits only those that arrive in pieces
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
"""Headers of every response. The page loads nothing from other machines and contains no inline code."""


class RequestLog:
    """Middleware that logs a line of JSON for every request and counts it, and answers HEAD requests.

    Args:
        app: the application.
        metrics: metrics of the service.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex

        # The application answers HEAD as GET, and the HTTP server leaves out the body.
        request = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update({**SECURITY_HEADERS, "X-Request-Id": request_id})
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            if _head_size(scope) > _MAX_HEAD:
                problem = Problem(431, f"the URL and the headers have more than {_MAX_HEAD:,} bytes")
                await to_response(problem, path=scope["path"])(scope, receive, send_with_headers)
            else:
                await self._app(request, receive, send_with_headers)
        except Exception:
            log.exception("request failed", extra={"fields": {"id": request_id}})
            if status:  # too late for another answer; the server closes the connection
                raise
            problem = Problem(500, f"internal error; the log of the server has the details under id {request_id}")
            await to_response(problem, path=scope["path"])(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(request.get("route"), "path", "unknown")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            fields = {
                "id": request_id,
                "client": scope["client"][0] if scope.get("client") else None,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(1000 * seconds, 1),
                **request.get("state", {}).get("log", {}),
            }
            log.info("request", extra={"fields": fields})


def _head_size(scope: Scope) -> int:
    return len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])


class JsonFormatter(logging.Formatter):
    """Formatter of log records as one line of JSON each: time, level, event, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)
