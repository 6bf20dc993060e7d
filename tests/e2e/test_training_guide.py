"""Every command of docs/training.md, word for word except for length, size and number of processes (`adapted`)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import finish, free_port
from typer.testing import CliRunner

from fcos.cli import app
from fcos.html_page import Section
from fcos.interop.checkpoints import load_checkpoint

GUIDE = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
SHORT = [
    "model.backbone.weights=null",
    "model.backbone.frozen_stages=0",
    "data.short_side=96",
    "data.workers=0",
    "device=cpu",
]


def adapted(words: list[str]) -> list[str]:
    """Change a training command to one or two small steps from random weights on the CPU."""
    kept = [word for word in words if not word.startswith(("train.max_minutes=", "train.epochs="))]
    smaller = {"fcos_imprv_r50_fpn_1x": "fcos_mnv2_small", "train.devices=8": "train.devices=2"}
    kept = [smaller.get(word, word) for word in kept]
    length = 2 if "train.resume=true" in words else 1
    batch = [] if any(word.startswith("train.batch_size=") for word in words) else ["train.batch_size=2"]
    return [*kept, f"train.iterations={length}", *batch, *SHORT]


def run(line: str) -> str:
    """Run an `fcos` command in this process and return its output."""
    words = shlex.split(line)[1:]
    result = CliRunner().invoke(app, adapted(words) if words[0] == "train" else words)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output


def launch(line: str, *, processes: int, nodes: int = 1) -> str:
    """Run a `torchrun` command with N processes per node, all nodes on this machine, and return the output."""
    line = line.replace("--nproc_per_node=8", f"--nproc_per_node={processes}").replace(
        "HOST:29400", f"localhost:{free_port()}"
    )
    launcher, words = line.removeprefix("torchrun ").split(" -m fcos ")
    local = ["--standalone"] if nodes == 1 else ["--local_addr=localhost"]
    command = [sys.executable, "-m", "torch.distributed.run", *local, *shlex.split(launcher)]
    started = [
        subprocess.Popen(
            [*command, "-m", "fcos", *adapted(shlex.split(words))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(nodes)
    ]
    texts = [finish(process)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(texts)
    return "".join(texts)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a working directory in which all `fcos` commands of the guide were run in order."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "DIR").symlink_to(data)
    shutil.copy(data / "images/0.png", folder / "PHOTO.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Section, "charts", lambda *_: None)  # drawing them in every report takes half of the time
        (folder / "output.txt").write_text("".join(run(line) for line in COMMANDS if line.startswith("fcos ")))
        yield folder


def test_guide_has_only_fcos_and_two_torchrun_commands() -> None:
    programs = [line.split()[0] for line in COMMANDS]
    assert set(programs) == {"fcos", "torchrun"}
    assert programs.count("torchrun") == 2


def test_commands_create_the_files_listed_in_the_guide(folder: Path) -> None:
    assert (folder / "checkup/doctor.html").is_file()
    assert [path.name for path in (folder / "pictures").glob("[!.]*")] == ["PHOTO.jpg"]
    run_folder = folder / "runs/cells"
    table = GUIDE.split("leaves in `runs/cells`")[1].split("\n\n")[1]
    files = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(files) > 8
    files = [f"weights/{name}" if name == "last-1.pt" else name for name in files]
    assert [name for name in files if not (run_folder / name).exists()] == []


def test_resume_command_continues_the_run(folder: Path) -> None:
    assert load_checkpoint(folder / "runs/cells/weights/last.pt").iteration == 2
    assert "weights: iteration 1 of this run" in (folder / "output.txt").read_text()


def test_commands_print_the_sample_output_of_the_guide(folder: Path) -> None:
    shown = GUIDE.split("```text\n")[1].split("\n```")[0]
    shown, *printed = (
        re.sub(r"[\d.]+", "NUMBER", line).replace("processes", "process")
        for line in [shown, *(folder / "output.txt").read_text().splitlines()]
    )
    assert shown in printed


def test_devices_option_trains_in_several_processes(folder: Path) -> None:
    assert load_checkpoint(folder / "runs/eight/weights/best.pt").iteration == 1
    environment = json.loads((folder / "runs/eight/environment.json").read_text())
    assert environment["processes"] == "2"


@pytest.mark.slow  # test_lost_processes.py trains with torchrun, too
def test_torchrun_trains_in_several_processes(folder: Path) -> None:
    (line,) = (line for line in COMMANDS if line.startswith("torchrun --nproc_per_node"))
    assert "2 images over 2 processes, at most 1 in a micro-batch" in launch(line, processes=2)
    assert load_checkpoint(folder / "runs/launched/weights/best.pt").iteration == 1


def test_torchrun_trains_on_several_nodes(folder: Path) -> None:
    (line,) = (line for line in COMMANDS if "--nnodes" in line)
    assert launch(line, processes=1, nodes=2).count("2 images over 2 processes") == 1
    assert load_checkpoint(folder / "runs/nodes/weights/best.pt").iteration == 1
