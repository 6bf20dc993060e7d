"""Evaluation command with the arguments of the original FCOS code.

python tools/test_net.py --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml \\
    MODEL.WEIGHT FCOS_imprv_R_50_FPN_1x.pth TEST.IMS_PER_BATCH 4
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from fcos.cli import main
from fcos.errors import WeightsError
from fcos.interop.fcos_core.config import given_keys, split_pairs
from fcos.recipes import load_config, read_config_tree
from fcos.terminal import report_user_errors

parser = argparse.ArgumentParser(description="Evaluate weights with a config of the original FCOS.")
parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML with the original's keys")
parser.add_argument(
    "--local_rank", "--local-rank", type=int, help="set by the launcher; ignored: LOCAL_RANK holds the same value"
)
parser.add_argument(
    "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options that override those of the file"
)

if __name__ == "__main__":
    arguments = parser.parse_args()
    logging.getLogger("fcos").setLevel(logging.ERROR)  # `main` loads the config again and repeats the warnings
    with report_user_errors():
        config = load_config(arguments.config_file, arguments.opts)
        weights, folder = config.train.weights, config.output_dir
        if weights is None:
            raise WeightsError(f"{arguments.config_file}: no detector weights; set MODEL.WEIGHT FILE")
        pairs, options = split_pairs(arguments.opts)
        names = given_keys(read_config_tree(arguments.config_file), pairs).get("DATASETS.TEST", ())
    command = ["val", weights, "--config", arguments.config_file]
    if len(names) < 2 or any(option.startswith(("data=", "data.root=", "data.val.")) for option in options):
        out = ["--out", str(folder / "val")] if folder else []
        main([*command, *out, "--", *arguments.opts])
        names = ()
    for name in names:
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}:")
        out = ["--out", str((folder or Path()) / "val" / name)]
        try:
            main([*command, *out, "--", *arguments.opts, "DATASETS.TEST", f"({name!r},)"])
        except SystemExit as end:  # every command ends with it
            if end.code:
                raise
