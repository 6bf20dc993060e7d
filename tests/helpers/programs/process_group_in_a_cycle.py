"""Exit with a process group that a reference cycle keeps alive, and print how many gloo threads are left.

Usage: process_group_in_a_cycle.py RENDEZVOUS_FILE.
"""

import atexit
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fcos.training.elastic import destroy_at_exit


def print_gloo_threads() -> None:
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    print(sum("gloo" in name for name in names))


def main(rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    dist.barrier()  # its thread has its name now
    print_gloo_threads()
    atexit.register(print_gloo_threads)  # runs last: the functions are called in reverse order
    destroy_at_exit()
    cycle: list[Any] = [dist.group.WORLD]
    cycle.append(cycle)


if __name__ == "__main__":
    main(sys.argv[1])
