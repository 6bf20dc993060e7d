"""Entry point of `python -m fcos`, the same as the command `fcos` (torchrun needs this form)."""

from .cli import main

main()
