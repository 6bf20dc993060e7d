"""Conversion from and to other projects: the only package with their configs, weight names and conventions."""

from typing import get_args

from ..choices import Form

FORMS: tuple[Form, ...] = get_args(Form)
