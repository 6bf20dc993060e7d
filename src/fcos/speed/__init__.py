"""Measurement of the speed of detection: `pipeline` times one batch by part, `measure` several variants in turns."""
