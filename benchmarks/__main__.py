"""`python -m benchmarks`: shardstore beside what a user would pick instead."""

from __future__ import annotations

from benchmarks.cli import main

if __name__ == "__main__":
    main()
