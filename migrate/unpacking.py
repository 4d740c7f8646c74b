"""Unpacking: the lines in a file compressed with zstd, as far as they can be read.

Rule: memory stays bounded whatever lies in the stream, and nothing is raised for what does: what can't be read any
further is told as `torn`, and the whole lines before it stand. The library enters here alone, and may be absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from io import BytesIO

__all__ = ["Unpacked", "can_unpack", "is_packed"]

LINE_BYTES_MAX = 128 << 20  # a longer line ends what is read
PIECE_BYTES = 1 << 10  # given to the decoder at once: at most 32 MiB come of it
_PACKED = re.compile(r".+\.(?:jsonl|ndjson)(?:\..+)?\.zst", re.DOTALL)


def is_packed(path: str) -> bool:
    """Say whether a file of that name holds lines compressed with zstd."""
    return _PACKED.fullmatch(path.rpartition("/")[2]) is not None


def can_unpack() -> bool:
    """Say whether the library is there."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


class Unpacked:
    """The lines in a compressed stream, which comes in pieces; several frames are one stream.

    `torn` says, after the last line, why there are not more; "" if that was the end. At most `bytes_max` bytes come.
    """

    def __init__(self, packed: Iterable[bytes], *, bytes_max: int) -> None:
        self._packed = packed
        self._bytes_max = bytes_max
        self.torn = ""

    def lines(self) -> Iterator[list[bytes]]:
        """Yield the lines, some at a time; a last one without a newline only if the stream is whole."""
        rest: list[bytes] = []
        size = 0
        for chunk in self._chunks():
            cut = chunk.rfind(b"\n") + 1
            if cut:
                yield BytesIO(b"".join([*rest, chunk[:cut]])).readlines()
                rest, size = [], 0
            if cut < len(chunk):
                rest.append(chunk[cut:])
                size += len(chunk) - cut
            if size > LINE_BYTES_MAX:
                self.torn = f"a line is longer than {LINE_BYTES_MAX >> 20} MiB"
                return
        if rest and not self.torn:
            yield [b"".join(rest)]

    def _chunks(self) -> Iterator[bytes]:
        import zstandard

        decoder = zstandard.ZstdDecompressor()
        frame, is_inside, size = decoder.decompressobj(), False, 0
        try:
            for data in _pieces(self._packed):
                while data:
                    is_inside = True
                    chunk = frame.decompress(data)
                    size += len(chunk)
                    if size > self._bytes_max:
                        self.torn = f"it expands to more than {self._bytes_max:,} bytes"
                        return
                    if chunk:
                        yield chunk
                    data = frame.unused_data if frame.eof else b""
                    if frame.eof:
                        frame, is_inside = decoder.decompressobj(), False
        except zstandard.ZstdError as error:
            self.torn = str(error)
            return
        if is_inside:
            self.torn = "the stream is cut short"


def _pieces(packed: Iterable[bytes]) -> Iterator[bytes]:
    for data in packed:
        for begin in range(0, len(data), PIECE_BYTES):
            yield data[begin : begin + PIECE_BYTES]
