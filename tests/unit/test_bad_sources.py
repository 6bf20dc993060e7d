"""Detection on sources that fail: the other pictures are done, and nothing outside the output folder is written."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES
from PIL import Image
from raw_server import raw_server, response

from fcos import ConfigError, DataError, Detector, cli
from fcos.data.images import check_image, open_rgb
from fcos.errors import WriteError
from fcos.inference.paths import expand
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected


@pytest.fixture(autouse=True)
def direct_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with one good picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    write(folder / "good.png")
    return folder


def write(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    Image.radial_gradient("L").convert("RGB").resize(size).save(path, "PNG")
    return path


def run(detector: Detector, sources: list[str | Path], out: Path) -> dict[str, Detected]:
    """Return the results by source, and check that predictions.json has all of them."""
    results: list[Detected] = []
    success = predict_files(detector, [str(s) for s in sources], out, save=("images", "json"), report=results.append)
    rows = json.loads((out / "predictions.json").read_text())
    assert [row["file"] for row in rows] == [result.source for result in results]
    assert [row.get("error") for row in rows] == [result.error for result in results]
    assert success == all(result.error is None for result in results)
    assert all(vars(result.instances)["image"] is None for result in results if result.instances)  # memory
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    return {result.source: result for result in results}


def assert_good_is_done(results: dict[str, Detected], photos: Path, out: Path) -> None:
    good = results[str(photos / "good.png")]
    assert (good.error, good.picture) == (None, out / "good.png")
    assert good.instances is not None
    assert (out / "good.png").is_file()


def test_failing_urls_do_not_stop_the_others(detector: Detector, photos: Path, tmp_path: Path) -> None:
    responses = {
        "/short.jpg": response(b"abc", length=99),
        "/bad.jpg": b"nonsense\r\n\r\n",
        "/many.jpg": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        "/good.jpg": response((photos / "good.png").read_bytes()),
    }
    with raw_server(responses) as address:
        bad = [f"{address}/short.jpg", f"{address}/bad.jpg", f"{address}/many.jpg", "http://a:b/c d.jpg", "http://"]
        good = f"{address}/good.jpg"
        results = run(detector, [*bad, good, photos / "good.png"], tmp_path / "out")
    assert [source for source, result in results.items() if result.error] == bad
    assert all(str(results[url].error).startswith(url) for url in bad)
    assert results[good].picture == tmp_path / "out" / "good.jpg"
    assert_good_is_done(results, photos, tmp_path / "out")


def test_files_of_other_kinds_are_reported_without_being_opened(
    detector: Detector, photos: Path, tmp_path: Path
) -> None:
    os.mkfifo(photos / "pipe.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "broken.png").symlink_to("nowhere.png")
    (photos / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(photos / "socket.png"))
        results = run(detector, [photos, tmp_path / "a\0b.png", "x" * 300 + ".png"], tmp_path / "out")
    errors = {Path(source).name: result.error or "" for source, result in results.items()}
    assert "not a regular file" in errors["pipe.png"]
    assert "not a regular file" in errors["socket.png"]
    assert "symbolic links" in errors["loop.png"]
    assert "no such file" in errors["broken.png"]
    assert "no such file" in errors["a\0b.png"]
    assert "no such file" in errors["x" * 300 + ".png"]
    assert "folder.png" not in errors
    assert_good_is_done(results, photos, tmp_path / "out")


@pytest.mark.parametrize("function", [open_rgb, Detector.predict])
def test_a_pipe_is_a_data_error_from_python(detector: Detector, tmp_path: Path, function) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    arguments = [tmp_path / "pipe.png"] if function is open_rgb else [detector, tmp_path / "pipe.png"]
    with pytest.raises(DataError, match="not a regular file"):
        function(*arguments)
    assert "not a regular file" in str(check_image(tmp_path / "pipe.png", decode=False).problem)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("..png", "..png"),
        (".png", ".png.png"),
        ("a\n\x1b[31m.png", "a__[31m.png"),
        ("a.PNG", "a.PNG"),
        ("a", "a.png"),
        ("a.b.c", "a.b.png"),
        ("n" * 251 + ".png", "n" * 251 + ".png"),
        ("n" * 251 + ".ppm", "n" * 251 + ".png"),
        ("n" * 255, "n" * 247 + ".png"),
        ("\udcff.png", "_.png"),
    ],
)
def test_every_name_gives_a_picture(detector: Detector, tmp_path: Path, name: str, written: str) -> None:
    path = write(tmp_path / name)
    assert run(detector, [path], tmp_path / "out")[str(path)].picture == tmp_path / "out" / written
    with Image.open(tmp_path / "out" / written) as picture:
        picture.load()


def test_numbered_names_are_not_too_long(detector: Detector, photos: Path, tmp_path: Path) -> None:
    name = "ü" * 125 + ".png"
    sources: list[str | Path] = []
    for folder in "abc":
        (tmp_path / folder).mkdir()
        sources.append(write(tmp_path / folder / name))
    results = run(detector, sources, tmp_path / "out")
    pictures = {result.picture for result in results.values()}
    assert len(pictures) == 3
    assert all(picture is not None and picture.is_file() for picture in pictures)


def test_a_picture_that_its_format_cannot_store_becomes_png(detector: Detector, photos: Path, tmp_path: Path) -> None:
    wide = np.zeros((16, 16400, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.tiff")
    (tmp_path / "wide.tiff").rename(tmp_path / "wide.webp")
    results = run(detector, [tmp_path / "wide.webp", photos / "good.png"], tmp_path / "out")
    assert results[str(tmp_path / "wide.webp")].picture == tmp_path / "out" / "wide.png"
    assert_good_is_done(results, photos, tmp_path / "out")


def test_a_name_in_use_by_a_folder_is_reported_and_its_detections_are_kept(
    detector: Detector, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    source = write(photos / "a.png")
    results = run(detector, [photos], tmp_path / "out")
    assert "cannot be written" in str(results[str(source)].error)
    assert results[str(source)].instances is not None
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "detections" in rows[0]
    assert_good_is_done(results, photos, tmp_path / "out")


def test_links_in_the_output_folder_are_replaced_and_not_written_through(
    detector: Detector, photos: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("good.png", "predictions.json"):
        (out / name).symlink_to(victim)
    os.mkfifo(out / "b.png")
    write(photos / "b.png")
    results = run(detector, [photos], out)
    assert victim.read_text() == "precious"
    assert not (out / "good.png").is_symlink()
    assert_good_is_done(results, photos, out)


def test_an_original_is_not_replaced_through_a_link_to_it(detector: Detector, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(photos / "good.png")
    before = (photos / "good.png").read_bytes()
    with pytest.raises(DataError, match="would be overwritten"):
        run(detector, [tmp_path / "links"], photos)
    assert (photos / "good.png").read_bytes() == before


@pytest.mark.parametrize("save", ["coco", "yolo", "voc", "crops", "frames"])
def test_pictures_in_the_folder_of_an_output_are_rejected(
    detector: Detector, photos: Path, tmp_path: Path, save: str
) -> None:
    folder = tmp_path / save / "images"
    folder.mkdir(parents=True)
    picture = write(folder / "a.png")
    with pytest.raises(DataError, match="would be overwritten"):
        predict_files(detector, [str(picture)], tmp_path, save=[save], report=lambda _: None)
    assert predict_files(detector, [str(picture)], tmp_path, save=["json"], report=lambda _: None)


def test_originals_that_are_listed_on_stdin_are_not_replaced(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other = photos / "good.png", write(tmp_path / "other.png")
    before = good.read_bytes()
    (tmp_path / "list").write_text(f"{good}\n{other}\n")
    results: list[Detected] = []
    with (tmp_path / "list").open() as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        assert not predict_files(detector, ["-"], photos, report=results.append)
    assert [result.error for result in results] == [
        f"{good}: is in the output folder {photos}; choose another one (--out)",
        None,
    ]
    assert good.read_bytes() == before
    assert (photos / "other.png").is_file()


def test_lists_may_be_written_to_the_current_folder(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list").write_text("photos/good.png\n")
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "list").open() as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        assert predict_files(detector, ["-"], Path(), report=lambda _: None)
    assert (tmp_path / "good.png").is_file()


def test_an_image_name_as_output_folder_is_rejected(detector: Detector, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"result\.jpg: expected a folder"):
        run(detector, [photos], tmp_path / "result.jpg")


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory\nstack"), DataError("does not fit into the file")],
)
def test_a_picture_that_the_detector_cannot_process_does_not_stop_the_others(
    detector: Detector, photos: Path, tmp_path: Path, failure: Exception
) -> None:
    write(photos / "large.png", (256, 64))

    def fail(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[-1] > inputs[0].shape[-2] * 2:
            raise failure

    hook = detector.model.get_submodule("backbone").register_forward_pre_hook(fail)
    try:
        results = run(detector, [photos], tmp_path / "out")
    finally:
        hook.remove()
    error = results[str(photos / "large.png")].error
    reason = str(failure).partition("\n")[0]
    assert error == f"{photos}/large.png: cannot be processed (256x64 pixels): {reason}"
    assert_good_is_done(results, photos, tmp_path / "out")


class TestExpand:
    def test_links_to_a_parent_folder_end(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (photos / "sub").mkdir()
        write(photos / "sub" / "b.png")
        for name in ("up", "again"):
            (photos / "sub" / name).symlink_to(photos)
        for name in ("self", "here"):
            (photos / name).symlink_to(photos)
        expected = [str(photos / "good.png"), str(photos / "sub" / "b.png")]
        assert expand(f"{photos}/**/*.png") == expected
        assert expand(f"{photos}/**") == expected
        assert expand(f"{photos}/**/**/*.png") == expected
        monkeypatch.chdir(photos)
        assert expand("**/*.png") == ["good.png", "sub/b.png"]
        assert expand("./**/b.png") == ["sub/b.png"]

    def test_a_linked_folder_is_entered(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "all").mkdir()
        (tmp_path / "all" / "more").symlink_to(photos)
        assert expand(f"{tmp_path}/all/**/*.png") == [f"{tmp_path}/all/more/good.png"]

    def test_hidden_files_of_a_folder_are_skipped(self, photos: Path) -> None:
        write(photos / "._good.png")
        assert expand(str(photos)) == [str(photos / "good.png")]

    def test_an_odd_folder_name_is_not_a_pattern(self, photos: Path) -> None:
        (photos / "[1]").mkdir()
        write(photos / "[1]" / "a.png")
        assert expand(f"{photos}/**/a.png") == [f"{photos}/[1]/a.png"]

    @pytest.mark.parametrize(
        "source", ["", "a\0*", "a\0", "x" * 5000, "x" * 5000 + "*", "[", "**/none", "*/" * 3000, "**/x/" * 3000]
    )
    def test_a_source_without_matches_is_a_data_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"no such file or folder|no file matches"):
            expand(source)


class TestMessages:
    @pytest.fixture
    def weights(self, detector: Detector, tmp_path: Path) -> Path:
        from fcos.checkpoint import save_checkpoint

        save_checkpoint(
            tmp_path / "w.pt",
            model=detector.model,
            config=detector.config,
            class_names=NAMES,
            category_ids=CATEGORY_IDS,
            thresholds=dict.fromkeys(NAMES, 1.0),
        )
        return tmp_path / "w.pt"

    def run(self, *words: object) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        return int(stop.value.code or 0)

    def test_detections_below_the_thresholds_are_counted(
        self, weights: Path, detector: Detector, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        everything = detector.predict(photos / "good.png", threshold=0)
        best = everything.scores.max().item()
        count = f"({len(everything)} below, best {best:.2f})"
        assert self.run("predict", weights, photos, "--out", tmp_path / "out", "device=cpu") == 0
        assert f"good.png: nothing above the thresholds {count} -> " in capsys.readouterr().out
        assert self.run("predict", weights, photos, "--out", tmp_path / "out", "device=cpu", "--threshold", "0.99") == 0
        assert f"good.png: nothing above the threshold 0.99 {count} -> " in capsys.readouterr().out

    def test_nothing_at_all_has_no_count(
        self, weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["device=cpu", "model.score_threshold=0.999"]
        assert self.run("predict", weights, photos, "--out", tmp_path / "out", *options) == 0
        assert "good.png: nothing -> " in capsys.readouterr().out

    def test_control_characters_of_names_do_not_reach_the_terminal(
        self, weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(photos / "a\x1b[31m\x9b.png")
        (photos / "b\x1b[31m.png").write_text("no image")
        assert self.run("predict", weights, photos, "c\x1b[31m", "--out", tmp_path / "o\x1b[1m", "device=cpu") == 1
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err
        assert r"a\x1b[31m\x9b.png: " in captured.out
        assert r"b\x1b[31m.png: " in captured.err
        assert r"c\x1b[31m: no file matches" in captured.err


def test_progress_counts_every_picture(detector: Detector, photos: Path, tmp_path: Path) -> None:
    write(photos / "a.png")
    (photos / "b.png").write_text("no image")
    steps: list[tuple[int, int | None]] = []
    predict_files(
        detector,
        [str(photos)],
        tmp_path / "out",
        report=lambda _: None,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_predictions_that_cannot_be_written_are_a_write_error(detector: Detector, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "predictions.json").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"out/predictions\.json: cannot be written: Is a directory$"):
        run(detector, [photos], tmp_path / "out")
    assert not (tmp_path / "out" / "good.png").exists()  # found before the first picture
