"""Errors of requests, answered as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from ..formatting import printable

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Error that is answered with a status code and an explanation.

    Attributes:
        status: HTTP status code.
        detail: explanation for the client.
        headers: additional headers of the response.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def to_response(problem: Problem, *, path: str) -> JSONResponse:
    """Return the response for a problem.

    Args:
        problem: the problem.
        path: path of the request. Clients of the Open Inference Protocol expect the explanation under the key `error`.
    """
    detail = printable(problem.detail)
    content = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": detail,
    }
    if path.startswith("/v2"):
        content["error"] = detail
    return JSONResponse(content, problem.status, problem.headers, MEDIA_TYPE)


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """Describe the errors that pydantic found, without the values, which may be long.

    Args:
        errors: the result of `ValidationError.errors()`.
    """
    messages = {"extra_forbidden": "unknown name"}
    return "; ".join(
        f"{'.'.join(map(str, error['loc'])) or 'body'}: {messages.get(error['type'], error['msg'])}"
        for error in errors[:5]
    )
