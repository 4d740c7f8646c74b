"""`python -m shardstore`: the same program as the `shardstore` command.

The guard matters: the demo's processes are spawned, and a spawned process imports its parent's main module again.
"""

from shardstore.cli import main

if __name__ == "__main__":
    main()
