"""HTML report of a training run: `fcos report`."""
