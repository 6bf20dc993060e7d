"""A module of the user's that fails when it is imported."""

RATIO = 1 / 0
