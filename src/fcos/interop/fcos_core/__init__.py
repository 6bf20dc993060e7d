"""The original FCOS: its weight names, its YAML, and the keys of its config."""
