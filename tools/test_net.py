"""Evaluation command with the arguments of the original FCOS code.

python tools/test_net.py --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml \\
    MODEL.WEIGHT FCOS_imprv_R_50_FPN_1x.pth TEST.IMS_PER_BATCH 4
"""

from __future__ import annotations

import argparse
import logging

from fcos.cli import main, mistakes_told
from fcos.errors import WeightsError
from fcos.recipes import load_config

parser = argparse.ArgumentParser(description="Evaluate weights with a config of the original FCOS.")
parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML with the original's keys")
parser.add_argument("--local_rank", "--local-rank", type=int, help="given by the launcher; its variables say the same")
parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options that replace the file's")

if __name__ == "__main__":
    given = parser.parse_args()
    logging.getLogger("fcos").setLevel(logging.ERROR)  # `main` loads the config again and repeats the warnings
    with mistakes_told():
        config = load_config(given.config_file, given.opts)
        weights, folder = config.train.weights, config.output_dir
        if weights is None:
            raise WeightsError(f"{given.config_file}: names no weights of a detector; give MODEL.WEIGHT FILE")
    out = ["--out", str(folder / "val")] if folder else []
    main(["val", weights, "--config", given.config_file, *out, "--", *given.opts])
