"""Open Inference Protocol, version 2, with the binary tensor extension: the protocol of Triton and KServe.

The input `images` is a BYTES tensor [N] of image files. The outputs are padded to the largest number D of detections of
an image: `counts` [N], `boxes` [N, D, 4] (XYXY in pixels), `scores` [N, D], `labels` [N, D] (0..K-1), and those of the
detector's shapes: `segmentations` [N, D] (COCO's RLE as JSON) and `keypoints` [N, D, P, 3] (x, y, score).

Source: https://github.com/kserve/open-inference-protocol, and Triton's documentation of `binary_tensor_data`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..structures import Instances
from .bodies import decode_base64, image_name, read_body
from .problems import Problem, describe
from .schemas import FAILURES, describe_problems, request_body

if TYPE_CHECKING:
    from .service import Service

_HEADER_LENGTH = "Inference-Header-Content-Length"
_TYPES = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
_VERSION = "1"
_OPTIONS = {"threshold", "max_detections", "nms_threshold"}  # parameters of a request that select detections


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputParameters(_Strict):
    """Parameters of an input."""

    binary_data_size: int | None = Field(default=None, ge=0, description="Bytes of the tensor after the JSON part.")


class InputTensor(_Strict):
    """Input tensor."""

    name: Literal["images"]
    shape: list[int]
    datatype: Literal["BYTES"]
    parameters: InputParameters = InputParameters()
    data: list[str] | None = Field(default=None, description="Image files in base64, unless they are binary.")


class OutputParameters(_Strict):
    """Parameters of an output."""

    binary_data: bool | None = None


class RequestedOutput(_Strict):
    """Requested output tensor."""

    name: str
    parameters: OutputParameters = OutputParameters()


class Parameters(_Strict):
    """Parameters of a request: the options of `POST /v1/detect`, and whether outputs are binary by default.

    Triton's clients also send the parameters of its extensions for scheduling and sequences. They have no effect, as in
    Triton for a model whose configuration does not use them.
    """

    binary_data_output: bool = False
    threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    max_detections: int | None = Field(default=None, ge=0, le=1_000_000)
    nms_threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    priority: int = Field(default=0, ge=0, description="No effect.")
    timeout: int = Field(default=0, ge=0, description="Microseconds; no effect, see `fcos serve --timeout`.")
    sequence_id: int | str = Field(default=0, description="No effect.")
    sequence_start: bool = Field(default=False, description="No effect.")
    sequence_end: bool = Field(default=False, description="No effect.")


class InferRequest(_Strict):
    """JSON part of an inference request."""

    id: str | None = Field(default=None, max_length=200)
    parameters: Parameters = Parameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = None


def routes(service: Service) -> APIRouter:
    """Return the routes of the protocol, except those of health."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    name = service.settings.name
    unknown = describe_problems({404: "There is no such model."})

    def check(model: str, version: str = _VERSION) -> None:
        if (model, version) != (name, _VERSION):
            raise Problem(404, f"the only model is {name}, version {_VERSION}")

    @router.get("", summary="Metadata of the server")
    def server() -> dict[str, Any]:
        from .. import __version__

        return {"name": "fcos", "version": __version__, "extensions": ["binary_tensor_data"]}

    @router.get("/models/{model}", summary="Metadata of the model", responses=unknown)
    @router.get("/models/{model}/versions/{version}", include_in_schema=False)
    def metadata(model: str, version: str = _VERSION) -> dict[str, Any]:
        check(model, version)
        return {"name": name, "versions": [_VERSION], "platform": "fcos", **_tensors(service)}

    @router.get("/models/{model}/ready", summary="Whether the model accepts images", responses=unknown)
    @router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    def ready(model: str, version: str = _VERSION) -> dict[str, Any]:
        check(model, version)
        if not service.is_ready:
            raise Problem(503, "the server is starting or stopping")
        return {"name": name, "ready": True}

    @router.post(
        "/models/{model}/infer",
        summary="Detect objects in images",
        openapi_extra=request_body(InferRequest),
        responses=describe_problems({**FAILURES, 404: "There is no such model."}),
    )
    @router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = _VERSION) -> Response:
        check(model, version)
        settings = service.settings
        async with service.admit() as ticket:
            async with ticket.time_limit(Problem(408, f"the body did not arrive within {settings.timeout:g} s")):
                content = await read_body(request, settings.max_body)
            parsed, files = await ticket.run(_parse, content, request.headers.get(_HEADER_LENGTH))
            selection = service.selection(**parsed.parameters.model_dump(include=_OPTIONS))
            detected = await service.detect(files, selection, ticket)
            request.state.log = {"images": len(files), "detections": sum(len(image.instances) for image in detected)}
            return await ticket.run(_respond, name, parsed, [image.instances for image in detected])

    return router


def _tensors(service: Service) -> dict[str, Any]:
    """Return the descriptions of inputs and outputs."""
    outputs = {"counts": ("INT64", 0), "boxes": ("FP32", 2), "scores": ("FP32", 1), "labels": ("INT64", 1)}
    if service.has_masks:
        outputs["segmentations"] = ("BYTES", 1)
    if service.has_keypoints:
        outputs["keypoints"] = ("FP32", 3)
    shapes = {name: [-1] * (1 + rank) for name, (_, rank) in outputs.items()}
    shapes["boxes"][-1] = 4
    return {
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shapes[name]} for name, (kind, _) in outputs.items()],
    }


def _parse(body: bytes, header_length: str | None) -> tuple[InferRequest, list[bytes]]:
    """Return the JSON part of a request and its image files."""
    end = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 15 or int(header_length) > len(body):
            raise Problem(422, f"{_HEADER_LENGTH}: expected a number of bytes of at most {len(body)}")
        end = int(header_length)
    try:
        request = InferRequest.model_validate_json(body[:end])
    except ValidationError as error:
        raise Problem(422, describe(error.errors(include_input=False, include_url=False))) from None
    tensor, binary = request.inputs[0], body[end:]
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(binary):
        raise Problem(422, f"inputs.0.parameters.binary_data_size: expected {len(binary)}, the bytes after the JSON")
    if (size is None) == (tensor.data is None):
        raise Problem(422, "inputs.0: expected either data or parameters.binary_data_size")
    texts = tensor.data or []
    files = (
        _split(binary) if size is not None else [decode_base64(t, image_name(texts, i)) for i, t in enumerate(texts)]
    )
    if tensor.shape not in ([len(files)], [len(files), 1]) or not files:
        raise Problem(422, f"inputs.0.shape: expected [{len(files)}], the number of elements, and at least one")
    return request, files


def _split(binary: bytes) -> list[bytes]:
    """Return the elements of a binary BYTES tensor, each of which follows its length as a 4-byte integer."""
    elements, start = [], 0
    while start < len(binary):
        end = start + 4 + int.from_bytes(binary[start : start + 4], "little")
        if end > len(binary):
            raise Problem(422, "inputs.0: an element of the binary tensor is longer than the tensor")
        elements.append(binary[start + 4 : end])
        start = end
    return elements


def _respond(name: str, request: InferRequest, detected: Sequence[Instances]) -> Response:
    arrays = _to_arrays(detected)
    wanted = request.outputs or [RequestedOutput(name=output) for output in arrays]
    outputs, binaries = [], []
    for output in wanted:
        if output.name not in arrays:
            raise Problem(422, f"outputs: expected one of {', '.join(arrays)}")
        array = arrays[output.name]
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        is_binary = output.parameters.binary_data
        if request.parameters.binary_data_output if is_binary is None else is_binary:
            binaries.append(_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(binaries[-1])}
        else:
            entry["data"] = [text.decode() for text in array.flat] if array.dtype == object else array.ravel().tolist()
        outputs.append(entry)
    content: dict[str, Any] = {"model_name": name, "model_version": _VERSION, "outputs": outputs}
    if request.id is not None:
        content["id"] = request.id
    if not binaries:
        return JSONResponse(content)
    header = json.dumps(content).encode()
    headers = {_HEADER_LENGTH: str(len(header))}
    return Response(b"".join([header, *binaries]), media_type="application/octet-stream", headers=headers)


def _to_bytes(array: np.ndarray) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(element)) + element for element in array.flat)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _to_arrays(detected: Sequence[Instances]) -> Mapping[str, np.ndarray]:
    """Return the output tensors; entries after the detections of an image are 0, or empty."""
    columns: dict[str, list[np.ndarray]] = {
        "boxes": [image.boxes.numpy() for image in detected],
        "scores": [image.scores.numpy() for image in detected],
        "labels": [image.labels.numpy() for image in detected],
    }
    if detected[0].mask_grids is not None:
        codes = [[json.dumps(code).encode() for code in image.mask_codes() or ()] for image in detected]
        columns["segmentations"] = [np.array(texts, dtype=object) for texts in codes]
    if detected[0].keypoints is not None:
        columns["keypoints"] = [image.keypoints.numpy() for image in detected if image.keypoints is not None]
    counts = np.array([len(image) for image in detected], dtype=np.int64)
    return {"counts": counts, **{name: _stack(arrays) for name, arrays in columns.items()}}


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays whose first dimensions differ."""
    fill = b"" if arrays[0].dtype == object else 0
    stacked = np.full((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked
