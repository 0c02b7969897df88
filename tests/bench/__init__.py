"""Benchmarks: speed and memory against peers in the same run, as ratios. `make bench-data` runs `tests.bench.data`."""
