"""Evaluation of detectors on annotated images."""
