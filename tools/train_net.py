"""Training command with the arguments of the original FCOS code.

python -m torch.distributed.launch --nproc_per_node=8 --master_port=29501 tools/train_net.py \\
    --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml DATALOADER.NUM_WORKERS 2 OUTPUT_DIR training_dir/imprv_R_50
"""

from __future__ import annotations

import argparse

from fcos.cli import main

parser = argparse.ArgumentParser(description="Train a detector from a config of the original FCOS.")
parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML with the original's keys")
parser.add_argument("--skip-test", action="store_true", help="leave DATASETS.TEST out: no evaluation")
parser.add_argument("--local_rank", "--local-rank", type=int, help="given by the launcher; its variables say the same")
parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options that replace the file's")

if __name__ == "__main__":
    given = parser.parse_args()
    own_data = next((word for word in given.opts if word.startswith(("data=", "data.root=", "data.val."))), None)
    if given.skip_test and own_data:
        parser.error(
            f"--skip-test leaves DATASETS.TEST out, but {own_data} brings a val split; give data.train.annotations=FILE"
            " data.train.images=DIR alone"
        )
    without_test = ["DATASETS.TEST", "()"] if given.skip_test else []
    main(["train", given.config_file, "--", *given.opts, *without_test])
