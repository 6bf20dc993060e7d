"""The only place that knows other projects: their configs, weight names and conventions."""

from typing import get_args

from ..choices import Form

FORMS: tuple[Form, ...] = get_args(Form)
