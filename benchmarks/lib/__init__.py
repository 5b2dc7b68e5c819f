"""What the benchmarks share; `make bench` runs the scripts one folder up."""
