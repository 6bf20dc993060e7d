"""The only place that knows other projects: their configs, weight names and conventions."""

from typing import Literal

Form = Literal["fcos", "fcos_core", "torchvision"]
"""Whose weights files can be written."""
