"""Networks whose features the figures are computed on: the dataset's own, or one from a file."""
