"""Real limits: full disks, read-only mounts, missing permissions, file sizes, exhausted descriptors.

Each is brought about for real; where this machine does not allow it, the test says so and is skipped.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mishaps import ID, as_nobody, build, damages, folder, fresh, mounted, needs_root, python, segments, shard, tree

import shardstore
from shardstore import Record, ShardstoreError, Store, Unavailable

NOBODY = 65534


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a folder that any user can reach."""
    path = Path(tempfile.mkdtemp(prefix="shardstore-test-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False)
    shutil.rmtree(path)


def refused(call: Callable[[], object], *codes: int) -> None:
    """The call must raise Unavailable with one of these errnos."""
    with pytest.raises(Unavailable) as caught:
        call()
    assert caught.value.errno in codes, caught.value


# ------------------------------------------------------------------ full disks


@needs_root
def test_full_disk(tmp_path: Path) -> None:
    """ENOSPC: appends, births and compactions say so, all that was acknowledged reads back, and space cures it."""
    with mounted("tmpfs", "", tmp_path / "small", "size=1m") as place:
        store, session = fresh(place / "store")
        ballast = place / "ballast"
        ballast.write_bytes(b"b" * 100_000)
        acknowledged = []
        code = None
        while code is None:
            payload = b"%04d " % len(acknowledged) + b"x" * 8_000
            try:
                session.append(payload)
            except Unavailable as error:
                code = error.errno
            else:
                acknowledged.append(payload)
        assert code == errno.ENOSPC
        for _ in range(5):
            refused(session.compact, errno.ENOSPC)
            refused(lambda: store.session("new").append(b"y" * 8_000), errno.ENOSPC)
            refused(lambda: store.import_session("imported", [b"z" * 300_000]), errno.ENOSPC)
        assert [record.payload for record in fresh(place / "store")[1].records()] == acknowledged
        assert damages(store.verify()) == []
        ballast.unlink()
        assert session.append(b"fits again\n").seq == len(acknowledged) + 1
        assert damages(store.verify()) == []
        assert list(folder(place / "store").glob("segments/*")) == [], "attempts leave nothing behind"


@needs_root
def test_disk_too_full_to_merge(tmp_path: Path) -> None:
    """Where the room suffices for a new segment but not for merging it, attempts don't eat up the room that is left."""
    with mounted("tmpfs", "", tmp_path / "small", "size=1m") as place:
        store, session = fresh(place / "store")
        for _ in range(30):
            session.append(b"x" * 10_000)
        session.compact()
        for _ in range(30):
            session.append(b"y" * 10_000)
        before = list(session.records())
        for _ in range(4):
            with suppress(Unavailable):
                session.compact()
        assert len(segments(place / "store")) <= 2
        assert list(fresh(place / "store")[1].records()) == before
        assert damages(store.verify()) == []
        assert session.append(b"z\n").seq == 61


@needs_root
def test_no_inodes_left(tmp_path: Path) -> None:
    """Without a free inode a store still opens, reads, verifies and deletes; an append says ENOSPC."""
    with mounted("tmpfs", "", tmp_path / "small", "size=4m,nr_inodes=60") as place:
        store, session = fresh(place / "store")
        session.append(b"one\n")
        session.compact()
        with suppress(OSError):
            for number in range(100):
                (place / str(number)).touch()
        refused(lambda: session.append(b"two\n"), errno.ENOSPC)
        store, session = fresh(place / "store")
        assert session.read_jsonl() == b"one\n"
        assert damages(store.verify()) == []
        refused(lambda: session.append(b"two\n"), errno.ENOSPC)
        (place / "0").unlink()
        (place / "1").unlink()
        assert session.append(b"two\n").seq == 2


LIMITED = """
import resource, sys, shardstore
session = shardstore.open(sys.argv[1], compact_shards=None).session("a")
session.append(b"one\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for _ in range(2):
    try:
        session.append(b"x" * 100_000)
    except shardstore.Unavailable as error:
        print(error.errno)
print(session.append(b"two\\n").seq)
"""


def test_file_size_limit(store_path: str) -> None:
    """RLIMIT_FSIZE: a record that is too large for it is Unavailable with EFBIG, a smaller one goes in."""
    answer = python(LIMITED, store_path)
    assert answer.stdout.split() == [str(errno.EFBIG), str(errno.EFBIG), "2"], answer.stderr
    assert fresh(store_path)[1].read_jsonl() == b"one\ntwo\n"
    assert fresh(store_path)[0].verify() == []


CROWDED = """
import os, resource, sys, shardstore
store = shardstore.open(sys.argv[1], compact_shards=None)
session = store.session("a")
session.append(b"one\\n")
session.append(b"two\\n", key="k")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
calls = {
    "append": lambda: session.append(b"x\\n"), "key": lambda: session.append(b"x\\n", key="x"),
    "read": lambda: list(session.records()),
    "last": lambda: session.last(1), "compact": session.compact, "archive": session.archive, "delete": session.delete,
    "verify": session.verify, "repair": session.repair, "create": lambda: store.create("z"),
    "list": lambda: list(store.sessions()),
    "open": lambda: shardstore.open(sys.argv[1]), "import": lambda: store.import_session("i", [b"x"]),
    "files": session.files,
    "backup": lambda: store.backup(sys.argv[1] + "-copy"), "follow": lambda: session.follow(0).close(),
    "describe": session.describe,
    "store verify": store.verify, "store compact": store.compact, "birth": lambda: store.session("b").append(b"x"),
}
for spare in range(12):
    for name, call in calls.items():
        if name == "delete" and spare:
            continue
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for fd in held[:spare]:
            os.close(fd)
        try:
            call()
        except (shardstore.Unavailable, shardstore.OutcomeUnknown, shardstore.Conflict, shardstore.Deleted) as error:
            pass
        except BaseException as error:
            print(spare, name, type(error).__name__, error)
        for fd in held[spare:]:
            os.close(fd)
"""


def test_no_descriptors_left(store_path: str) -> None:
    """EMFILE: with 0, 1, 2 … descriptors left every call works or raises a typed error, and all is well afterwards."""
    answer = python(CROWDED, store_path)
    assert (answer.stdout, answer.returncode) == ("", 0), answer.stdout + answer.stderr
    store, session = fresh(store_path)
    assert damages(store.verify()) == []
    assert session.info().state != "open" or session.read_jsonl().startswith(b"one\ntwo\n")
    store.session("after").append(b"x\n")


# ------------------------------------------------------------------ read-only


def check_read_only(store: Store, before: list[Record]) -> None:
    """Everything that reads works, everything that writes says EROFS."""
    session = store.session(ID)
    assert [info.id for info in store.sessions()] == [ID]
    assert list(session.records()) == before
    assert (session.head(), len(session.last(3))) == (12, 3)
    assert damages(store.verify()) == []
    for call in (
        lambda: session.append(b"x\n"),
        lambda: session.append(b"x\n", key="new"),
        session.compact,
        session.archive,
        session.delete,
        lambda: store.create("n"),
        lambda: store.session("n").append(b"x"),
        lambda: store.import_session("n", [b"x"]),
    ):
        refused(call, errno.EROFS)
    assert session.append({"number": 3, "text": "xxx"}, key="key-3").seq == 3


@needs_root
def test_read_only_mount(tmp_path: Path) -> None:
    """EROFS: a store on a read-only filesystem opens, lists, reads, verifies and can be backed up; writes say so."""
    before = build(tmp_path / "store", 12, compact_at=(5,))
    with mounted("bind", str(tmp_path / "store"), tmp_path / "mount", "ro") as place:
        for create in (True, False):
            check_read_only(shardstore.open(place, create=create), before)
        store = shardstore.open(place)
        assert store.backup(tmp_path / "copy") == 1
    assert list(fresh(tmp_path / "copy")[1].records()) == before
    assert fresh(tmp_path / "store")[1].append(b"x\n").seq == 13


@needs_root
def test_filesystem_that_turns_read_only(tmp_path: Path) -> None:
    """A filesystem remounted read-only under a running writer: Unavailable EROFS, and on again once it is writable."""
    with mounted("tmpfs", "", tmp_path / "mount", "size=4m") as place:
        store, session = fresh(place / "store")
        session.append(b"one\n")
        store.close()  # the kernel refuses to remount what is open for writing; the handle goes on all the same
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        refused(lambda: session.append(b"lost\n"), errno.EROFS)
        refused(session.compact, errno.EROFS)
        assert session.read_jsonl() == b"one\n"
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert session.append(b"two\n").seq == 2
        session.compact()
        assert session.read_jsonl() == b"one\ntwo\n"


# ------------------------------------------------------------------ permissions


def owned_by_nobody(path: Path) -> Path:
    """Give a tree to the unprivileged user."""
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(path)], check=True)
    return path


@needs_root
def test_folders_that_may_not_be_written(public: Path) -> None:
    """EACCES: without write permission an append says so, reading goes on, and the store is as it was."""
    build(public / "store", 6, compact_at=(3,))
    owned_by_nobody(public / "store")
    before = tree(public / "store")
    for path in [public / "store", *(public / "store").rglob("*")]:
        if path.is_dir():
            path.chmod(0o500)

    def use() -> None:
        store, session = fresh(public / "store")
        assert len(list(session.records())) == 6
        assert damages(store.verify()) == []
        for call in (lambda: session.append(b"x\n"), session.compact, session.archive, lambda: store.create("n")):
            refused(call, errno.EACCES)

    assert as_nobody(use) == "ok"
    assert tree(public / "store") == before


@needs_root
def test_stores_and_files_that_may_not_be_read(public: Path) -> None:
    """EACCES: a stranger's store is Unavailable; so is a single file, without being called damaged or repaired."""
    before = build(public / "store", 6, compact_at=(3,))
    assert as_nobody(lambda: refused(lambda: fresh(public / "store"), errno.EACCES)) == "ok"
    owned_by_nobody(public / "store")
    for file in (shard(public / "store", 5), segments(public / "store")[0], folder(public / "store") / "manifest.json"):
        file.chmod(0)

        def use() -> None:
            store, session = fresh(public / "store")
            refused(lambda: list(session.records()), errno.EACCES)
            with suppress(ShardstoreError):
                assert damages(store.verify())
            with suppress(ShardstoreError):
                store.repair()

        assert as_nobody(use) == "ok"
        file.chmod(0o600)
        assert list(fresh(public / "store")[1].records()) == before


@needs_root
def test_store_below_a_folder_that_can_not_be_made(public: Path) -> None:
    """EACCES where the store should be made: Unavailable."""
    (public / "locked").mkdir(mode=0o755)
    assert as_nobody(lambda: refused(lambda: fresh(public / "locked" / "store"), errno.EACCES)) == "ok"


def test_files_are_private(store_path: str) -> None:
    """Transcripts are private whatever the umask: folders 0700, files 0600."""
    old = os.umask(0)
    try:
        build(store_path, 6, compact_at=(3,))
        fresh(store_path)[1].archive()
    finally:
        os.umask(old)
    for above, names, files in os.walk(store_path):
        assert all(os.stat(os.path.join(above, name)).st_mode & 0o777 == 0o700 for name in names)
        assert all(os.stat(os.path.join(above, name)).st_mode & 0o777 == 0o600 for name in files)
