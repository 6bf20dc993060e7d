"""Send signals to all processes of the group while a loader with a worker runs, and go on after each.

Usage: interrupted_loader.py DATA SIGNAL ..., in a session of its own.
"""

import multiprocessing
import os
import signal
import sys
from itertools import islice

from fcos.config import Config
from fcos.data import build_train_loader, load_annotations

if __name__ == "__main__":  # not in a function: the worker ends with the process, as that of an interrupted run
    multiprocessing.set_start_method("spawn")
    options = {"root": sys.argv[1], "workers": 1, "short_side": 32, "max_side": 64}
    config = Config.model_validate({"data": options, "train": {"batch_size": 2}})
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    batches = iter(build_train_loader(config, annotations))
    next(batches)
    for name in sys.argv[2:]:
        number = signal.Signals[name]
        signal.signal(number, lambda *_: None)
        os.killpg(0, number)
        print(f"{name}: {len(list(islice(batches, 5)))} batches")
