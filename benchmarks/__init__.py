"""Ratios against named baselines, each pair timed in one process: `python -m benchmarks` runs all, or those named."""
