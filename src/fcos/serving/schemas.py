"""Options and results of the HTTP interface, as described in its OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..structures import Instances
from .bodies import EncodedImages

_FORMATS = ("image/png", "image/jpeg")


class Options(BaseModel):
    """Query of `POST /v1/detect`; see `Detector.predict`."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        default=None, ge=0, le=1, allow_inf_nan=False, description="Score threshold; default: that of each class."
    )
    classes: list[str] | None = Field(default=None, description="Names of the classes to detect; default: all.")
    max_detections: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Largest number of detections per image; 0: no limit."
    )
    nms_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="IoU above which a box with a lower score is removed.",
    )
    format: Literal["json", "png", "jpeg"] = Field(
        default="json", description="Format of the result: detections, or the annotated image."
    )


class Mask(BaseModel):
    """Mask of an object as COCO's run-length encoding."""

    size: list[int] = Field(description="Height and width of the image.", min_length=2, max_length=2)
    counts: str


class Detection(BaseModel):
    """Detected object, as in the file that `fcos predict --save json` writes."""

    name: str = Field(description="Name of the class.")
    category_id: int = Field(description="Id of the class in the training data.")
    score: float = Field(ge=0, le=1)
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the displayed image.", min_length=4, max_length=4)
    segmentation: Mask | None = Field(default=None, description="Only of detectors with masks.")
    keypoints: list[float] | None = Field(
        default=None, description="x1, y1, score1, x2, ...; only of detectors with them"
    )


class ImageResult(BaseModel):
    """Detections of an image, best first."""

    width: int
    height: int
    detections: list[Detection]


class DetectResult(BaseModel):
    """Detections of the images of a request, in their order."""

    model: str
    images: list[ImageResult]


class ProblemResult(BaseModel):
    """Error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


EXAMPLE = {
    "model": "cells",
    "images": [
        {
            "width": 640,
            "height": 480,
            "detections": [{"name": "RBC", "category_id": 1, "score": 0.93, "box": [12.5, 40.0, 110.25, 139.5]}],
        }
    ],
}


def describe_request() -> dict[str, Any]:
    """Return the part `requestBody` of the OpenAPI document of `POST /v1/detect`."""
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"images": {"type": "array", "items": file, "minItems": 1}}}
    json_schema = EncodedImages.model_json_schema()
    example = {
        "images": [
            "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGPMyMhgwAaYsIoOWgkA+FgBSDhfYOoAAAAASUVORK5CYII="
        ]
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {**form, "required": ["images"]}},
                "application/octet-stream": {"schema": file},
                "image/jpeg": {"schema": file},
                "image/png": {"schema": file},
                "application/json": {"schema": json_schema, "example": example},
            },
        }
    }


def describe_result() -> dict[int | str, dict[str, Any]]:
    """Return the successful response of `POST /v1/detect` for an OpenAPI document."""
    image = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"example": EXAMPLE}, **dict.fromkeys(_FORMATS, image)}
    return {200: {"model": DetectResult, "content": content, "description": "Detections, or the annotated image."}}


FAILURES = {
    400: "The body is incomplete.",
    408: "The body did not arrive in time.",
    413: "The body or an image is too large.",
    415: "The type of the body or of an image is not accepted.",
    422: "An option or an image is wrong.",
    429: "Too many images are waiting.",
    503: "The server is starting or stopping, or has not enough memory.",
    504: "There was no result in time.",
}
"""Status codes of requests with images, with their meanings."""


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the part `requestBody` of an OpenAPI document for a JSON body, without references to other parts."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            reference = node.get("$ref")
            return (
                inline(definitions[reference.rsplit("/", 1)[1]])
                if reference
                else {k: inline(v) for k, v in node.items()}
            )
        return list(map(inline, node)) if isinstance(node, list) else node

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inline(schema)}}}}


def describe_problems(statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return responses with a problem for an OpenAPI document, from descriptions by status code."""
    schema = ProblemResult.model_json_schema()
    content = {"application/problem+json": {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in statuses.items()}


def to_result(instances: Instances, category_ids: Sequence[int]) -> dict[str, Any]:
    """Convert the detections of an image to an `ImageResult` as plain data."""
    result = instances.to_dict()
    for detection in result["detections"]:
        detection["category_id"] = category_ids[detection.pop("label")]
    return result
