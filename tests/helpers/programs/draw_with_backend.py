"""Draw a chart and a class name, and print the backend that matplotlib has afterwards."""

import os

import torch

from fcos import Instances, draw
from fcos.html_page import Chart, Page

if __name__ == "__main__":
    environment = dict(os.environ)
    Page("p").section("s").charts([Chart("c", lambda axes: axes.plot([1, 2]))])
    box = Instances(torch.tensor([[1.0, 1, 30, 30]]), torch.tensor([0]), torch.tensor([0.9]), (40, 40), ("cat",))
    draw(torch.zeros(3, 40, 40, dtype=torch.uint8), box)
    assert dict(os.environ) == environment

    import matplotlib as mpl

    print(mpl.rcParams["backend"])
