"""The parts of `make bench-eval`."""
