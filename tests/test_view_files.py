"""Files of a view, brought up to date once: exact, only ever appended to or replaced, and nobody else's."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import in_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from view_checks import HEADER, expected, refresh, shown_of

import shardstore
from shardstore import Conflict, InvalidRequest, Store
from shardstore.viewfiles import DESCRIPTORS_MAX, PIECE_BYTES
from shardstore.views import DiskView


@pytest.fixture
def store(store_path: str) -> Iterator[Store]:
    """Open a store."""
    with shardstore.open(store_path, durability="none") as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for views, which does not exist yet."""
    return tmp_path / "views"


def test_made_grown_and_left_alone(store: Store, folder: Path) -> None:
    """A file is made, then only appended to, then left alone; read-only, and an offset stays right."""
    session = store.session("a/b")
    session.append(b'{"n":1}\n{"n":2}')
    assert refresh(store, folder)["a/b"].status == "made"
    path = folder / "a" / "b.jsonl"
    with open(path, "rb") as reader:
        assert reader.read() == b'{"n":1}\n{"n":2}\n'
        session.append(b"\xff\r\n")
        session.event(b'{"n":4}', source="heartbeat")
        outcome = refresh(store, folder)["a/b"]
        assert (outcome.status, outcome.lines, outcome.written_bytes) == ("appended", 2, 11)
        assert reader.read() == b'\xff\r\n{"n":4}\n'
        assert os.path.samestat(os.fstat(reader.fileno()), os.stat(path))
    before = os.stat(path)
    assert refresh(store, folder)["a/b"].status == "unchanged"
    assert (os.stat(path).st_mtime_ns, stat.S_IMODE(before.st_mode)) == (before.st_mtime_ns, 0o444)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def _cut(path: Path, size: int) -> None:
    os.chmod(path, 0o644)
    os.truncate(path, size)


def _edit(path: Path) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(3)
        file.write(b"#")


def _append(path: Path) -> None:
    os.chmod(path, 0o644)
    with open(path, "ab") as file:
        file.write(b"junk\n")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"replaced\n")
    os.rename(other, path)


@pytest.mark.parametrize(
    ("harm", "status"),
    [
        (lambda path: _cut(path, 0), "appended"),
        (lambda path: _cut(path, 9), "appended"),
        (lambda path: _cut(path, PIECE_BYTES + 7), "appended"),
        (_edit, "made again"),
        (_append, "made again"),
        (_replace, "made again"),
        (lambda path: os.chmod(path, 0o600), "unchanged"),
        (os.unlink, "made"),
    ],
)
@pytest.mark.parametrize("while_held", [False, True])
def test_what_somebody_has_done_to_a_file(
    store: Store, folder: Path, harm: Callable[[Path], None], status: str, while_held: bool
) -> None:
    """A prefix is appended to, anything else replaced; never is a byte changed that a reader may have read."""
    session = store.session("a")
    for number in range(3):
        session.append(json.dumps({"n": number, "x": "x" * 200_000}).encode())
    path = folder / "a.jsonl"
    with DiskView(store, folder) as kept:
        assert [outcome.status for outcome in kept.refresh()] == ["made"]
        if not while_held:
            kept.close()
        harm(path)
        session.append(b'{"last":1}')
        held = open(path, "rb") if path.exists() else None  # noqa: SIM115
        seen = held.read() if held is not None else b""
        if while_held:
            outcomes = list(kept.refresh())
        else:
            outcomes = list(refresh(store, folder).values())
            kept._marker = os.open(os.devnull, os.O_RDONLY)  # it is closed once more
    (outcome,) = outcomes
    assert outcome.status == ("appended" if status == "unchanged" else status)
    assert path.read_bytes() == expected(store, "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    if held is not None:
        with held:
            assert os.pread(held.fileno(), len(seen), 0) == seen
            kept_inode = os.path.samestat(os.fstat(held.fileno()), path.stat())
            assert kept_inode == (outcome.status == "appended")
            assert kept_inode or os.fstat(held.fileno()).st_size == len(seen)


def test_somebody_writes_in_the_middle_of_an_append(store: Store, folder: Path) -> None:
    """Bytes that slip in while a file is appended to are noticed at its end, and the file is made again."""
    session = store.session("a")
    session.append({})
    with DiskView(store, folder) as kept:
        list(kept.refresh())
        for _ in range(3):
            session.append(b"x" * PIECE_BYTES)
        work = kept._work("a")
        next(work)
        _append(folder / "a.jsonl")
        assert [None for _ in work]
    assert (folder / "a.jsonl").read_bytes() == expected(store, "a")


def test_headers_are_shown_once_and_kept_in_the_log(store: Store, folder: Path) -> None:
    """Of two writers that both begin a session with a header, the view shows the first one's."""
    session = store.session("a")
    session.append(HEADER % 1)
    session.append(HEADER % 2)
    session.append([b'{"id":"x"}', HEADER % 3, b'{"id":"y"}'])
    refresh(store, folder)
    assert (folder / "a.jsonl").read_bytes() == HEADER % 1 + b'{"id":"x"}\n{"id":"y"}\n'
    assert session.read_jsonl().count(b'"session"') == 3


def test_empty_sessions_and_compacted_ones(store: Store, folder: Path) -> None:
    """An empty session has an empty file; a compacted one has the same bytes as before."""
    store.create("empty")
    for number in range(300):
        store.session("many").append({"n": number})
    refresh(store, folder)
    assert (folder / "empty.jsonl").read_bytes() == b""
    store.session("many").compact()
    assert refresh(store, folder)["many"].status == "unchanged"
    store.session("many").append({"n": 300})
    assert refresh(store, folder)["many"].lines == 1
    assert (folder / "many.jsonl").read_bytes() == store.session("many").read_jsonl()


def test_deleted_and_archived(store: Store, folder: Path) -> None:
    """Files of deleted and archived sessions go, those of archived ones come back, and a name asks for one."""
    for name in ("gone", "kept", "old"):
        store.session(name).append({"n": name})
    refresh(store, folder)
    store.session("gone").delete()
    store.session("old").archive()
    outcomes = refresh(store, folder)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "gone": "removed",
        "kept": "unchanged",
        "old": "removed",
    }
    assert sorted(os.listdir(folder)) == [".shardstore-view", "kept.jsonl"]
    assert refresh(store, folder, sessions=["old"])["old"].status == "made"
    assert refresh(store, folder, archived=True)["old"].status == "unchanged"
    assert refresh(store, folder)["old"].status == "removed"
    store.session("old").unarchive()
    assert refresh(store, folder)["old"].status == "made"
    assert isinstance(refresh(store, folder, sessions=["never"])["never"].error, shardstore.NotFound)


def test_only_a_view_is_written(store: Store, folder: Path, tmp_path: Path) -> None:
    """A folder of something else, of another store's view, inside the store, or with a torn marker is refused."""
    store.session("a").append({})
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"mine\n")
    with pytest.raises(InvalidRequest, match="something else"):
        refresh(store, folder)
    assert (folder / "a.jsonl").read_bytes() == b"mine\n"
    with pytest.raises(InvalidRequest, match="inside the store"):
        refresh(store, Path(store.path) / "views")
    with pytest.raises(InvalidRequest, match="a file lies"):
        refresh(store, folder / "a.jsonl")
    with shardstore.open(tmp_path / "other") as other:
        refresh(other, tmp_path / "theirs")
    with pytest.raises(InvalidRequest, match="another store"):
        refresh(store, tmp_path / "theirs")
    for marker in (b"", b"[]\n", b'{"shardstore_view": 2, "store": "/x"}\n'):
        (tmp_path / "theirs" / ".shardstore-view").write_bytes(marker)
        with pytest.raises(InvalidRequest):
            refresh(store, tmp_path / "theirs")


def test_what_lies_in_the_place_of_a_file_or_folder(store: Store, folder: Path, tmp_path: Path) -> None:
    """A folder or symlink in a session's place is its own error, and left alone; the others go on, strangers stay."""
    refresh(store, folder)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.jsonl").write_bytes(b"outside\n")
    (folder / "dir.jsonl").mkdir()
    (folder / "link.jsonl").symlink_to(outside / "x.jsonl")
    (folder / "way").symlink_to(outside)
    (folder / "file").write_bytes(b"")
    (folder / "notes.jsonl").write_bytes(b"mine\n")
    for name in ("dir", "link", "way/x", "file/x", "a/../b", "fine"):
        store.session(name).append({})
    outcomes = refresh(store, folder)
    wrong = {name for name, outcome in outcomes.items() if isinstance(outcome.error, InvalidRequest)}
    assert wrong == {"dir", "link", "way/x", "file/x", "a/../b"}
    store.session("way/x").delete()
    assert refresh(store, folder)["way/x"].status == "failed"
    assert (folder / "fine.jsonl").exists()
    assert (folder / "link.jsonl").is_symlink()
    assert (folder / "notes.jsonl").read_bytes() == b"mine\n"
    assert (outside / "x.jsonl").read_bytes() == b"outside\n"


def test_one_writer(store: Store, folder: Path) -> None:
    """A second one is refused, in this process and in another one; when the first has gone the next may."""
    with DiskView(store, folder):

        def second() -> None:
            with pytest.raises(Conflict, match="another process"):
                refresh(store, folder)

        second()
        assert in_child(second) == 0
    refresh(store, folder)


def test_strays_are_swept(store: Store, folder: Path) -> None:
    """What a killed writer left unfinished goes at the next start, wherever it lies; the marker and strangers stay."""
    store.session("a/b").append({})
    folder.mkdir()
    (folder / ".shardstore-view-00").write_bytes(b"torn marker")  # before there was a marker
    refresh(store, folder)
    (folder / "a" / ".shardstore-view-01").write_bytes(b"torn")
    (folder / ".other").write_bytes(b"")
    refresh(store, folder)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == [".other", ".shardstore-view", "a/b.jsonl"]


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """Return a folder that any user can reach and write in."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o777)
        yield Path(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_an_owner_who_is_not_root(open_to_all: Path) -> None:
    """Files are read-only for their owner too; he appends to them all the same, and to more than are held open."""
    folder = open_to_all / "views"
    names = [f"s{number}" for number in range(DESCRIPTORS_MAX + 10)]

    def inodes() -> list[int]:
        return [(folder / f"{name}.jsonl").stat().st_ino for name in names]

    def run() -> None:
        os.setgid(65534)
        os.setuid(65534)
        with shardstore.open(open_to_all / "store", durability="none") as own:
            for name in names:
                own.session(name).append({})
            with DiskView(own, folder) as kept:
                for _ in range(3):
                    assert not [outcome.error for outcome in kept.refresh() if outcome.error]
                    before = inodes()
                    for name in names:
                        own.session(name).append({"more": 1})
                    outcomes = list(kept.refresh())
                    assert {(outcome.status, outcome.written_bytes) for outcome in outcomes} == {("appended", 11)}
                    assert inodes() == before
            for name in names:
                assert (folder / f"{name}.jsonl").read_bytes() == expected(own, name)
                assert stat.S_IMODE((folder / f"{name}.jsonl").stat().st_mode) == 0o444

    assert in_child(run) == 0


PAYLOAD = st.one_of(
    st.sampled_from([HEADER % 1, HEADER % 2, b'{"type":"session"}', b"\n", b'{"a":1}\n{"b":2}', b"x" * 70_000]),
    st.binary(min_size=1, max_size=40),
)
STEP = st.one_of(
    PAYLOAD,
    st.sampled_from(["look", "restart", "compact"]),
    st.tuples(st.just("cut"), st.integers(0, 80_000)),
    st.tuples(st.just("edit"), st.integers(0, 200)),
)


@given(st.lists(STEP, max_size=25))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_appends_restarts_and_damage(tmp_path_factory: pytest.TempPathFactory, steps: list[object]) -> None:
    """Whenever it was brought up to date, the file holds exactly what it should; before that, in every pause, a prefix
    that ends with LF, or it was rebuilt; an inode that a reader holds is never cut or changed.
    """
    base = tmp_path_factory.mktemp("any")
    path = base / "views" / "a.jsonl"
    payloads: list[bytes] = []
    with shardstore.open(base / "store", durability="none") as store:
        session = store.create("a")
        kept = DiskView(store, base / "views")
        for step in [*steps, "look"]:
            if isinstance(step, bytes):
                session.append(step)
                payloads.append(step)
            elif step == "compact":
                session.compact()
            elif step == "restart":
                kept.close()
                kept = DiskView(store, base / "views")
            elif isinstance(step, tuple) and path.exists():
                _harm(path, *step)
            elif step == "look":
                _watched(kept, path, shown_of(payloads))
        kept.close()


def _harm(path: Path, how: str, at: int) -> None:
    os.chmod(path, 0o644)
    size = path.stat().st_size
    if how == "cut":
        os.truncate(path, min(at, size))
    elif at < size:
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))


def _watched(kept: DiskView, path: Path, wanted: bytes) -> None:
    """Bring the file up to date a piece at a time, and look at it in each pause."""
    held = os.open(path, os.O_RDONLY) if path.exists() else -1
    seen = path.read_bytes() if held >= 0 else b""
    for _ in kept._work("a"):
        now = path.read_bytes() if path.exists() else b""
        assert now == seen or (wanted.startswith(now) and now.endswith(b"\n"))
    assert path.read_bytes() == wanted
    if held >= 0:
        assert os.pread(held, len(seen), 0) == seen
        os.close(held)
