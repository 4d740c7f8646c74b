"""File names: this module alone builds and parses them.

Rule: pure. A key is a path relative to the store, its parts joined by "/". Seqs have 20 digits, so that names sort as
numbers do. Session ids are percent-quoted, upper case and non-ASCII included, because some filesystems fold case or
normalise Unicode; two different ids never share a folder.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from shardstore.errors import InvalidRequest, describe
from shardstore.manifest import SegmentRef

__all__ = [
    "DAMAGED",
    "MANIFEST_FILE",
    "NAME_BYTES_MAX",
    "SEGMENTS",
    "SEQ_MAX",
    "SESSIONS",
    "SHARDS",
    "STORE_FILE",
    "TEMP_PREFIX",
    "VIEW_MARKER",
    "SessionKeys",
    "parse_segment_name",
    "parse_shard_name",
    "quote_id",
    "segment_name",
    "shard_name",
    "unquote_id",
    "view_path",
]

STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.json"
SESSIONS = "sessions"
SHARDS = "shards"
SEGMENTS = "segments"
DAMAGED = "damaged"
TEMP_PREFIX = ".tmp-"
VIEW_MARKER = ".shardstore-view"
_VIEW_SUFFIX = ".jsonl"
NAME_BYTES_MAX = 255
SEQ_MAX = 2**63 - 1

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_QUOTES_TO_ITSELF = re.compile(r"[a-z0-9_-][a-z0-9_.-]*").fullmatch  # most ids: whoever lists very many is glad
_SEGMENT = re.compile(r"(\d{20})-(\d{20})-(\d+)-([0-9a-f]{32})\.segment")


def quote_id(session_id: str) -> str:
    """Return the folder name of a session. Raises InvalidRequest for an id that is empty, too long or no text."""
    if not isinstance(session_id, str) or not session_id:
        raise InvalidRequest(describe("a session id is a non-empty str", id=session_id))
    try:
        raw = session_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(describe("a session id must be valid Unicode", id=session_id)) from error
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    if name[0] == ".":
        name = "%2E" + name[1:]
    if len(name) > NAME_BYTES_MAX:
        raise InvalidRequest(
            describe("a session id is too long once quoted as a file name", bytes=len(name), max=NAME_BYTES_MAX)
        )
    return name


def unquote_id(name: str) -> str | None:
    """Return the session id whose folder is `name`, or None if no id quotes to it."""
    if len(name) <= NAME_BYTES_MAX and _QUOTES_TO_ITSELF(name):
        return name
    try:
        session_id = unquote_to_bytes(name).decode()
        return session_id if quote_id(session_id) == name else None
    except (UnicodeDecodeError, UnicodeEncodeError, InvalidRequest):
        return None


def view_path(session_id: str) -> str:
    """Return where a session's view lies in a folder of views. Raises InvalidRequest for an id that has no place there.

    The same for the file on disk and for a mount: each "/" of the id is a folder, the last part gets `.jsonl`.
    """
    *folders, last = session_id.split("/")
    for name in [*folders, last + _VIEW_SUFFIX]:
        if name in ("", ".", "..", _VIEW_SUFFIX) or name.startswith(VIEW_MARKER) or "\0" in name:
            raise InvalidRequest(describe("a session of this id can't be shown as a file", id=session_id, part=name))
        if len(name.encode()) > NAME_BYTES_MAX:
            raise InvalidRequest(describe("a part of the id is too long for a file name", id=session_id, part=name))
    if any(name.endswith(_VIEW_SUFFIX) for name in folders):
        what = "a folder can't end with .jsonl: a session's file may need the name"
        raise InvalidRequest(describe(what, id=session_id))
    return "/".join([*folders, last + _VIEW_SUFFIX])


def shard_name(seq: int) -> str:
    """Return the file name of the shard at `seq`."""
    return f"{seq:020d}.shard"


def parse_shard_name(name: str) -> int | None:
    """Return the seq of a shard's file name, or None for any other name."""
    digits = name[:20]
    if len(name) != 26 or not name.endswith(".shard") or not (digits.isdecimal() and digits.isascii()):
        return None
    return seq if 0 < (seq := int(digits)) <= SEQ_MAX else None


def segment_name(segment: SegmentRef) -> str:
    """Return the file name of a segment; the nonce makes it unique for ever."""
    return f"{segment.first:020d}-{segment.last:020d}-{segment.base}-{segment.nonce}.segment"


def parse_segment_name(name: str) -> tuple[int, int, int, str] | None:
    """Return (first seq, last seq, base generation, nonce) of a segment's file name, or None for any other name."""
    match = _SEGMENT.fullmatch(name)
    if not match or not name.isascii() or not 0 < int(match[1]) <= int(match[2]) <= SEQ_MAX:
        return None
    return int(match[1]), int(match[2]), int(match[3]), match[4]


class SessionKeys:
    """The keys of one session: its folder and what lies in it."""

    __slots__ = ("damaged", "folder", "manifest", "segments", "shards")

    def __init__(self, session_id: str) -> None:
        self.folder = f"{SESSIONS}/{quote_id(session_id)}"
        self.manifest = f"{self.folder}/{MANIFEST_FILE}"
        self.shards = f"{self.folder}/{SHARDS}"
        self.segments = f"{self.folder}/{SEGMENTS}"
        self.damaged = f"{self.folder}/{DAMAGED}"

    def shard(self, seq: int) -> str:
        """Return the key of the shard at `seq`."""
        return f"{self.shards}/{str(seq).zfill(20)}.shard"  # less than half the time of :020d

    def segment(self, segment: SegmentRef) -> str:
        """Return the key of a segment."""
        return f"{self.segments}/{segment_name(segment)}"
