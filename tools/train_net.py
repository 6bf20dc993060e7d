"""Training command with the arguments of the original FCOS code.

python -m torch.distributed.launch --nproc_per_node=8 --master_port=29501 tools/train_net.py \\
    --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml DATALOADER.NUM_WORKERS 2 OUTPUT_DIR training_dir/imprv_R_50
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from fcos.cli import main
from fcos.recipes import load_config
from fcos.terminal import report_user_errors
from fcos.training.folder import holds_run

parser = argparse.ArgumentParser(description="Train a detector from a config of the original FCOS.")
parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML with the original's keys")
parser.add_argument("--skip-test", action="store_true", help="skip DATASETS.TEST: no evaluation")
parser.add_argument(
    "--local_rank", "--local-rank", type=int, help="set by the launcher; ignored: LOCAL_RANK holds the same value"
)
parser.add_argument(
    "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options that override those of the file"
)

if __name__ == "__main__":
    arguments = parser.parse_args()
    data_option = next((word for word in arguments.opts if word.startswith(("data=", "data.root=", "data.val."))), None)
    if arguments.skip_test and data_option:
        parser.error(
            f"--skip-test skips DATASETS.TEST, but {data_option} adds a val split; give only"
            " data.train.annotations=FILE data.train.images=DIR"
        )
    words = [*arguments.opts, *(["DATASETS.TEST", "()"] if arguments.skip_test else [])]
    logging.getLogger("fcos").setLevel(logging.ERROR)  # `main` loads the config again and repeats the warnings
    with report_user_errors():
        config = load_config(arguments.config_file, words)
    if holds_run(config, Path(arguments.config_file).stem):  # the original always resumes
        words.append("train.resume=true")
    main(["train", arguments.config_file, "--", *words])
