"""`python -m fcos` is the command `fcos` (torchrun needs this form)."""

from .cli import main

main()
