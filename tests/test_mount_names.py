"""Names: which session a file name shows, for every mount of a store, and after a crash at any call."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import together
from mount_model import Killed, errno_of, mortal

import shardstore
from shardstore.mount.handles import Sessions
from shardstore.mount.names import could_be_session, is_session_target

RDWR = os.O_RDWR


@pytest.fixture
def store(store_path: str) -> shardstore.Store:
    """Return a store of unsynced sessions."""
    return shardstore.open(store_path, durability="none", compact_shards=None)


def tree(sessions: Sessions, folder: str = "") -> dict[str, bytes]:
    """Return every file that sessions are shown as, with its content."""
    files, folders = sessions.listing(folder)
    found = {}
    for name in (f"{folder}/{file}".lstrip("/") for file in files):
        file = sessions.open(name, os.O_RDONLY, 10_000_000)
        found[name] = file.read(1 << 20, 0)
        file.release()
    for inner in folders:
        found |= tree(sessions, f"{folder}/{inner}".lstrip("/"))
    return found


def test_which_names_are_sessions() -> None:
    """Transcripts are; trajectories, locks, hidden files and what can't be an id are not; archives by renaming."""
    sessions = ["x.jsonl", "a/b/x.jsonl", "x~2.jsonl", "telegram:42.jsonl", "a b.jsonl"]
    plain = ["x.json", ".jsonl", ".x.jsonl", "a/.x.jsonl", "x.trajectory.jsonl", "x.jsonl.lock", "x", "a.jsonl/x.jsonl"]
    plain += [".real/x.jsonl", "x.jsonl.", "a//x.jsonl", "\udcff.jsonl", ""]
    assert [could_be_session(name) for name in sessions + plain] == [True] * len(sessions) + [False] * len(plain)
    targets = ["x.jsonl.reset.1", "a/x.jsonl.deleted.2026-11-21T10", "x.jsonl.bak", *sessions]
    strangers = ["x.txt", "x.jsonl.", ".x.jsonl.bak", "x.trajectory.jsonl.bak", "jsonl.bak", "x.trajectory.jsonl"]
    assert [is_session_target(name) for name in targets + strangers] == [True] * len(targets) + [False] * len(strangers)


def test_sessions_are_shown_as_their_ids_unless_archived_or_deleted(store: shardstore.Store) -> None:
    """An id's slashes are folders; archived and deleted sessions and the mount's own are not shown."""
    for id_ in ("x", "a/b/y", "a/z", "archived", "deleted", "x.trajectory", ".hidden"):
        store.session(id_).append(id_.encode() + b"\n")
    store.session("archived").archive()
    store.session("deleted").delete()
    sessions = Sessions(store)
    assert tree(sessions) == {"x.jsonl": b"x\n", "a/b/y.jsonl": b"a/b/y\n", "a/z.jsonl": b"a/z\n"}
    assert sessions.listing("a") == (["z.jsonl"], ["b"])
    assert [sessions.has_folder(folder) for folder in ("", "a", "a/b", "b", "x", "z")] == [True] * 3 + [False] * 3
    sessions.unlink("a/b/y.jsonl")
    assert [sessions.has_folder(folder) for folder in ("a", "a/b")] == [True, False]
    sessions.create("z/z.jsonl", RDWR, 1).release()
    store.session("b/c/d").append(b"1\n")
    assert [sessions.has_folder(folder) for folder in ("b", "b/c", "z", "b/c/d")] == [True, True, True, False]
    for name in ("archived.jsonl", "deleted.jsonl", "shardstore-mount.jsonl", "none.jsonl"):
        assert sessions.resolve(name) is None
        assert sessions.facts(name) is None


def test_a_prefix_shows_its_sessions_without_it(store: shardstore.Store) -> None:
    """With a prefix, only the sessions below it are shown, and what is created lies below it."""
    store.session("p/x").append(b"x\n")
    store.session("px").append(b"no\n")
    sessions = Sessions(store, prefix="p")
    sessions.create("n/y.jsonl", RDWR, 1).release()
    sessions.rename("x.jsonl", "z.jsonl")
    assert tree(sessions) == {"z.jsonl": b"x\n", "n/y.jsonl": b""}
    assert tree(Sessions(store)) == {"p/z.jsonl": b"x\n", "p/n/y.jsonl": b"", "px.jsonl": b"no\n"}


def test_a_name_whose_id_is_spent_gets_the_next_one(store: shardstore.Store) -> None:
    """Unlinking archives; the same name made anew is another session, and the old one stays hidden."""
    sessions = Sessions(store)
    ids = []
    for n in range(4):
        file = sessions.create("x.jsonl", RDWR, 1)
        ids.append(file.id)
        file.write(b"%d\n" % n, 0)
        file.release()
        assert tree(Sessions(store)) == {"x.jsonl": b"%d\n" % n}
        sessions.unlink("x.jsonl")
        assert tree(sessions) == {}
    assert ids == ["x", "x~2", "x~3", "x~4"]
    assert [info.id for info in store.sessions()] == []
    assert store.session("x~3").read_jsonl() == b"2\n"


def test_purging_deletes(store: shardstore.Store) -> None:
    """With purge, what is unlinked or renamed over is gone for good; otherwise it is kept."""
    sessions = Sessions(store, purge=True)
    for name in ("x", "y", "z"):
        store.session(name).append(b"%s\n" % name.encode())
    sessions.unlink("x.jsonl")
    sessions.rename("y.jsonl", "z.jsonl")
    states = {info.id: info.state for info in store.sessions(archived=True, deleted=True)}
    assert states == {"shardstore-mount": "open", "x": "deleted", "y": "open", "z": "deleted"}
    assert tree(sessions) == {"z.jsonl": b"y\n"}


def test_renaming(store: shardstore.Store) -> None:
    """The session goes along with its name; what it replaces is archived; `.reset` archives, and back again."""
    sessions, other = Sessions(store), Sessions(store)
    store.session("x").append(b"x\n")
    store.session("y").append(b"y\n")
    sessions.rename("x.jsonl", "a/new.jsonl")
    assert tree(other) == {"a/new.jsonl": b"x\n", "y.jsonl": b"y\n"}
    other.rename("y.jsonl", "a/new.jsonl")
    assert tree(sessions) == {"a/new.jsonl": b"y\n"}
    assert store.session("x").info().archived
    sessions.rename("a/new.jsonl", "a/new.jsonl.reset.7")
    assert tree(other) == {"a/new.jsonl.reset.7": b"y\n"}
    assert store.session("y").info().archived
    assert other.create("y.jsonl", RDWR, 1).id == "y~2"
    other.rename("a/new.jsonl.reset.7", "y.jsonl")
    assert tree(sessions) == {"y.jsonl": b"y\n"}
    assert [info.id for info in store.sessions()] == ["y"]
    other.rename("y.jsonl", "y.jsonl")
    assert tree(sessions) == {"y.jsonl": b"y\n"}


def test_a_session_that_lost_its_second_name_does_not_come_back_under_its_id(store: shardstore.Store) -> None:
    """A session `x~2` that was shown as x.jsonl is not shown as x~2.jsonl once another has its name."""
    sessions = Sessions(store)
    sessions.create("x.jsonl", RDWR, 1).release()
    sessions.unlink("x.jsonl")
    assert sessions.create("x.jsonl", RDWR, 1).id == "x~2"
    store.session("y").append(b"y\n")
    sessions.rename("y.jsonl", "x.jsonl")
    store.session("x~2").unarchive()
    assert tree(sessions) == {"x.jsonl": b"y\n"}


def test_a_plain_file_over_a_name_that_shows_nothing_makes_a_session(store: shardstore.Store) -> None:
    """A temporary file that is renamed to a new name becomes a session with that content, in one record."""
    sessions = Sessions(store)
    sessions.replace("n.jsonl", io.BytesIO(b"a\nb\n"), None, 1)
    assert [record.payload for record in store.session("n").records()] == [b"a\nb\n"]


def test_names_that_are_too_long_are_refused(store: shardstore.Store) -> None:
    """A name whose id can't be stored is refused as a file system refuses it."""
    assert errno_of(lambda: Sessions(store).create("Ж" * 60 + ".jsonl", RDWR, 1)) == errno.ENAMETOOLONG


def test_a_damaged_session_is_listed_and_refused(store: shardstore.Store) -> None:
    """A session whose manifest can't be read hides no other one, and opening it says EIO."""
    store.session("x").append(b"x\n")
    store.session("y").append(b"y\n")
    manifest = Path(store.path, "sessions", "y", "manifest.json")
    manifest.unlink()
    manifest.write_bytes(b"junk")
    sessions = Sessions(store)
    assert sessions.listing("") == (["x.jsonl", "y.jsonl"], [])
    assert errno_of(lambda: sessions.open("y.jsonl", RDWR, 1)) == errno.EIO


def test_creators_of_one_name_agree(store: shardstore.Store) -> None:
    """Mounts that create one name at once have the same session, made by one of them, be its id spent or not."""
    for number in range(1, 12):
        mounts = [Sessions(shardstore.open(store.path, durability="none")) for _ in range(6)]
        answers = together([lambda m=m: m.names.create("x.jsonl") for m in mounts])
        assert {id_ for id_, _ in answers} == {f"x~{number}" if number > 1 else "x"}
        assert sum(made for _, made in answers) == 1
        mounts[0].unlink("x.jsonl")


def test_renames_from_many_mounts_keep_every_session(store: shardstore.Store) -> None:
    """Sessions that several mounts rename at random end under one name each, and all mounts see the same."""
    mounts = [Sessions(shardstore.open(store.path, durability="none")) for _ in range(4)]
    for n in range(4):
        store.session(f"s{n}").append(b"%d\n" % n)

    def rename(worker: int) -> None:
        for n in range(12):
            mounts[worker].rename(f"s{worker}.jsonl" if not n else f"w{worker}-{n - 1}.jsonl", f"w{worker}-{n}.jsonl")

    together([lambda w=w: rename(w) for w in range(4)])
    assert [tree(mount) for mount in mounts] == [{f"w{n}-11.jsonl": b"%d\n" % n for n in range(4)}] * 4


Change = Callable[[Sessions], object]
CHANGES: dict[str, tuple[Change, dict[str, bytes]]] = {
    "rename": (lambda s: s.rename("x.jsonl", "n.jsonl"), {"n.jsonl": b"x\n", "y.jsonl": b"y\n"}),
    "rename over": (lambda s: s.rename("x.jsonl", "y.jsonl"), {"y.jsonl": b"x\n"}),
    "rename over a second session": (lambda s: s.rename("y.jsonl", "x.jsonl"), {"x.jsonl": b"y\n"}),
    "reset": (lambda s: s.rename("x.jsonl", "x.jsonl.reset.1"), {"x.jsonl.reset.1": b"x\n", "y.jsonl": b"y\n"}),
    "unlink": (lambda s: s.unlink("x.jsonl"), {"y.jsonl": b"y\n"}),
    "create": (lambda s: s.create("z.jsonl", RDWR, 1), {"x.jsonl": b"x\n", "y.jsonl": b"y\n", "z.jsonl": b""}),
    "replace": (
        lambda s: s.replace("y.jsonl", io.BytesIO(b"new\n"), None, 1),
        {"x.jsonl": b"x\n", "y.jsonl": b"new\n"},
    ),
    "replace nothing": (
        lambda s: s.replace("z.jsonl", io.BytesIO(b"new\n"), None, 1),
        {"x.jsonl": b"x\n", "y.jsonl": b"y\n", "z.jsonl": b"new\n"},
    ),
    "truncate": (lambda s: s.truncate("y.jsonl", 0, 1), {"x.jsonl": b"x\n", "y.jsonl": b""}),
}


def scene(path: str, *, purge: bool) -> None:
    """Make a store whose x.jsonl is the session x~2 and whose z.jsonl was unlinked."""
    with shardstore.open(path, durability="none", compact_shards=None) as store:
        sessions = Sessions(store, purge=purge)
        for name in ("x.jsonl", "z.jsonl"):
            sessions.create(name, RDWR, 1).release()
            sessions.unlink(name)
        for name in ("x", "y"):
            file = sessions.create(f"{name}.jsonl", RDWR, 1)
            file.write(b"%s\n" % name.encode(), 0)
            file.release()


@pytest.mark.parametrize("purge", [False, True])
@pytest.mark.parametrize("what", CHANGES)
def test_killed_at_any_call_a_change_happened_or_did_not(tmp_path: Path, what: str, purge: bool) -> None:
    """Whatever call is the last of a mount, before or after it took effect, the next mount shows before or after."""
    change, after = CHANGES[what]
    before = {"x.jsonl": b"x\n", "y.jsonl": b"y\n"}
    outcomes, ended = [], False
    for fatal in range(1, 400):
        for early in (True, False):
            path = str(tmp_path / f"{fatal}-{early}")
            scene(path, purge=purge)
            try:
                change(Sessions(mortal(shardstore.open(path, compact_shards=None), fatal, before=early), purge=purge))
                ended = True
            except Killed:
                pass
            with shardstore.open(path, create=False) as store:
                shown = tree(Sessions(store))
                assert shown in (before, after), (what, fatal, early)
                outcomes.append(shown == after)
                assert not [finding for finding in store.verify() if finding.severity == "damage"]
        if ended:
            break
    assert ended
    assert outcomes[0] is False
    assert outcomes[-1] is True
