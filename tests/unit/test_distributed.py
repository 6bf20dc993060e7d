from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from launchers import be_second_without_first

from fcos.data.shape_checks import MissingShapesError
from fcos.distributed import broadcast, mean_over_processes, rank, resolve_device, world_size
from fcos.errors import ConfigError, TrainingError
from fcos.training import elastic
from fcos.training.elastic import explain_lost_processes, is_orphaned

PROGRAMS = Path(__file__).parents[1] / "helpers/programs"


def test_single_process_has_rank_zero_and_world_size_one() -> None:
    assert (rank(), world_size(), broadcast(3)) == (0, 1, 3)


def test_mean_over_processes_has_no_gradient() -> None:
    tensor = torch.ones(2, requires_grad=True)
    mean = mean_over_processes(tensor)
    assert torch.equal(mean, tensor)
    assert not mean.requires_grad


@pytest.mark.parametrize("option", ["masks", "keypoints"])
def test_errors_with_attributes_reach_the_other_processes(option: Literal["masks", "keypoints"]) -> None:
    error = MissingShapesError("found none", option)
    error.told = True
    received = pickle.loads(pickle.dumps(error))
    assert (type(received), str(received), vars(received)) == (
        MissingShapesError,
        "found none",
        {"option": option, "told": True},
    )


def test_auto_resolves_to_a_device() -> None:
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_unavailable_device_raises(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: .*{name}"):
        resolve_device(name)


def test_single_gpu_index_raises_with_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device: 'cuda:1' selects one GPU for all 2 processes of this machine; use"):
        resolve_device("cuda:1")


LOST = [
    "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.1.1]:4711",
    "[../gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]:4711: Connection timed out",
    "[../gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]:4711: No route to host",
    "[../gloo/transport/tcp/pair.cc:280] writev [10.0.0.2]:4711: Network is unreachable",
    "[../gloo/transport/tcp/pair.cc:1150] Socket closed [10.0.0.2]:4711",
    "[../gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 1800000ms for recv operation to complete",
    "NCCL error in: ../NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL version 2.27",
]
OTHERS = [
    "[enforce fail at ../gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4",
    "NCCL error in: ../NCCLUtils.cpp:77, invalid usage; Duplicate GPU detected : rank 0 and rank 1 both on CUDA 0",
]


@pytest.mark.parametrize("kind", [RuntimeError, torch.distributed.DistBackendError])
@pytest.mark.parametrize("text", LOST)
def test_lost_process_is_reported(monkeypatch: pytest.MonkeyPatch, kind: type[Exception], text: str) -> None:
    monkeypatch.setattr(elastic, "world_size", lambda: 2)
    with pytest.raises(TrainingError, match="process 0: another process has ended"), explain_lost_processes():
        raise kind(text)


def test_process_lost_while_joining_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(TrainingError, match="process 2: another process has ended"), explain_lost_processes():
        raise RuntimeError("Gloo connectFullMesh failed with [../gloo/transport/tcp/pair.cc:144] no error")


def test_single_process_reraises_the_original_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="Broken pipe"), explain_lost_processes():
        raise RuntimeError("Broken pipe")


def test_unreachable_rank_zero_is_reported_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    be_second_without_first(monkeypatch)
    with pytest.raises(TrainingError, match="process 1: process 0 cannot be reached at node1:4711; the machines"):
        elastic.join_processes(torch.device("cpu"))


def test_lost_store_is_reported_as_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "world_size", lambda: 2)
    with pytest.raises(TrainingError, match="another process has ended"), explain_lost_processes():
        raise torch.distributed.DistNetworkError("failed to recv, got 0 bytes")


@pytest.mark.parametrize("kind", [RuntimeError, torch.distributed.DistBackendError])
@pytest.mark.parametrize("text", OTHERS)
def test_other_backend_errors_are_reraised_unchanged(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], text: str
) -> None:
    monkeypatch.setattr(elastic, "world_size", lambda: 2)
    with pytest.raises(kind, match=re.escape(text)), explain_lost_processes():
        raise kind(text)


@pytest.mark.parametrize(
    ("processes", "launched", "expected"),
    [(1, True, False), (2, False, False), (2, True, True)],  # second case: started by hand, parent is a shell
)
def test_only_launched_processes_can_be_orphaned(
    monkeypatch: pytest.MonkeyPatch, processes: int, launched: bool, expected: bool
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(elastic, "world_size", lambda: processes)
    assert not is_orphaned()
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert is_orphaned() == expected


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.skipif(torch.__version__ < "2.8", reason="destroying a gloo group may block, see destroy_at_exit")
def test_threads_of_the_process_group_end_before_the_interpreter(tmp_path: Path) -> None:
    program = PROGRAMS / "process_group_in_a_cycle.py"
    result = subprocess.run(
        [sys.executable, program, tmp_path / "rendezvous"], capture_output=True, text=True, check=True
    )
    before, after = map(int, result.stdout.split())
    assert before > 0
    assert after == 0
