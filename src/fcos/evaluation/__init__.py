"""How good a detector is on annotated images."""
