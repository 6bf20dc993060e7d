"""Use the detector `grid`, which has been added to the package, through all verbs.

Usage: second_detector.py FOLDER; what the verbs print, after a line `== NAME` for each call, and their exit codes.
"""

import sys
from pathlib import Path

import yaml
from tiny_data import coco_tree, write_coco

from fcos.cli import main as fcos

MODEL = {"name": "grid", "backbone": {"name": "mobilenet_v2", "weights": None, "norm": "bn", "frozen_stages": 0}}
DATA = {"short_side": [64], "workers": 0, "flip": 0.0}
TRAIN = {"iterations": 4, "batch_size": 2, "log_every": 1, "lr": 0.002, "warmup": "none", "eval_every": 2}


def call(name: str, *words: str | Path) -> None:
    print(f"== {name}", flush=True)
    try:
        fcos(list(map(str, words)))
    except SystemExit as end:
        print(f"exit {end.code or 0}", flush=True)


def main(folder: Path) -> None:
    data = write_coco(folder / "data")
    write_coco(data, split="val")
    other = coco_tree()
    other["categories"][0]["name"] = "bird"
    write_coco(folder / "other", other)
    recipe = folder / "grid.yaml"
    recipe.write_text(yaml.safe_dump({"model": MODEL, "data": DATA, "train": TRAIN, "device": "cpu"}))
    run, picture = folder / "run", data / "images" / "a.png"
    best, last = (run / "weights" / name for name in ("best.pt", "last.pt"))

    call("doctor", "doctor", recipe, f"data={data}", "--out", folder / "doctor")
    call("train", "train", recipe, f"data={data}", f"output_dir={run}")
    call("resume", "train", run / "config.yaml", "train.resume=true", "train.iterations=6")
    call("val", "val", best)
    call("flip", "val", best, "eval.flip=true", "--out", folder / "flip")
    call("report", "report", run)
    call("predict", "predict", best, picture, "--out", folder / "pictures", "--json", "model.score_threshold=0.001")
    call("random weights", "predict", recipe, picture, "--out", folder / "random")
    call("convert", "convert", best, folder / "copy.pt")
    call("torchvision", "convert", best, folder / "tv.pt", "--to", "torchvision")
    call("original", "convert", best, folder / "original.pt", "--to", "fcos_core")
    tune = ["train", recipe, f"data={folder / 'other'}", f"train.weights={best}", "train.iterations=1"]
    call("other classes", *tune, "train.micro_batch=1", f"output_dir={folder / 'tuned'}")
    call("grid into fcos", "train", "fcos_mnv2_small", f"data={data}", f"train.weights={best}")
    call("config of fcos", "val", best, "--config", "fcos_mnv2_small", f"data={data}")
    call("not finite", "train", recipe, f"data={data}", "train.lr=1e30", f"output_dir={folder / 'broken'}")
    call("wrong option", "train", recipe, "model.head.num_convs=1")
    call("last", "val", last, "--split", "train")
    call("show", "config", "show", recipe)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
