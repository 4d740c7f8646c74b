"""Commands that show a store as a folder of `.jsonl` files to programs that know nothing of it: mount, unmount."""

from __future__ import annotations

import os
from importlib import import_module

import click

import shardstore
from shardstore.cli.app import Settings, open_store, pass_settings
from shardstore.cli.output import note, visible
from shardstore.linear import Linear

__all__ = ["COMMANDS"]


@click.command("mount", short_help="Show the sessions as .jsonl files.")
@click.argument("places", metavar="[STORE] DIR", nargs=-1, required=True, type=click.Path())
@click.option("--prefix", metavar="P", default="", help="Show only sessions whose ids begin with P/, without it.")
@click.option("--files", metavar="FOLDER", type=click.Path(file_okay=False),
              help="Keep every file that is no session in FOLDER.  [default: DIR, beneath the mount]")  # fmt: skip
@click.option("--real", is_flag=True, help="True sizes and times in DIR too, for gateways without a fence.")
@click.option("--purge", is_flag=True, help="Delete a session for good when its file is removed; else it is archived.")
@click.option("--linearize", is_flag=True, help="Show entries that were written at once one after the other.")
@click.option("--durability", type=click.Choice(["sync", "none"]), default="sync", show_default=True,
              help="Of sessions that are born through the mount.")  # fmt: skip
@click.option("--background", is_flag=True, help="Return once the mount answers.")
@pass_settings
def mount(
    settings: Settings,
    places: tuple[str, ...],
    prefix: str,
    files: str | None,
    real: bool,
    purge: bool,
    linearize: bool,
    durability: shardstore.Durability,
    background: bool,
) -> None:
    """Show every session as DIR/<id>.jsonl to programs that know nothing of shardstore.

    They read, append, create, rename, replace and remove these files as ever. Each whole line that is appended is
    committed when the write returns. A program that rewrites a file does not cost what others appended since it last
    looked, and the log keeps what it replaced. Every other file in DIR is an ordinary one.

    In DIR a session's size and times stay the same when something is appended, so that a check for foreign changes
    finds none: the size shown is just above 64 MiB, and doubles once the content passes half of it. DIR/.real/
    (listings leave it out) is the same folder with true sizes and times: for cp, rsync, tail, wc -c.

    With --linearize an entry whose writer had not read the one before it, and answers an older one (`parentId`), is
    shown as the answer to that; a second header line is left out, and so is an entry that was written twice. The log
    keeps what was written.

    It serves until Ctrl-C, SIGTERM or `shardstore unmount DIR`. The store is made where it is missing. This needs
    Linux, pip install 'shardstore[mount]' and, on Debian, apt install fuse3.

    \b
    Examples:  shardstore mount ~/.shardstore ~/.openclaw/agents/main/sessions --background
               shardstore mount --prefix main DIR
    """
    if len(places) > 2:
        raise click.UsageError(f"one store and one folder, please; these are {len(places)}")
    serve = import_module("shardstore.mount.serve")
    chosen = Settings(store_path=os.path.expanduser(places[0]) if len(places) == 2 else settings.store_path)
    place = serve.prepare(chosen.store_path, places[-1], files)
    ready = serve.detach() if background else lambda: note(f"{visible(place.folder)}: mounted; Ctrl-C unmounts")
    if isinstance(ready, int):
        click.get_current_context().exit(ready)
    with open_store(chosen, create=True, durability=durability) as store:
        serve.mount(
            store, place, prefix=prefix, real=real, purge=purge, shape=Linear if linearize else None, ready=ready
        )


@click.command("unmount", short_help="Take a mounted folder away again.")
@click.argument("folder", metavar="DIR", type=click.Path())
def unmount(folder: str) -> None:
    """Take the folder away that `shardstore mount` shows a store in.

    Everything that programs wrote and closed is committed already. While programs have files open in it, it stays.

    \b
    Example:  shardstore unmount ~/.openclaw/agents/main/sessions
    """
    import_module("shardstore.mount.serve").unmount(folder)


COMMANDS = [mount, unmount]
