"""What became of a run, on one page: `fcos report`."""
