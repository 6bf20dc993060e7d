"""Train, evaluate, stop and resume: a process of several is asked to stop in the third step, then in an evaluation.

Usage: stopped_processes.py CONFIG, with `output_dir` in the folder of CONFIG. This folder gets the stopped weights,
`stopped.pt`, and the results of all processes, `results.json`. The output of the resumed training follows "resumed".
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hooks import at_call, before_forward

import fcos
from fcos.distributed import all_gather, broadcast_buffers, rank
from fcos.models.fcos import FCOS

ASKED = 1
"""The process that is asked."""


def stop_training(_: FCOS) -> None:
    if int(os.environ["RANK"]) == ASKED:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_evaluation(_done: int, _total: int) -> None:
    if rank() == ASKED:
        raise KeyboardInterrupt


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except KeyboardInterrupt:
        return "stopped"


def main(file: Path) -> None:
    run = Path(fcos.load_config(file).output_dir or "")
    weights = run / "weights/last.pt"
    with before_forward(FCOS, at_call(3, stop_training)):
        found = {"training": outcome(fcos.train, file)}
    found["detections"] = fcos.evaluate(weights).detections
    found["evaluation"] = outcome(fcos.evaluate, weights, progress=stop_evaluation)
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean = torch.full((2,), 5.0 + rank())
    broadcast_buffers(norm)
    found["mean"] = norm.running_mean.tolist()
    every = all_gather(found)
    if rank() == 0:
        (file.parent / "results.json").write_text(json.dumps(every))
        shutil.copy(weights, file.parent / "stopped.pt")
        print("resumed")
    fcos.train(run / "config.yaml", "train.resume=true")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
