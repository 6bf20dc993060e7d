"""The original's evaluation command, by its own words.

python tools/test_net.py --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml \\
    MODEL.WEIGHT FCOS_imprv_R_50_FPN_1x.pth TEST.IMS_PER_BATCH 4
"""

from __future__ import annotations

import argparse

from fcos.cli import main

parser = argparse.ArgumentParser(description="Evaluate weights with a config of the original FCOS.")
parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML with the original's keys, or a recipe")
parser.add_argument("--local_rank", "--local-rank", type=int, help="given by the launcher; its variables say the same")
parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options that replace the file's")

if __name__ == "__main__":
    given = parser.parse_args()
    weights = dict(zip(given.opts, given.opts[1:], strict=False)).get("MODEL.WEIGHT")
    if weights is None:
        parser.error("MODEL.WEIGHT FILE is missing: the weights to evaluate")
    main(["val", weights, "--config", given.config_file, "--", *given.opts])
