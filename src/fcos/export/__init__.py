"""Export of detectors to files for other runtimes, with a proof that they detect what PyTorch detects."""
