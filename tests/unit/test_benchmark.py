"""`fcos benchmark`: parts of the time, turns of the variants, output, wrong arguments. No test depends on times."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from exports import picture, small_detector
from rich.console import Console
from tiny_backbone import MODEL

import fcos
from fcos import Detector, cli
from fcos.checkpoint import save_checkpoint
from fcos.data.images import open_rgb
from fcos.models import inference_copy
from fcos.speed import measure as measuring
from fcos.speed import pipeline as pipelines
from fcos.speed.images import generate_images
from fcos.speed.measure import Benchmark, Timing, measure
from fcos.speed.pipeline import PARTS, Stopwatch, Variant, build_pipelines
from fcos.speed.table import print_benchmark
from fcos.structures import Instances

OWN_CODE = "model.backbone.name=tiny_backbone:Tiny"


@pytest.fixture(scope="module")
def small() -> Detector:
    return small_detector()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images, two of which have the same padded size."""
    folder = tmp_path_factory.mktemp("images")
    files = [folder / f"{i}.png" for i in range(3)]
    for i, (file, (width, height)) in enumerate(zip(files, ((130, 100), (90, 120), (130, 100)), strict=True)):
        picture(width, height, seed=i).save(file)
    return files


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `fcos benchmark` and returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["benchmark", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, small: Detector) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(
        path, model=small.model, config=small.config, class_names=small.class_names, category_ids=small.category_ids
    )
    return path


def test_parts_sum_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.5, 14.0, 20.0])
    monkeypatch.setattr(pipelines, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    watch = Stopwatch(torch.device("cpu"))
    for part in ("loading", "model", "post-processing", "model", ""):
        watch.enter(part)
    expected = dict.fromkeys(PARTS, 0.0) | {"loading": 1.0, "model": 2.5 + 6.0, "post-processing": 0.5}
    assert watch.seconds == expected
    assert sum(watch.seconds.values()) == 20.0 - 10.0


def test_pipeline_detects_what_predict_detects(small: Detector, images: list[Path]) -> None:
    (pipeline,) = build_pipelines("best.pt", small, batches=[3], precisions=["float32"], compiled=False)
    seconds, found = pipeline.run(images)
    assert tuple(seconds) == PARTS
    assert all(value > 0 for value in seconds.values())
    for instances, expected in zip(found, small.predict(images), strict=True):
        assert len(expected) > 0
        torch.testing.assert_close(instances.boxes, expected.boxes)
        assert torch.equal(instances.labels, expected.labels)


def test_test_time_augmentation_is_measured_with_all_views(images: list[Path]) -> None:
    detector = small_detector()
    flipped = Detector(
        detector.model,
        detector.config.model_copy(update={"eval": detector.config.eval.model_copy(update={"flip": True})}),
        class_names=detector.class_names,
    )
    (pipeline,) = build_pipelines("best.pt", flipped, batches=[2], precisions=["float32"], compiled=False)
    _, found = pipeline.run(images[:2])
    for instances, expected in zip(found, flipped.predict(images[:2]), strict=True):
        torch.testing.assert_close(instances.boxes, expected.boxes)
    assert not flipped.model._forward_hooks


def test_variants_are_all_combinations(small: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(inference_copy, "compile_modules", compiled.append)
    monkeypatch.setenv("CXX", sys.executable)  # any program that exists
    built = build_pipelines("best.pt", small, batches=[1, 4], precisions=["float32", "bfloat16"], compiled=True)
    found = [(p.variant.batch, p.variant.precision, p.variant.compiled) for p in built]
    assert found == [
        (batch, precision, is_compiled)
        for is_compiled, precision, batch in itertools.product((False, True), ("float32", "bfloat16"), (1, 4))
    ]
    assert len(compiled) == 2  # a model for each precision, none of which is the one of the other variants
    assert all(model is not small.model for model in compiled)
    assert {p.variant.runtime for p in built} == {f"PyTorch {torch.__version__.partition('+')[0]}"}


def test_exported_file_varies_in_the_batch_size_only(small: Detector) -> None:
    precisions: Any = ["float32", "bfloat16"]
    built = build_pipelines("best.pt2", small, batches=[1, 2], precisions=precisions, compiled=True)
    assert [(p.variant.batch, p.variant.precision, p.variant.compiled) for p in built] == [
        (1, "exported", False),
        (2, "exported", False),
    ]
    assert built[0].variant.runtime.startswith("PyTorch (exported) ")


class Recorder:
    """Pipeline that records its calls."""

    def __init__(self, name: str, batch: int, calls: list[tuple[str, list[str]]]):
        self.variant, self.calls = Variant(name, "", batch, "float32", False), calls

    def run(self, files: list[Path]) -> tuple[dict[str, float], list[Instances]]:
        self.calls.append((self.variant.weights, [file.name for file in files]))
        found = Instances(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.ones(2), (8, 8))
        return dict.fromkeys(PARTS, 1.0), [found] * len(files)


def test_variants_take_turns_with_all_images() -> None:
    calls: list[tuple[str, list[str]]] = []
    progress: list[tuple[int, int]] = []
    recorders: Any = [Recorder("a", 1, calls), Recorder("b", 2, calls)]
    files = [Path(name) for name in ("0", "1", "2")]
    timings = measure(recorders, files, seconds=0, repeats=2, progress=lambda *steps: progress.append(steps))
    warm_up = 2 * measuring.WARM_UP
    assert [name for name, _ in calls[:warm_up]] == ["a", "a", "b", "b"]
    assert calls[warm_up:] == [("a", ["2"]), ("b", ["1", "2"]), ("a", ["0"]), ("b", ["0", "1"])]
    assert [len(timing.seconds) for timing in timings] == [2, 2]
    assert [timing.detections_per_image for timing in timings] == [2.0, 2.0]
    assert progress == [(1, 2), (2, 2)]
    recorders = [Recorder("a", 1, [])]
    assert len(measure(recorders, files, seconds=0)[0].seconds) == 3


def test_results_are_plain_data_in_milliseconds() -> None:
    seconds = [dict.fromkeys(PARTS, 0.01) | {"model": 0.01 * i} for i in range(1, 12)]
    timing = Timing(Variant("best.pt", "PyTorch", 4, "float32", False), seconds, 22)
    result = json.loads(json.dumps(Benchmark({"torch": "2"}, 3, [timing]).to_dict()))
    (row,) = result["results"]
    assert row["parts_ms"]["model"] == pytest.approx({"mean": 60, "p50": 60, "p90": 100, "p99": 109})
    assert sum(part["mean"] for part in row["parts_ms"].values()) == pytest.approx(row["total_ms"]["mean"])
    assert row["images_per_second"] == pytest.approx(4 / (0.05 + 0.06))
    assert row["detections_per_image"] == 0.5
    assert (result["machine"], result["num_images"], row["num_batches"]) == ({"torch": "2"}, 3, 11)


def test_command_prints_a_table_and_writes_json(
    run: Callable[..., tuple[int, str, str]], weights: Path, images: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "speed.json"
    words = (weights, images[0].parent, OWN_CODE, "--batch", "1,2", "--precision", "float32,bfloat16", "--repeats", "1")
    code, out, err = run(*words, "--json", file)
    assert (code, err) == (0, "")
    assert "processor: " in out
    assert "images: 3;" in out
    table = out.partition("ms per batch")[2].partition("written: ")[0]
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    labels = ["variant", "weights", "runtime", "precision", "compiled", "batch"]
    assert list(rows) == [*labels, *PARTS, "p50", "p90", "p99", "images/s", "objects"]
    assert rows["batch"] == ["1", "2", "1", "2"]
    assert rows["precision"] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert {len(rows[part]) for part in PARTS} == {4}
    assert [row["batch"] for row in json.loads(file.read_text())["results"]] == [1, 2, 1, 2]


def test_run_folder_is_compared_with_other_weights(
    run: Callable[..., tuple[int, str, str]], weights: Path, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cells/weights").mkdir(parents=True)
    shutil.copy(weights, tmp_path / "cells/weights/last.pt")
    file = tmp_path / "speed.json"
    words = (weights, tmp_path / "cells", images[0], OWN_CODE, "--repeats", "1", "--json", file)
    assert run(*words)[0] == 0
    result = json.loads(file.read_text())
    assert (len(result["results"]), result["num_images"]) == (2, 1)


def test_variants_that_do_not_fit_on_the_terminal_are_printed_below() -> None:
    timings = [
        Timing(Variant(f"{i}.pt", "PyTorch", 1, "float32", False), [dict.fromkeys(PARTS, 0.01)]) for i in "abcde"
    ]
    console = Console(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    print_benchmark(Benchmark({}, 1, timings), console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert [line.split()[1:] for line in text.splitlines() if "weights" in line] == [
        ["a.pt", "b.pt", "c.pt"],
        ["d.pt", "e.pt"],
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_untrained_recipe_is_measured_on_generated_images(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({"model": MODEL, "data": {"short_side": [32]}, "device": "cpu"}))
    monkeypatch.setattr(torch, "set_num_threads", lambda _number: None)
    code, out, _ = run(recipe, "--repeats", "1", "--size", "32x48", "--threads", "1")
    assert code == 0
    assert "images: 8, generated" in out


def test_number_of_threads_is_restored(weights: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    result = fcos.benchmark([weights, weights], OWN_CODE, images=images[:1], threads=3, repeats=1)
    assert numbers == [3, torch.get_num_threads()]
    assert [timing.variant.weights for timing in result.timings] == [str(weights)] * 2  # names that occur twice


def test_generated_images_have_the_given_size(tmp_path: Path) -> None:
    files = generate_images(tmp_path, (40, 60))
    assert {open_rgb(file).size for file in files} == {(60, 40)}
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "1,x"], "--batch: expected an integer from 1 to 4096, found 'x'"),
        (["--batch", "0"], "--batch: expected an integer from 1 to 4096, found '0'"),
        (["--precision", "int8"], "--precision: expected one of float32, bfloat16, float16, found 'int8'"),
        (["--size", "640"], "--size: expected HEIGHTxWIDTH"),
        (["--size", "32x48", "IMAGES"], "--size: the size of generated images, but images are given"),
        (["--repeats", "0"], "--repeats: expected an integer"),
        (["--seconds", "-1"], "--seconds: expected a number"),
        (["--seconds", "0"], "--seconds: expected a number from 0.001 to 86400, found '0'"),
        (["--seconds", "1", "--repeats", "2"], "--seconds: no effect beside --repeats, which"),
        (["--repeats", "1e3"], "--repeats: expected an integer from 1 to 1000000, found '1e3'"),
        (["--json", "/proc/speed.json"], "/proc/speed.json: cannot be written: "),
        (["--threads", "many"], "--threads: expected an integer"),
        (["--size", "99999x99999"], "--size: 99999x99999 are more than data.max_pixels=178956970 pixels"),
        (["--json", "."], "--json: . is a folder"),
        (["--json", "IMAGES"], "--json: expected the path of a new file that ends in .json"),
        (["nothing/*.jpg"], "nothing/*.jpg: no file matches"),
        (["https://example.com/a.jpg"], "expected image files, folders or globs; download the image first"),
        (["missing.pt"], "missing.pt: no such file"),
        (["torchvision/fcos_resnet18"], "torchvision/fcos_resnet18: neither a weights file nor a recipe, did you mean"),
        (["--quick"], "--quick: no such option"),
        (["train.lr=1"], "train.lr: no effect"),
        (["eval.compile=true"], "eval.compile: no effect on a benchmark; use --compile"),
        (["eval.precision=bfloat16"], "eval.precision: no effect on a benchmark; use --precision"),
        (["train.precision=bfloat16"], "train.precision: no effect on a benchmark; use --precision"),
        (["eval.batch_size=4"], "eval.batch_size: no effect on a benchmark; use --batch"),
    ],
)
def test_wrong_arguments_are_explained(
    run: Callable[..., tuple[int, str, str]], weights: Path, images: list[Path], words: list[str], message: str
) -> None:
    code, out, err = run(weights, OWN_CODE, *(word.replace("IMAGES", str(images[0])) for word in words))
    assert (code, out) == (2, "")
    assert message in err
