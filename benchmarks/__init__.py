"""Measurements that the README reports: `python -m benchmarks.<name>` runs one and writes results/<name>.json."""
