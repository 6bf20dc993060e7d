"""Large collections: which files belong to them, their division into parts, and the pictures in shards."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcos import ConfigError, DataError
from fcos.inference.collection import Part, divide, find_files, read_part


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as shard:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def pictures(part: Part) -> list[tuple[object, str]]:
    batches = list(read_part(part))
    return [pair for batch in batches for pair in zip(batch["image"], batch["filename"], strict=True)]


def only(path: Path) -> Part:
    (part,) = divide([str(path)], {}, num_workers=2)
    return part


class TestFiles:
    def test_folders_contain_pictures_and_shards(self, tmp_path: Path) -> None:
        for name in ("b.jpg", "a.tar", "c.parquet", "d.tar.gz", "notes.txt", ".hidden.jpg"):
            (tmp_path / name).touch()
        files, messages = find_files([str(tmp_path), str(tmp_path / "b.jpg"), str(tmp_path / "none")])
        assert [Path(path).name for path in files] == ["a.tar", "b.jpg", "c.parquet", "d.tar.gz"]
        assert messages == [f"{tmp_path / 'none'}: no such file or folder"]

    @pytest.mark.parametrize("source", ["-", "0"])
    def test_cameras_and_stdin_are_refused(self, source: str) -> None:
        with pytest.raises(ConfigError, match=f"^{source}: --engine ray does not read cameras or stdin"):
            find_files([source])

    def test_videos_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        (tmp_path / "clip.mp4").touch()
        for source in (tmp_path, tmp_path / "clip.mp4", "rtsp://host/stream"):
            with pytest.raises(ConfigError, match=r"(clip\.mp4|stream): --engine ray does not read videos"):
                find_files([str(source)])


class TestDivision:
    def test_every_worker_gets_several_parts(self) -> None:
        paths = [f"{i}.jpg" for i in range(100)]
        parts = divide(paths, {}, num_workers=2)
        assert [len(part.paths) for part in parts] == [13] * 7 + [9]
        assert [path for part in parts for path in part.paths] == paths
        assert len({part.name for part in parts}) == 8

    def test_parts_have_at_most_256_pictures(self) -> None:
        parts = divide([f"{i}.jpg" for i in range(1000)], {}, num_workers=1)
        assert [len(part.paths) for part in parts] == [250] * 4
        assert len(divide([f"{i}.jpg" for i in range(10_000)], {}, num_workers=1)[0].paths) == 256

    def test_finished_pictures_and_shards_are_left_out(self, tmp_path: Path) -> None:
        shards = [str(tmp_path / f"{i}.tar") for i in range(2)]
        part = divide(shards, {}, num_workers=1)[0]
        finished = {"a.jpg": "", "c\\udcff.jpg": "", part.name: part.state}
        parts = divide(["a.jpg", "b.jpg", "c\udcff.jpg", *shards], finished, num_workers=1)
        assert [part.where for part in parts] == [shards[1], "b.jpg"]

    def test_a_shard_that_has_changed_is_an_error(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", {"a.jpg": b"a"})
        finished = {only(path).name: only(path).state}
        assert divide([str(path)], finished, num_workers=1) == []
        write_tar(path, {"a.jpg": b"a", "b.jpg": b"b"})  # of the same size: tar files end with zeros
        os.utime(path, ns=(0, 0))
        with pytest.raises(
            DataError, match=r"a\.tar: has changed .* delete the files shard-a\.tar-[0-9a-f]{16}-\*\.pa"
        ):
            divide([str(path)], finished, num_workers=1)

    def test_row_groups_are_parts(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"image": [b"0", b"1", b"2", b"3", b"4"]}), path, row_group_size=2)
        parts = divide([str(path)], {}, num_workers=1)
        assert [pictures(part) for part in parts] == [
            [(b"0", f"{path}/0"), (b"1", f"{path}/1")],
            [(b"2", f"{path}/2"), (b"3", f"{path}/3")],
            [(b"4", f"{path}/4")],
        ]


class TestParquet:
    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"image": [b"a"], "filename": ["a.jpg"], "label": ["cat"]}, (b"a", "a.jpg")),
            ({"thumbnail": [b"t"], "jpg": [b"a"]}, (b"a", "{path}/0")),
            ({"image": [{"bytes": b"a", "path": "a.jpg"}]}, (b"a", "a.jpg")),
            ({"image": [{"bytes": None, "path": "/a.jpg"}]}, ("/a.jpg", "/a.jpg")),
            ({"file_name": ["images/a.jpg"], "label": ["cat"]}, ("{folder}/images/a.jpg", "{folder}/images/a.jpg")),
            ({"url": ["https://host/a.jpg"]}, ("https://host/a.jpg", "https://host/a.jpg")),
            ({"image": pa.array([b"a"], pa.large_binary())}, (b"a", "{path}/0")),
            ({"image": pa.array([b"a"], pa.binary_view()), "path": pa.array(["a"], pa.string_view())}, (b"a", "a")),
            ({"image": pa.array([None], pa.binary())}, (None, "{path}/0")),
        ],
    )
    def test_columns_are_found(self, tmp_path: Path, columns: dict, expected: tuple[object, str]) -> None:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table(columns), path)
        values = {"path": path, "folder": tmp_path}
        image, name = (text.format(**values) if isinstance(text, str) else text for text in expected)
        assert pictures(only(path)) == [(image, name)]

    def test_other_columns_are_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"label": ["cat"], "id": [1]}), path)
        with pytest.raises(
            DataError, match=r"rows\.parquet: expected a column .* found label \(string\), id \(int64\)"
        ):
            pictures(only(path))

    def test_an_empty_file_has_no_pictures(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
        assert pictures(only(path)) == []

    @pytest.mark.parametrize("name", ["rows.parquet", os.fsdecode(b"\xffrows.parquet")])
    def test_a_damaged_file_is_an_error(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_text("no table")
        with pytest.raises(DataError, match=r"rows\.parquet: cannot be read"):
            pictures(only(path))

    def test_a_row_group_is_read_in_pages(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        images = [random.Random(i).randbytes(10_000) for i in range(2000)]
        pq.write_table(pa.table({"image": images}), path, use_dictionary=False, write_batch_size=50)
        tracemalloc.start()  # sees what is read from the file
        try:
            assert next(read_part(only(path)))["image"].tolist() == images[:32]
            assert tracemalloc.get_traced_memory()[1] < 5 << 20
        finally:
            tracemalloc.stop()

    def test_names_that_are_no_unicode_are_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        names = pa.array([b"\xff"], pa.binary()).cast(pa.string(), safe=False)
        pq.write_table(pa.table({"path": names}), path)
        with pytest.raises(DataError, match=r"rows\.parquet: cannot be read: .*utf-8"):
            pictures(only(path))


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_pipe_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"pipe\.\w+: cannot be read: not a regular file"):
        pictures(only(path))


class TestTar:
    @pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
    def test_pictures_of_samples_are_read(self, tmp_path: Path, suffix: str, mode: str) -> None:
        members = {"000.jpg": b"a", "000.json": b"{}", "sub/001.PNG": b"b", "001.cls": b"1", "._000.jpg": b"?"}
        path = write_tar(tmp_path / f"shard{suffix}", members, mode)
        assert pictures(only(path)) == [(b"a", f"{path}/000.jpg"), (b"b", f"{path}/sub/001.PNG")]

    @pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")])
    def test_pictures_before_the_damage_are_read(self, tmp_path: Path, suffix: str, mode: str) -> None:
        contents = {f"{i:03}.jpg": random.Random(i).randbytes(20_000) for i in range(3)}
        path = write_tar(tmp_path / f"shard{suffix}", contents, mode)
        path.write_bytes(path.read_bytes()[:50_000])
        batches = read_part(only(path))
        found = next(batches)["filename"].tolist()
        assert found == [f"{path}/{name}" for name in list(contents)[: len(found)]]
        assert 1 <= len(found) < 3
        with pytest.raises(DataError, match=r"shard\.tar.*: cannot be read"):
            next(batches)

    @pytest.mark.parametrize("damage", ["header", "end"])
    def test_a_damaged_header_or_a_missing_end_is_an_error(self, tmp_path: Path, damage: str) -> None:
        path = write_tar(tmp_path / "shard.tar", {f"{i}.jpg": bytes([i]) * 100 for i in range(3)})
        content = bytearray(path.read_bytes())
        if damage == "header":
            content[2 * 1024 : 2 * 1024 + 20] = b"x" * 20  # of the last member; each has two blocks
        else:
            del content[2 * 1024 :]
        path.write_bytes(content)
        batches = read_part(only(path))
        assert next(batches)["filename"].tolist() == [f"{path}/0.jpg", f"{path}/1.jpg"]
        with pytest.raises(DataError, match=r"shard\.tar: cannot be read: (bad checksum|empty header)"):
            next(batches)

    def test_a_file_that_is_no_tar_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "shard.tar").write_text("no shard")
        with pytest.raises(DataError, match=r"shard\.tar: cannot be read"):
            pictures(only(tmp_path / "shard.tar"))
        with pytest.raises(DataError, match=r"none\.tar: cannot be read: No such file"):
            pictures(only(tmp_path / "none.tar"))
