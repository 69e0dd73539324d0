"""Figures of this machine, as ratios within one run: ``make bench``, or ``python -m benchmarks.bench_x``."""
