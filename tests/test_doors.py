"""What this version must not touch, and doors it must not open: newer formats, damaged store files, foreign paths."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from mishaps import ID, build, fresh, manifest, mounted, needs_root, segments, shard, tree

import shardstore
from shardstore import Corrupt, InvalidRequest, NotFound, Unavailable, UnsupportedFormat
from shardstore.record import Header, encode_header

RECORDS, COMPACTED = 12, 5
OTHER = "other"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "store"
    build(path, RECORDS, compact_at=(COMPACTED,))
    with shardstore.open(path) as store:
        store.session(OTHER).append(b"untouched\n")
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "store"))


def symlink(place: Path, aside: Path) -> None:
    """Put a symlink to the real thing, which lies outside the store, in its place."""
    place.symlink_to(aside)


def dangling(place: Path, aside: Path) -> None:
    """Put a symlink that leads nowhere in its place."""
    place.symlink_to(aside.parent / "nowhere")


def fifo(place: Path, aside: Path) -> None:
    """Put a FIFO in its place: whoever opened it to read would wait for ever."""
    os.mkfifo(place)


# ------------------------------------------------------------------ newer formats


def newer_shard(path: Path) -> Path:
    """Write a shard of format 2 in the place of shard 8."""
    header = Header(2, "turn", "main", 1, None, None, "0" * 32, 1)
    shard(path, 8).write_bytes(encode_header(header, b"x") + b"x")
    return shard(path, 8)


def newer_manifest(path: Path) -> Path:
    """Let a newer version have written the manifest."""
    body = b'{"shardstore":2,"generation":9,"layers":[{"kind":"tree"}]'
    manifest(path).write_bytes(body + b',"crc32":"%08x"}\n' % zlib.crc32(body))
    return manifest(path)


def newer_segment(path: Path) -> Path:
    """Let a newer version have written the segment's trailer."""
    segment = segments(path)[0]
    data = segment.read_bytes()
    magic, _, *rest = struct.unpack("<8sIQQQQ", data[-48:-4])
    body = struct.pack("<8sIQQQQ", magic, 2, *rest)
    segment.write_bytes(data[:-48] + body + struct.pack("<I", zlib.crc32(body)))
    return segment


@pytest.mark.parametrize("write", [newer_shard, newer_manifest, newer_segment])
def test_newer_format_in_a_session(store: Path, write: Callable[[Path], Path]) -> None:
    """What a newer version wrote is UnsupportedFormat where it is touched, is named by verify, and repair leaves it."""
    place = write(store)
    before = tree(store)
    opened, session = fresh(store)
    if write is not newer_segment:
        with pytest.raises(UnsupportedFormat):
            list(session.records())
    found = [finding for finding in opened.verify() if finding.what == "newer-format"]
    assert [finding.where for finding in found] == [str(place.relative_to(store))]
    assert any("upgrade" in finding.advice for finding in found)
    opened.repair()
    assert tree(store) == before
    assert opened.session(OTHER).append(b"x\n").seq == 2


def test_newer_store(store: Path) -> None:
    """A store of a newer format is refused at the door, and nothing is written."""
    body = b'{"shardstore":2,"created_at":1,"sharding":"yes"'
    (store / "store.json").write_bytes(body + b',"crc32":"%08x"}\n' % zlib.crc32(body))
    before = tree(store)
    for create in (True, False):
        with pytest.raises(UnsupportedFormat):
            shardstore.open(store, create=create)
    assert tree(store) == before


# ------------------------------------------------------------------ the store's path


def test_path_that_is_no_store(tmp_path: Path) -> None:
    """A file, what lies below one, a foreign folder, a dangling link: InvalidRequest; nothing: NotFound."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "photo.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "foreign", "dangling", "nul\0"):
        with pytest.raises(InvalidRequest):
            shardstore.open(tmp_path / name)
    for name in ("absent", "empty", "foreign", "dangling", "file/below"):
        with pytest.raises((NotFound, InvalidRequest)):
            shardstore.open(tmp_path / name, create=False)
    with pytest.raises(InvalidRequest):
        shardstore.open(tmp_path / "file", create=False)
    assert sorted(tree(tmp_path)) == ["file", "foreign/photo.jpg"]
    assert os.listdir(tmp_path / "empty") == []


def test_path_through_symlinks(tmp_path: Path) -> None:
    """A store may be reached through symlinks above it: only inside it there are none."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    shardstore.open(tmp_path / "link" / "store").session(ID).append(b"x\n")
    (tmp_path / "direct").symlink_to(tmp_path / "real" / "store")
    assert shardstore.open(tmp_path / "direct").session(ID).read_jsonl() == b"x\n"


@pytest.mark.parametrize("data", [b"", b"junk", b"\0" * 60, None])
def test_damaged_store_file(store: Path, data: bytes | None) -> None:
    """A store whose store.json is damaged or gone is Corrupt, never taken for a foreign or an empty folder."""
    if data is None:
        (store / "store.json").unlink()
    else:
        (store / "store.json").write_bytes(data)
    before = tree(store)
    for create in (True, False):
        with pytest.raises(Corrupt):
            shardstore.open(store, create=create)
    assert tree(store) == before


@pytest.mark.parametrize("plant", [symlink, dangling, fifo])
def test_planted_store_file(store: Path, plant: Callable[[Path, Path], None]) -> None:
    """Something else in the place of store.json is Corrupt and is not followed."""
    place, aside = store / "store.json", store.parent / "aside"
    place.rename(aside)
    plant(place, aside)
    with pytest.raises(Corrupt):
        shardstore.open(store)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "9p"])
def test_network_filesystem_is_refused(store: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a network filesystem is refused at open with an error that points to the object store."""
    monkeypatch.setattr("shardstore.backends.filesystems.filesystem_of", lambda _: kind)
    with pytest.raises(Unavailable, match="object store"):
        shardstore.open(store)


@needs_root
def test_store_on_a_bind_mount(store: Path, tmp_path: Path) -> None:
    """A bind mount of a local folder is a local folder."""
    with mounted("bind", str(store), tmp_path / "mount", "rw") as place:
        assert fresh(place)[1].append(b"x\n").seq == RECORDS + 1
