"""Compute the losses of one process of two, and their gradients.

Usage: loss_process.py FOLDER RANK, where FOLDER holds the arguments `RANK.pt` and gets the results `RANK.out.pt`; see
`loss_processes`.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fcos.models.losses import FCOSLoss, fcos_loss
from fcos.models.points import Assignment
from fcos.training.elastic import destroy_at_exit


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    given = torch.load(folder / f"{rank}.pt")
    logits, ltrb, quality = predictions = [tensor.requires_grad_() for tensor in given["predictions"]]
    assignment, options = Assignment(*given["assignment"]), FCOSLoss(**given["options"])
    terms = fcos_loss(logits, ltrb, quality, assignment, options, units=given["units"])
    torch.autograd.backward(list(terms.values()))
    found = {name: term.detach() for name, term in terms.items()}
    torch.save({"terms": found, "gradients": [tensor.grad for tensor in predictions]}, folder / f"{rank}.out.pt")
    destroy_at_exit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
