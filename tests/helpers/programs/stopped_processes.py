"""Train, evaluate, and stop: a process of several is asked to stop in the third step, then in an evaluation.

Usage: stopped_processes.py WEIGHTS RESULTS OPTIONS..., where OPTIONS are those of `fcos.train`, WEIGHTS is the file
that this training leaves, and RESULTS a JSON file for the results of all processes.
"""

import json
import os
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


def main(weights: str, results: Path, *options: str) -> None:
    with before_forward(FCOS, at_call(3, stop_training)):
        found = {"training": outcome(fcos.train, *options)}
    found["detections"] = fcos.evaluate(weights).detections
    found["evaluation"] = outcome(fcos.evaluate, weights, progress=stop_evaluation)
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean = torch.full((2,), 5.0 + rank())
    broadcast_buffers(norm)
    found["mean"] = norm.running_mean.tolist()
    every = all_gather(found)
    if rank() == 0:
        results.write_text(json.dumps(every))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
