"""Finding: which transcripts a user has, and which session each of them is to become.

Rule: what is found has one path (without a symlink in it) whichever way led to it, and an id that no other file found
with it has. What can't be looked at is a Problem, never an end: the rest goes on.

Strategy. Without paths each format searches its own homes and is believed. A named folder may be a home, a part of one,
a copy, or anything. Where a path at, above or below it ends like a home (`.claude/projects`), the format is believed
again, so that ids are those of a search of the home. Elsewhere several formats may yield the same file, and its first
64 KiB decide; a file that they don't decide (empty, damaged, or no lines at all) goes with what lies around it, from
its own folder upwards. What is called JSONL and is nobody's is taken by shape, so nothing that was named is refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from msgspec.structs import replace

from .mounts import mounted_stores
from .sources import ANY, FORMATS, Format, Found
from .sources.base import FILE, Report, beginning, listing, pass_over, walk
from .sources.openclaw import OPENCLAW, PI, STORE
from .sources.reading import encodable, named, objects

__all__ = ["Problem", "find", "fitted", "quoted_bytes"]

HEAD_BYTES_MAX = 64 << 10
ID_BYTES_MAX = 255  # of an id quoted as a file name
PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")  # what stays one byte in it
PROGRAMS = tuple(form for form in FORMATS if form is not ANY)
JSONL = re.compile(r".+\.(?:jsonl|ndjson)(?:\..+)?", re.DOTALL)
COMPRESSED = re.compile(r".+\.(?:jsonl|ndjson)(?:\..+)?\.(?:zst|gz|xz|bz2)", re.DOTALL)
USUAL = frozenset({"agents", "projects", "sessions"})  # folders of transcripts, wherever they were copied to
VAGUE = frozenset({"tmp"})  # the last part of a home that says nothing alone

Root = tuple[str, str]  # a folder that a format is to search, and the part of it that matters ("" for all)


@dataclass(frozen=True)
class Problem:
    """A file or a folder that could not be looked at, and why, in words for a user."""

    path: str
    reason: str


def find(paths: Sequence[str], *, home: str, environ: Mapping[str, str]) -> tuple[list[Found], list[Problem]]:
    """Return the transcripts at `paths` (without any: in the homes of all formats), and what couldn't be looked at.

    Each file comes once, by its real path, in the order of these. Ids are unique, fit into a store, and are the same in
    every search that finds the same files. Compressed files have the lane `file`. Files are opened for reading alone,
    and nothing is waited for. A `name` may hold what is no UTF-8, as `path` may.
    """
    search = _Search(home, dict(environ))
    for path in paths:
        search.look_at(path)
    if not paths:
        search.look_at_homes()
    return _told_apart(search.found.values()), search.problems()


class _Search:
    """What one search has found so far, by real path."""

    def __init__(self, home: str, environ: dict[str, str]) -> None:
        self.found: dict[str, Found] = {}
        self._problems: dict[str, str] = {}
        self._folders: list[str] = []
        self._neighbours: dict[Root, dict[str, Found]] = {}
        self._mounts = mounted_stores()
        homes = [(form, os.path.abspath(folder)) for form in PROGRAMS for folder in form.homes(home, environ)]
        self._homes = [(form, folder, os.path.realpath(folder)) for form, folder in homes]

    def problems(self) -> list[Problem]:
        """Return what couldn't be looked at, by path: no symlink into what was looked at, nothing below another."""
        return [Problem(path, self._problems[path]) for path in sorted(self._problems) if not self._is_harmless(path)]

    def _is_harmless(self, path: str) -> bool:
        above = os.path.dirname(path)
        while above not in ("", os.sep):
            if above in self._problems:
                return True
            above = os.path.dirname(above)
        real = os.path.realpath(path) if os.path.islink(path) else ""
        return os.path.exists(real) and any(_is_below(real, folder) for folder in self._folders)

    def look_at_homes(self) -> None:
        """Take what each format finds in its homes, those that are one folder once."""
        seen = set()
        for form, folder, real in self._homes:
            if (form.name, real) not in seen and self._exists(folder):
                seen.add((form.name, real))
                self._folders.append(real)
                self._believe(form, (folder, ""), real)

    def _exists(self, home: str) -> bool:
        try:
            os.lstat(home)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self.tell(error)
            return False
        return True

    def look_at(self, path: str) -> None:
        """Take what lies at a path that the user named; a symlink stands for what it leads to."""
        try:
            mode = os.stat(path).st_mode
            real = os.path.realpath(path, strict=True)
        except OSError as error:
            self.tell(error)
        except ValueError as error:
            self._problems.setdefault(path, f"not a path: {error}")
        else:
            if stat.S_ISDIR(mode):
                self._look_into(real)
            elif stat.S_ISREG(mode):
                self._take_file(real)
            else:
                self._problems.setdefault(path, "not a regular file")

    def _take_file(self, path: str) -> None:
        """Take a file: as the format that its head tells would find it, or one in whose home it lies."""
        head = self._head(path)
        if head is None:
            return
        form, base = _format_of(head), os.path.basename(path)
        for known in PROGRAMS if form is ANY else (form,):
            above = [root for root in self._sure(known, path) if root[1]]
            if form is not ANY:
                above += [*_likely_above(form, path), (os.path.dirname(path), path)]
            for root in above:
                found = self._as_found(known, root)
                if found is not None:
                    self._add(found, path, base)
                    return
        session = f"{form.name}/{base.removesuffix('.jsonl')}"
        self._add(Found(path=path, name=base, format=form.name, agent=form.name, session=session), path, base)

    def _as_found(self, form: Format, root: Root) -> Found | None:
        """Return what a format finds in a folder around one file; what else lies there may be unreadable."""
        if form is not OPENCLAW:
            return next(self._candidates(form, root, pass_over), None)
        folder, here = root[0], os.path.dirname(root[1])  # it lists all of a folder for each: remember them
        if (folder, here) not in self._neighbours:
            part = (folder, "" if here == folder else here)
            self._neighbours[folder, here] = {one.path: one for one in self._candidates(form, part, pass_over)}
        return self._neighbours[folder, here].get(root[1])

    def _look_into(self, folder: str) -> None:
        """Take all transcripts at and below a folder."""
        self._folders.append(folder)
        files = self._files_below(folder)
        below = _leading(files, folder)
        for form in PROGRAMS:
            ends = tuple(os.sep + os.path.join(*tail) for tail in _tails(form))
            homes = [(here, "") for here in below if here.endswith(ends)]
            for root in dict.fromkeys([*self._sure(form, folder), *homes]):
                self._believe(form, root, folder)
        rest = [path for path in files if path not in self.found]
        shapes = self._settle(folder, _leading(rest, folder)) if rest else {}
        for found in self._candidates(ANY, (folder, ""), self.tell):
            shape = None if found.path in self.found else shapes.get(found.path) or self._shape(found.path)
            if shape is not None:
                session = f"{shape.name}/{os.path.basename(folder)}/{found.name.removesuffix('.jsonl')}"
                plain = replace(found, format=shape.name, agent=shape.name, session=session)
                self._add(plain, found.path, found.name)

    def _files_below(self, folder: str) -> list[str]:
        try:
            return list(walk(folder, self.tell))
        except OSError as error:
            self.tell(error)
            return []

    def _sure(self, form: Format, path: str) -> Iterator[Root]:
        """Yield the homes of a format that hold `path` or lie in it, and folders called like one that hold it."""
        for owner, folder, real in self._homes:
            if owner is form and _is_below(path, real):
                yield folder, "" if path == real else os.path.join(folder, named(real, path))
            elif owner is form and _is_below(real, path) and os.path.isdir(folder):
                yield folder, ""
        parts = path.split(os.sep)
        for tail in _tails(form):
            for end in range(len(parts), 0, -1):
                if tuple(parts[max(end - len(tail), 0) : end]) == tail:
                    yield os.sep.join(parts[:end]), "" if end == len(parts) else path

    def _believe(self, form: Format, root: Root, folder: str) -> None:
        """Take all that a format finds, and the compressed files that lie beside it."""
        real = os.path.realpath(root[0])
        kin: dict[str, Found] = {}
        for found in self._candidates(form, root, self.tell):
            path = os.path.join(real, found.name)
            if self._add(found, path, named(folder, path)):
                kin.setdefault(os.path.dirname(path), found)
        self._take_compressed(kin, folder)

    def _take_compressed(self, kin: Mapping[str, Found], folder: str) -> None:
        """Take the compressed transcripts in some folders; each belongs to what was found in the same."""
        for here, found in kin.items():
            try:
                names = listing(here)[1]
            except OSError as error:
                self.tell(error)
                continue
            for name in filter(COMPRESSED.fullmatch, names):
                path = os.path.join(here, name)
                session = f"{found.session.rpartition('/')[0]}/{name}"
                self._add(replace(found, session=session, inner=""), path, named(folder, path))

    def _settle(self, folder: str, below: Sequence[str]) -> dict[str, Format]:
        """Take what the formats find in a folder that is nobody's home: by heads, then by what lies around.

        Returns what the other heads that were read look like, by path.
        """
        claims: dict[str, dict[str, Found]] = defaultdict(dict)
        for form in PROGRAMS:
            for root in dict.fromkeys([*_likely_above(form, folder), *_likely_below(form, below), (folder, "")]):
                for claimed in self._candidates(form, root, self.tell):
                    if claimed.path not in self.found:
                        claims[claimed.path].setdefault(form.name, claimed)
        shapes: dict[str, Format] = {}
        silent: list[str] = []
        for path, claim in sorted(claims.items()):
            head = None if _is_companion(claim) else self._head(path)
            shape = None if head is None else next((one for one in _named_forms(claim) if one.recognises(head)), None)
            if shape is not None:
                shapes[path] = shape
            elif head is not None and JSONL.fullmatch(os.path.basename(path)) and next(objects(head), None) is not None:
                shapes[path] = _format_of(head, claim)
            elif path not in self._problems:
                silent.append(path)
        owners: dict[str, set[str]] = defaultdict(set)  # by folder, the formats that have files in it
        for path, found in self.found.items():
            owners[os.path.dirname(path)].add(found.format)
        for path, form in shapes.items():
            owners[os.path.dirname(path)] |= {form.name} & claims[path].keys()
        for path, form in shapes.items():
            name = form.name
            if form is PI and OPENCLAW.name in claims[path] and OPENCLAW.name in owners[os.path.dirname(path)]:
                name = OPENCLAW.name  # its lines are pi's, and not every file of it has a mark
            if name in claims[path]:
                self._add(claims[path][name], path, named(folder, path))
        for path in silent:
            kin = _nearest(path, folder, owners, claims[path])
            if kin is not None:
                self._add(claims[path][kin], path, named(folder, path))
        beside = {os.path.dirname(path): self.found[path] for path in claims if path in self.found}
        self._take_compressed(beside, folder)
        return shapes

    def _shape(self, path: str) -> Format | None:
        head = self._head(path)
        return None if head is None else _format_of(head)

    def _candidates(self, form: Format, root: Root, on_error: Report) -> Iterator[Found]:
        """Yield what a format finds; an error ends its search, and is told."""
        try:
            yield from form.find(root[0], on_error, root[1])
        except OSError as error:
            on_error(error)

    def _head(self, path: str) -> bytes | None:
        """Return the first bytes of a file; None, and a Problem, if it can't be read."""
        try:
            return beginning(path, HEAD_BYTES_MAX)
        except OSError as error:
            self.tell(error)
            return None

    def _add(self, found: Found, path: str, name: str) -> bool:
        """Take a file by its real path, unless it was taken before; return whether it is new."""
        if path in self.found:
            return False
        mount = next((mount for mount in self._mounts if _is_below(path, mount)), None)
        if mount is not None:
            self._problems.setdefault(mount, "a store is mounted here: what it shows is in that store already")
            return False
        lane = FILE if COMPRESSED.fullmatch(os.path.basename(path)) else found.lane
        self.found[path] = replace(found, path=path, name=name, lane=lane)
        return True

    def tell(self, error: OSError) -> None:
        """Note what could not be looked at."""
        self._problems.setdefault(str(error.filename), (error.strerror or str(error)).lower())


def _format_of(head: bytes, asked: Container[str] = ()) -> Format:
    """Return the first format that recognises a head; those that were asked before did not."""
    return next(form for form in FORMATS if form.name not in asked and form.recognises(head))


def _named_forms(names: Iterable[str]) -> list[Format]:
    return [form for form in PROGRAMS if form.name in names]


def _is_companion(claim: Mapping[str, Found]) -> bool:
    """Say whether a file is none of transcripts to somebody, so that its lines tell nothing."""
    return any(found.lane == FILE for found in claim.values())


def _nearest(path: str, folder: str, owners: Mapping[str, set[str]], names: Iterable[str]) -> str | None:
    """Return the first of the formats `names` that has files in the folder of `path`, or the nearest one around."""
    here = path
    while here != folder:
        here = os.path.dirname(here)
        for form in _named_forms(names):
            if form.name in owners.get(here, ()):
                return form.name
    return None


def _tails(form: Format) -> list[tuple[str, ...]]:
    """Return how the homes of a format are called below a user's: `(".claude", "projects")`."""
    return [tuple(home.strip(os.sep).split(os.sep)) for home in form.homes(os.sep, {})]


def _likely_above(form: Format, path: str) -> Iterator[Root]:
    """Yield the nearest folder above `path` that is called like the last part of one of the format's homes."""
    names = {tail[-1] for tail in _tails(form)} - VAGUE
    parts = path.split(os.sep)
    end = next((end for end in range(len(parts) - 1, 0, -1) if parts[end - 1] in names), None)
    if end is not None:
        yield os.sep.join(parts[:end]), path


def _likely_below(form: Format, below: Sequence[str]) -> Iterator[Root]:
    """Yield those of the folders `below` that are called like the last part of a home, or hold OpenClaw's list."""
    names = (USUAL | {tail[-1] for tail in _tails(form)}) - VAGUE
    for here in below:
        if os.path.basename(here) in names or (form is OPENCLAW and os.path.lexists(os.path.join(here, STORE))):
            yield here, ""


def _leading(files: Iterable[str], folder: str) -> list[str]:
    """Return `folder` and the folders below it that lead to some files, sorted."""
    below = {folder}
    for path in files:
        here = os.path.dirname(path)
        while here not in below:
            below.add(here)
            here = os.path.dirname(here)
    return sorted(below)


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(os.path.join(folder, ""))


def _told_apart(found: Iterable[Found]) -> list[Found]:
    """Return the files by path, with ids that are valid and unique: the second `x` becomes `x~2`."""
    files = sorted(found, key=lambda one: os.fsencode(one.path))
    wanted = [encodable(one.session) for one in files]
    firsts = [fitted(session, "") for session in wanted]
    taken = set(firsts)
    times: dict[str, int] = defaultdict(int)
    told = []
    for one, session, first in zip(files, wanted, firsts, strict=True):
        times[first] += 1
        given = first
        while times[first] > 1 and given in taken:
            given = fitted(session, f"~{times[first]}")
            times[first] += given in taken
        taken.add(given)
        told.append(replace(one, session=given, agent=encodable(one.agent)))
    return told


def fitted(session: str, suffix: str) -> str:
    """Return `session` and `suffix` as an id; one that is too long has its hash in the place of its middle."""
    if quoted_bytes(session + suffix) <= ID_BYTES_MAX:
        return session + suffix
    middle = f"-{sha256(session.encode()).hexdigest()[:8]}-"
    half = (ID_BYTES_MAX - quoted_bytes(middle + suffix)) // 2
    return _start(session, half) + middle + _start(session[::-1], half)[::-1] + suffix


def _start(text: str, size_bytes: int) -> str:
    """Return as much of the start of `text` as takes at most `size_bytes` bytes in a quoted id."""
    end = min(len(text), size_bytes)
    while quoted_bytes(text[:end]) > size_bytes:
        end -= 1
    return text[:end]


def quoted_bytes(session: str) -> int:
    """Return how long the name of a session's folder is: all but plain bytes, and a dot at its start, take three."""
    raw = session.encode()
    return len(raw) + 2 * (sum(byte not in PLAIN for byte in raw) + raw.startswith(b"."))
