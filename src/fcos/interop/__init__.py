"""The only place that knows other projects: their configs, weight names and conventions."""

from typing import Literal, get_args

Form = Literal["fcos", "fcos_core", "torchvision"]
"""Whose weights files can be written."""
FORMS: tuple[Form, ...] = get_args(Form)
