"""Benchmarks that compare the library with the driver alone in one run. Compare ratios: times depend on the machine."""
