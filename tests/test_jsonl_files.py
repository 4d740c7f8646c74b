"""Sessions opened as files do what plain files do: bytes, return values, exceptions, attributes."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstore
from shardstore import jsonl

Opener = Callable[..., Any]
NAME = "s.jsonl"


@pytest.fixture
def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Opener, Opener]:
    """Return the builtin `open` and the sessions' one, each of which finds the same name in a folder of its own."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "ours").mkdir()
    store = shardstore.open(tmp_path / "store", durability="none")

    def plain(name: str, *arguments: Any, **options: Any) -> Any:
        monkeypatch.chdir(tmp_path / "plain")
        return open(name, *arguments, **options)

    def ours(name: str, *arguments: Any, **options: Any) -> Any:
        monkeypatch.chdir(tmp_path / "ours")
        return jsonl.open(name, *arguments, store=store, **options)

    return plain, ours


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """Return what a call returned, or the type and the words of what it raised."""
    try:
        return ("returned", call())
    except Exception as error:
        return (type(error), str(error))


def both(twins: tuple[Opener, Opener], use: Callable[[Opener], Any]) -> Any:
    """Use both in the same way, require the same outcome, and return it."""
    plain, ours = (outcome(lambda opener=opener: use(opener)) for opener in twins)
    assert ours == plain
    return plain


def filled(opener: Opener, data: bytes = b'{"a":1}\n\xc3\xa9\r\nlast\n') -> Opener:
    """Give a file some content and return the opener."""
    with opener(NAME, "ab") as file:
        file.write(data)
    return opener


def test_ten_thousand_writes_and_reads(twins: tuple[Opener, Opener]) -> None:
    """10,000 writes, of lines, halves and several at once, return and leave the same; so do all ways to read them."""

    def pieces(number: int) -> list[str]:
        line = json.dumps({"n": number, "text": "ü" * (number % 97)}, ensure_ascii=False)
        return [[line + "\n"], [line[:9], line[9:], "\n"], [f"{line}\n{line}\n{line[:5]}"]][number % 3]

    def use(opener: Opener) -> Any:
        told = []
        with opener(NAME, "a", encoding="utf-8") as file:
            for number in range(10_000):
                told += [file.write(piece) for piece in pieces(number)]
        with opener(NAME, "rb") as file:
            whole = file.read()
            parts = [file.seek(at) and file.read(1000) for at in range(1, len(whole), 65_537)]
            file.seek(0)
            lines = [line + str(file.tell()).encode() for line in iter(file.readline, b"")]
        with opener(NAME, encoding="utf-8", newline="") as file:
            texts = list(file)
        return told, whole, parts, lines, texts

    assert len(both(twins, use)[1][1]) > 1_000_000


MISUSES: dict[str, Callable[[Any], Any]] = {
    "write str": lambda file: file.write("text"),
    "write bytes": lambda file: file.write(b"bytes"),
    "write int": lambda file: file.write(3),
    "write none": lambda file: file.write(None),
    "write strided": lambda file: file.write(memoryview(b"abcd")[::2]),
    "writelines mixed": lambda file: file.writelines(["a\n", b"b\n"]),
    "read": lambda file: file.read(),
    "read words": lambda file: file.read("1"),
    "readline": lambda file: file.readline(),
    "readinto": lambda file: file.readinto(bytearray(3)),
    "readinto bytes": lambda file: file.readinto(b"abc"),
    "iterate": lambda file: next(file),
    "readlines": lambda file: file.readlines(),
    "truncate": lambda file: file.truncate(10**6) if file.readable() and not file.writable() else None,
    "seek before": lambda file: file.seek(-1),
    "seek whence": lambda file: file.seek(0, 9),
    "seek words": lambda file: file.seek("0"),
    "seek float": lambda file: file.seek(0.5),
    "tell": lambda file: file.tell(),
    "tell while iterating": lambda file: (next(iter(file)), file.tell()),
    "enter": lambda file: file.__enter__() is file,
    "flush": lambda file: file.flush(),
    "isatty": lambda file: file.isatty(),
    "readable": lambda file: file.readable(),
    "writable": lambda file: file.writable(),
    "seekable": lambda file: file.seekable(),
    "close twice": lambda file: (file.close(), file.close(), file.closed),
    "name": lambda file: file.name,
    "mode": lambda file: file.mode,
    "encoding": lambda file: file.encoding,
    "newlines": lambda file: (file.readline(), file.newlines),
    "errors": lambda file: file.errors,
    "line buffering": lambda file: file.line_buffering,
    "kinds": lambda file: (isinstance(file, io.TextIOBase), isinstance(file, io.BufferedIOBase)),
    "attribute": lambda file: file.no_such_attribute,
}


@pytest.mark.parametrize("mode", ["r", "rb", "a", "ab", "a+", "a+b"])
@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_misuse(twins: tuple[Opener, Opener], mode: str, misuse: str, closed: bool) -> None:
    """Whatever is asked of an open or a closed file has the same answer, or the same exception in the same words."""

    def use(opener: Opener) -> Any:
        file = filled(opener)(NAME, mode)
        if closed:
            file.close()
        try:
            answer = outcome(lambda: MISUSES[misuse](file))
        finally:
            file.close()
        with opener(NAME, "rb") as again:
            return answer, again.read()

    kind, (answer, content) = both(twins, lambda opener: both_words(use(opener)))
    assert (kind, content[:8]) == ("returned", b'{"a":1}\n')
    assert answer


def both_words(answer: Any) -> Any:
    """Take the names of the classes, which differ by nature, out of an error's words."""
    (kind, value), content = answer
    if isinstance(value, str) and kind is AttributeError:
        value = value.split("object")[1]
    return (kind, value), content


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("q",), {}),
        (("",), {}),
        (("rw",), {}),
        (("rt+b",), {}),
        (("U",), {}),
        ((5,), {}),
        ((None,), {}),
        (("r", "x"), {}),
        (("r", 0), {}),
        (("a", 0), {}),
        (("rb", -1, "utf-8"), {}),
        (("ab",), {"newline": ""}),
        (("ab",), {"errors": "strict"}),
        (("r",), {"encoding": "no-such-encoding"}),
        (("a",), {"newline": "\v"}),
        (("a",), {"newline": 3}),
        (("a",), {"encoding": 3}),
    ],
)
def test_wrong_arguments(twins: tuple[Opener, Opener], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """What `open` refuses is refused in its words."""
    kind, words = both(twins, lambda opener: filled(opener)(NAME, *arguments, **options))
    assert issubclass(kind, Exception)
    assert words


@pytest.mark.parametrize("mode", ["x", "xb", "x+"])
def test_exclusive_creation(twins: tuple[Opener, Opener], mode: str) -> None:
    """Mode x makes a file that is not there, empty at first, and is told where there is one."""

    def use(opener: Opener) -> Any:
        with opener(NAME, mode) as file, opener(NAME, "rb") as other:
            told = file.tell(), other.read()
        return told, outcome(lambda: opener(NAME, mode))

    assert both(twins, use)[1][1][0] is FileExistsError


@pytest.mark.parametrize("mode", ["w", "wb", "w+", "wb+", "a", "x"])
def test_a_mode_that_writes_makes_the_file(twins: tuple[Opener, Opener], mode: str) -> None:
    """Reading what is not there is FileNotFoundError; opening for writing makes it, empty; `w` may be repeated then."""

    def use(opener: Opener) -> Any:
        first = outcome(lambda: opener(NAME))
        with opener(NAME, mode) as file:
            told = file.tell(), file.mode, file.name
        with opener(NAME, "w") as file:
            file.write("a\nb")
        with opener(NAME) as file:
            return first, told, file.read()

    assert both(twins, use)[1][0][0] is FileNotFoundError


@pytest.mark.parametrize("unbuffered", [0, 1, -1, 16])
def test_buffering(twins: tuple[Opener, Opener], unbuffered: int) -> None:
    """Any buffering reads the same; line buffering of binary files warns in the same words."""

    def use(opener: Opener) -> Any:
        with opener(NAME, "rb", unbuffered) as file:
            return file.read(3), file.readline(), file.tell(), file.seek(-3, 2), file.read()

    filled(twins[0])
    filled(twins[1])
    both(twins, use)


def test_a_reader_at_the_end_goes_on(twins: tuple[Opener, Opener]) -> None:
    """A handle that has met the end reads what is appended later, in text and bytes, as `tail -f` does."""

    def use(opener: Opener) -> Any:
        filled(opener)
        seen = []
        with opener(NAME) as text, opener(NAME, "rb") as data, opener(NAME, "rb") as tail, opener(NAME, "a") as out:
            tail.seek(0, 2)
            for number in range(5):
                seen += [text.read(), data.readline(), data.read(), tail.read()]
                out.write(f"{number}\n{number}\n")
                out.flush()
        return seen

    both(twins, use)


def test_what_was_told_can_be_sought(twins: tuple[Opener, Opener]) -> None:
    """A text file's tell is a place to which seek goes back, also across records and among wide characters."""

    def use(opener: Opener) -> Any:
        with opener(NAME, "a", encoding="utf-8") as file:
            for number in range(300):
                file.write(f"{'€' * (number % 50)}\n")
        with opener(NAME, encoding="utf-8") as file:
            places = [(file.tell(), file.readline()) for _ in range(300)]
            return places, [(file.seek(place), file.readline(), file.read(5)) for place, _ in reversed(places)]

    both(twins, use)


def test_read_and_append_in_one_handle(twins: tuple[Opener, Opener]) -> None:
    """With a+ a handle reads what it wrote, a line without newline too; each write goes to the end."""

    def use(opener: Opener) -> Any:
        seen: list[Any] = []
        with filled(opener)(NAME, "a+", encoding="utf-8", newline="") as file:
            seen += [file.tell(), file.read(), file.seek(0), file.readline()]
            seen += [file.write("half"), file.flush(), file.tell(), file.read(), file.seek(0), file.read()]
            seen += [file.write(" and whole\nnext"), file.flush(), file.tell(), file.seek(3), file.read()]
        with opener(NAME, "rb") as file:
            return seen, file.read()

    both(twins, use)


@pytest.mark.parametrize("mode", ["r", "rb", "a", "ab", "a+b"])
@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_no_copies(twins: tuple[Opener, Opener], mode: str, take: Callable[[Any], Any]) -> None:
    """A file can't be pickled or copied."""

    def use(opener: Opener) -> Any:
        with filled(opener)(NAME, mode) as file:
            return outcome(lambda: take(file))[0]

    assert both(twins, use) == ("returned", TypeError)


def test_no_descriptor(twins: tuple[Opener, Opener]) -> None:
    """There is no descriptor, which is told as every file without one tells it."""
    for mode in ("r", "rb", "a", "ab", "a+"):
        with filled(twins[1])(NAME, mode) as file, pytest.raises(io.UnsupportedOperation, match="fileno"):
            file.fileno()


@pytest.mark.parametrize("mode", ["r", "rb", "a", "ab", "a+", "a+b"])
def test_forgotten(twins: tuple[Opener, Opener], mode: str) -> None:
    """A file that nobody closed warns, and commits what it holds, when it is collected."""

    def use(opener: Opener) -> Any:
        file = filled(opener)(NAME, mode)
        if "a" in mode:
            file.write(b"rest" if "b" in mode else "rest")
        forgotten = [file]
        del file
        with pytest.warns(ResourceWarning, match="unclosed file"):
            forgotten.clear()
        with opener(NAME, "rb") as again:
            return again.read()

    both(twins, use)


def test_copyfileobj_both_ways(twins: tuple[Opener, Opener], tmp_path: Path) -> None:
    """`shutil.copyfileobj` between a session and a plain file copies every byte, whatever the pieces."""
    plain, ours = twins
    data = b"".join(b"%d %s\n" % (number, b"x" * (number % 3000)) for number in range(2000))
    with ours(NAME, "wb") as target:
        shutil.copyfileobj(io.BytesIO(data), target, 70_001)
    with ours(NAME, "rb") as source, plain("copy", "wb") as target:
        shutil.copyfileobj(source, target)
    assert (tmp_path / "plain" / "copy").read_bytes() == data


def test_write_beyond_the_end_of_an_offset(twins: tuple[Opener, Opener]) -> None:
    """A place behind the end is empty, and is read once somebody has appended that much."""

    def use(opener: Opener) -> Any:
        with filled(opener)(NAME, "rb") as file:
            seen = [file.seek(25), file.read(), file.tell()]
            filled(opener)
            return [*seen, file.read(), file.seek(-4, 1), file.read()]

    both(twins, use)


def test_the_environment_has_no_say(twins: tuple[Opener, Opener]) -> None:
    """Without an encoding, that of the locale is used, as `open` does."""
    assert os.environ.get("PYTHONIOENCODING") is None

    def use(opener: Opener) -> Any:
        with filled(opener)(NAME, errors="replace") as file:
            return file.encoding, file.errors, file.read()

    both(twins, use)
