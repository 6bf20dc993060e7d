"""Draw a chart, and check that the settings of matplotlib are as before and that pyplot was not imported."""

import sys

import matplotlib as mpl

from fcos.html_page import Chart, Page


def settings() -> dict:
    return {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}


if __name__ == "__main__":
    before = settings()
    Page("p").section("s").charts([Chart("c", lambda axes: axes.plot([1, 2]))])
    assert settings() == before
    assert "matplotlib.pyplot" not in sys.modules
