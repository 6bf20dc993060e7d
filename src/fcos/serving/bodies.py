"""Request bodies with images: the bytes of an image file, a form with files, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .problems import Problem, describe


class EncodedImages(BaseModel):
    """JSON body of a request.

    Attributes:
        images: image files in base64.
    """

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"required": ["images"]})

    images: list[str] = Field(min_length=1, description="Image files in base64. URLs and paths are not opened.")


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request.

    Args:
        request: the request.
        limit: largest number of bytes.

    Raises:
        Problem: the body is larger (413), compressed (415) or incomplete (400).
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "Content-Encoding: compressed bodies are not accepted")
    too_large = Problem(413, f"body: this server accepts at most {limit:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > limit):
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise Problem(400, "body: the connection was closed before its end") from None
    return bytes(body)


async def read_images(request: Request, body: bytes) -> list[bytes]:
    """Return the image files in the body of a request.

    Args:
        request: request, whose `Content-Type` tells how the images are sent.
        body: its body.

    Raises:
        Problem: the type is unknown (415), or the body is damaged or contains no image (422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _read_form(request, body)
    elif kind == "application/json":
        images = _read_json(body)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [body]
    else:
        raise Problem(
            415,
            f"Content-Type: expected image/... or application/octet-stream (an image file), multipart/form-data or"
            f" application/json, found {kind[:80] or 'nothing'}",
        )
    if not all(images):
        raise Problem(422, f"{image_name(images, images.index(b''))}: is empty")
    return images


def image_name(images: Sequence[object], index: int) -> str:
    """Return the name of an image for messages."""
    return "image" if len(images) == 1 else f"images[{index}]"


def _read_json(body: bytes) -> list[bytes]:
    try:
        texts = EncodedImages.model_validate_json(body).images
    except ValidationError as error:
        raise Problem(422, describe(error.errors(include_input=False, include_url=False))) from None
    return [decode_base64(text, image_name(texts, i)) for i, text in enumerate(texts)]


def decode_base64(text: str, where: str) -> bytes:
    """Decode base64.

    Raises:
        Problem: the text is not base64 (422).
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, f"{where}: expected an image file in base64") from None


async def _read_form(request: Request, body: bytes) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_fields=100, max_files=1000)
    parser.spool_max_size = len(body)  # keeps the files in memory, where the body already is
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(422, f"multipart/form-data: {error.message}") from None
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise Problem(422, f"{name[:80]}: expected a file; options belong in the query of the URL")
        images = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    finally:
        await form.close()
    if not images:
        raise Problem(422, "multipart/form-data: contains no file")
    return images
