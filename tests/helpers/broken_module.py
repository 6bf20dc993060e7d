"""User module that raises an error on import."""

RATIO = 1 / 0
