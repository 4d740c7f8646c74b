"""The `shardstore` command: people and scripts at a store, with nothing but the public API beneath.

    app       the group of commands, the choice of the store, every exit code
    output    what is printed: tables, JSON, progress bars, and the escaping of what others wrote
    writing   import, append, archive, delete
    reading   ls, show, cat, tail
    exporting export
    viewing   view
    mounting  mount, unmount
    documents the shapes of --json
    findings  what verify and repair have to say, in lines
    upkeep    compact, verify, backup
    trial     demo

Rule: payload bytes reach stdout as they were appended; everything else that others chose (ids, sources, keys) is
escaped before it reaches a terminal. Errors go to stderr as `shardstore: message`; a traceback is a bug.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code.

    The commands are imported here and not above: every process that the demo spawns imports this package once more
    and has no use for them.
    """
    from shardstore.cli.app import run

    raise SystemExit(run())
