"""Measurements of shardstore against what it should be no slower than; `python -m benchmarks.bars` runs the bars."""
