"""Golden bytes: what a released version wrote, every later one reads. The literals are never edited, only added to."""

from __future__ import annotations

import zlib

from shardstore.manifest import Manifest, SegmentRef, decode_manifest, encode_manifest
from shardstore.record import Header, decode_shard, encode_header
from shardstore.segment import SegmentIndex, check_trailer, decode_index_page, decode_key_page, decode_trailer

SHARD_1 = (
    b'{"shardstore":1,"kind":"turn","source":"main","at":1769000000123,"base":6,"key":"run-7",'
    b'"nonce":"000102030405060708090a0b0c0d0e0f","length":18,"crc32":"13bca26c"}\n{"role":"user"}\r\n\n'
)
MANIFEST_1 = (
    b'{"shardstore":1,"generation":3,"nonce":"aa","birth":"bb","created_at":1769000000000,"durability":"sync",'
    b'"state":"open","archived":false,"watermark":2,"segments":[{"first":1,"last":2,"base":2,'
    b'"nonce":"000102030405060708090a0b0c0d0e0f","data":10,"keys":0,"size":126}],"crc32":"94db92f8"}\n'
)
FOOTER_1 = bytes.fromhex(
    "00000000000000001200000000000000a30000008a21e1108000000002000000b50000000000000000000000000000006400"
    "000000000000020000000000000036332e013a766a04511ae31c0700000000000000c2018624736861726473656701000000"
    "07000000000000000200000000000000190100000000000001000000000000009027c677"
)

HEADER = Header(1, "turn", "main", 1769000000123, 6, "run-7", "000102030405060708090a0b0c0d0e0f", 18)
PAYLOAD = b'{"role":"user"}\r\n\n'


def test_shard_of_format_1() -> None:
    """A shard of format 1 decodes to its header and its payload, and is written the same today."""
    assert decode_shard(SHARD_1, what="golden") == (HEADER, PAYLOAD, SHARD_1.index(b"\n") + 1)
    assert encode_header(HEADER, PAYLOAD) + PAYLOAD == SHARD_1


def test_manifest_of_format_1() -> None:
    """A manifest of format 1 decodes to its facts, and is written the same today."""
    segment = SegmentRef(1, 2, 2, "000102030405060708090a0b0c0d0e0f", 10, 0, 126)
    manifest = Manifest(1, 3, "aa", "bb", 1769000000000, "sync", "open", False, 2, (segment,))
    assert decode_manifest(MANIFEST_1, what="golden") == manifest
    assert encode_manifest(manifest) == MANIFEST_1


def test_footer_of_format_1() -> None:
    """A footer of format 1 (an index page, a key page, the trailer) reads back, and is written the same today."""
    index = SegmentIndex(7)
    index.add(HEADER, PAYLOAD, len(SHARD_1) - len(PAYLOAD), zlib.crc32(PAYLOAD))
    index.add(Header(1, "control", "lost", 0, None, None, "n", 0), b"", 100, 0)
    assert b"".join(index.footer()) == FOOTER_1
    segment = index.reference(4, "000102030405060708090a0b0c0d0e0f")
    assert decode_trailer(FOOTER_1[-48:], what="golden") == (7, 2, segment.data, 1)
    check_trailer(segment, FOOTER_1[-48:], what="golden")
    entries = decode_index_page(segment, 0, FOOTER_1[:68], what="golden")
    assert [entry[4] for entry in entries] == [0x80, 2]
    assert [entry[5] for entry in entries] == [2, 0]
    assert [seq for _, seq in decode_key_page(segment, 0, FOOTER_1[68:88], what="golden")] == [7]
