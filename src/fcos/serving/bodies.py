"""Request bodies with images: the bytes of an image file, a form with files, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError
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


def read_images(content_type: str, body: bytes) -> list[bytes]:
    """Return the image files in the body of a request.

    Args:
        content_type: header `Content-Type`, which tells how the images are sent.
        body: body of the request.

    Raises:
        Problem: the type is unknown (415), or the body is damaged or contains no image (422).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = _read_form(content_type, body)
    elif kind == "application/json":
        images = _read_json(body)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [body]
    else:
        hint = "; for `curl --data-binary`, add -H 'Content-Type: application/octet-stream'"
        raise Problem(
            415,
            "Content-Type: expected image/... or application/octet-stream (an image file), multipart/form-data or"
            f" application/json, found {kind[:80] or 'nothing'}{hint if kind.endswith('urlencoded') else ''}",
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
        raise Problem(
            422, f"{where}: expected an image file in base64, without line breaks or a `data:` prefix"
        ) from None


def _read_form(content_type: str, body: bytes) -> list[bytes]:
    """Return the files of a form. They are slices of the body: nothing is written to disk."""
    boundary = re.search(r'boundary="?([^";]{1,70})', content_type)
    if boundary is None:
        raise Problem(422, "Content-Type: multipart/form-data needs a boundary of at most 70 characters")
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary[1].strip().encode("latin-1"))
    if first.strip() or not parts or not parts[-1].startswith(b"--"):
        raise Problem(422, "multipart/form-data: does not start or end with its boundary")
    files = []
    for part in parts[:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        if not separator:
            raise Problem(422, "multipart/form-data: a part has no header")
        if not re.search(rb"(?i)\r\ncontent-disposition:[^\r\n]*;[ \t]*filename\*?=", head):
            raise Problem(422, "multipart/form-data: expected files only; options belong in the query of the URL")
        files.append(content)
    if not files:
        raise Problem(422, "multipart/form-data: contains no file")
    return files
