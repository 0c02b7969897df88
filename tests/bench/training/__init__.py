"""What `make bench-train` measures, a file for each kind of figure."""
