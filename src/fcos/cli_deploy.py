"""Commands of `fcos` that take a detector to other programs: export, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from .choices import ExportFormat, ExportNMS, ExportPrecision
from .cli_arguments import (
    WORDS,
    FileOverrides,
    OriginalConfig,
    Weights,
    check_choice,
    check_flags,
    parse_number,
    parse_size,
    split_words,
)
from .errors import ConfigError
from .progress import progress_bar
from .terminal import print_lines

commands = typer.Typer()


@commands.command(context_settings=WORDS, short_help="Write a detector to a file for another runtime.")
def export(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OUT] KEY=VALUE",
            help="New file; default: the name of the weights. Options, e.g. model.score_threshold=0.3.",
            callback=check_flags,
        ),
    ] = None,
    config: OriginalConfig = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, openvino, torch_export, or aoti (machine code).")
    ] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Fixed height and width of the padded images, e.g. 608x800; default: any. More padding than"
            " without the option changes the detections.",
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N", help="Fixed number of images at a time; default: any.")
    ] = None,
    nms: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Non-maximum suppression: graph (operator of the runtime), matrix (plain tensor operations), or none"
            " (the file returns the candidates).",
        ),
    ] = "graph",
    raw: Annotated[
        bool, typer.Option("--raw", help="The raw outputs of the head, level by level, without decoding.")
    ] = False,
    opset: Annotated[
        str | None, typer.Option(metavar="N", help="ONNX: version of the operators, 20 to 25; default: 20.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="TYPE", help="float32, float16, bfloat16 or int8: precision of the network.")
    ] = "float32",
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Triton model repository that the ONNX file is added to."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Data set: its val images are used for the proof, and both sides are evaluated on it."
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="AP",
            help="int8: largest accepted drop of AP on the val images of --data, 0 to 1; default: 0.01.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a detector to a file for another runtime: images in, boxes out, for any batch and size.

    The file is compared with PyTorch at once. If the differences exceed the tolerances, it is not written, and the exit
    code is 2.

    \b
    For example:
      fcos export runs/cells/weights/best.pt
      fcos export runs/cells/weights/best.pt detector.xml --format openvino --size 608x800 --batch 1
    """
    from . import api_export
    from .export.runtimes import FORMATS

    check_choice("--format", form, get_args(ExportFormat))
    check_choice("--precision", precision, get_args(ExportPrecision))
    check_choice("--nms", nms, get_args(ExportNMS))
    options, outputs = split_words(words)
    if len(outputs) > 1:
        raise ConfigError(
            f"{outputs[1]}: expected one output file and KEY=VALUE options, found two: {' '.join(outputs)}"
        )
    suffix = FORMATS[cast("ExportFormat", form)]
    for word in options:
        key, _, value = word.partition("=")
        if value.endswith(suffix) and "." not in key:
            raise ConfigError(
                f"{word}: no such option; to name the output file, type {value}, or ./{word} if this is its name"
            )
    out = Path(outputs[0]) if outputs else api_export.default_path(weights, suffix)
    with progress_bar("evaluating", shown=data is not None) as progress:
        exported = api_export.export_detector(
            weights,
            out,
            *options,
            config=config,
            form=cast("ExportFormat", form),
            size=None if size is None else parse_size("--size", size),
            batch=None if batch is None else parse_number("--batch", batch, int, low=1),
            nms=cast("ExportNMS", nms),
            raw=raw,
            opset=None if opset is None else parse_number("--opset", opset, int),
            precision=cast("ExportPrecision", precision),
            triton=triton,
            data=data,
            max_drop=None if max_drop is None else parse_number("--max-drop", max_drop, float, low=0, high=1),
            progress=progress,
        )
    print_lines(f"proof{' before the quantisation' if precision == 'int8' else ''}: {exported.proof.summary()}")
    files = (exported.path, exported.proof_path, exported.triton_path)
    print_lines(f"written: {', '.join(str(path) for path in files if path is not None)}")
    if exported.ap_on_val is not None:
        before, after = exported.ap_on_val
        print_lines(f"AP on val: {before:.4f} in PyTorch, {after:.4f} in the exported file")


@commands.command(context_settings=WORDS, short_help="Serve a detector over HTTP, with a web page.")
def serve(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    overrides: FileOverrides = None,
    config: OriginalConfig = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all networks.")] = "127.0.0.1",
    port: Annotated[str, typer.Option(metavar="N", help="Port; 0: any free one.")] = "8000",
    name: Annotated[str | None, typer.Option(help="Name of the model; default: that of the run or file.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="FCOS_TOKEN", help="Bearer token that requests must contain.")
    ] = None,
    max_batch: Annotated[str, typer.Option(metavar="N", help="Images that are processed together.")] = "8",
    max_wait_ms: Annotated[str, typer.Option(metavar="MS", help="Longest wait for other images.")] = "5",
    max_queue: Annotated[str, typer.Option(metavar="N", help="Images that may be in progress.")] = "128",
    max_body_mb: Annotated[str, typer.Option(metavar="MB", help="Largest request.")] = "32",
    max_pixels: Annotated[str, typer.Option(metavar="N", help="Largest number of pixels of an image.")] = "65000000",
    timeout: Annotated[str, typer.Option(metavar="SECONDS", help="Longest time for a request.")] = "30",
) -> None:
    """Serve a detector over HTTP: a web page, POST /v1/detect, and the Open Inference Protocol at /v2.

    \b
    For example:
      fcos serve runs/cells/weights/best.pt
      fcos serve torchvision/fcos_resnet50_fpn device=cuda --max-batch 16
    """
    from . import api
    from .serving import require_packages

    require_packages()
    from .serving.server import open_socket, serve
    from .serving.settings import Settings, model_name, require_name, require_token

    settings = Settings(
        name=model_name(weights) if name is None else require_name(name),
        max_batch=parse_number("--max-batch", max_batch, int, low=1, high=4096),
        max_wait_ms=parse_number("--max-wait-ms", max_wait_ms, float, low=0, high=60_000),
        max_queue=parse_number("--max-queue", max_queue, int, low=1, high=1_000_000),
        max_body=round(parse_number("--max-body-mb", max_body_mb, float, low=0.001, high=100_000) * 1_000_000),
        max_pixels=parse_number("--max-pixels", max_pixels, int, low=1),
        timeout=parse_number("--timeout", timeout, float, low=0.001, high=86_400),
        token=None if token is None else require_token(token),
    )
    with open_socket(host, parse_number("--port", port, int, low=0, high=65_535)) as opened:
        api.require_trained(weights, *overrides or ())
        serve(api.load(weights, *overrides or (), config=config), settings, opened)
