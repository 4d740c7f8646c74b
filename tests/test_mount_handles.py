"""Open session files: against a model over random programs, with co-tenants, and under many threads."""

from __future__ import annotations

import errno
import io
import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from helpers import together
from mount_model import Model, errno_of

import shardstore
from shardstore.mount.handles import SessionFile, Sessions

FIRST_PID = 10_000_000  # beyond what a kernel gives, so that no fake process is a real one's thread
RDWR, APPEND, TRUNC = os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC
WEIGHTS = {"api": 2, "append": 3, "read": 2} | dict.fromkeys(
    ["partial", "close", "truncating", "replace", "truncate", "inside", "compact", "rename", "check"], 1
)


@pytest.fixture
def store(store_path: str) -> shardstore.Store:
    """Return a store of unsynced sessions."""
    return shardstore.open(store_path, durability="none", compact_shards=None)


def content(sessions: Sessions, name: str, pid: int = FIRST_PID - 1) -> bytes:
    """Return what a file shows, read by a process that is asked nothing else."""
    file = sessions.open(name, os.O_RDONLY, pid)
    try:
        return read_all(file)
    finally:
        file.release()


def read_all(file: SessionFile, step: int = 1 << 20) -> bytes:
    """Read to the end as a program does."""
    data = b""
    while piece := file.read(step, len(data)):
        data += piece
    return data


class Walk:
    """Random programs on one session, each answer compared with the model's."""

    def __init__(self, store: shardstore.Store, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.mounts = [Sessions(store), Sessions(shardstore.open(store.path, durability="none"))]
        self.name = "a/x.jsonl"
        self.model = Model()
        self.lines = 0
        self.known: dict[int, bytes] = {}
        self.partial: dict[int, bytes] = {}
        self.appenders: dict[int, SessionFile] = {}
        self.mounts[0].create(self.name, RDWR, FIRST_PID - 1).release()
        self.processes = {pid: self.chance.choice(self.mounts) for pid in range(FIRST_PID, FIRST_PID + 4)}

    def new_lines(self) -> bytes:
        """Return some lines that never were before."""
        begin, self.lines = self.lines, self.lines + self.chance.randint(1, 3)
        return b"".join(b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * (n % 7)) for n in range(begin, self.lines))

    def step(self) -> None:
        """Let one program do one thing."""
        pid = self.chance.choice(list(self.processes))
        (what,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        getattr(self, f"do_{what}")(pid, self.processes[pid])

    def do_api(self, pid: int, sessions: Sessions) -> None:
        payload = self.new_lines()
        self.store.session("a/x").append(payload, kind=self.chance.choice(["turn", "event"]))
        self.model.append(payload)

    def _appender(self, pid: int, sessions: Sessions) -> SessionFile:
        if pid not in self.appenders:
            self.appenders[pid] = sessions.open(self.name, APPEND, pid)
        return self.appenders[pid]

    def do_append(self, pid: int, sessions: Sessions) -> None:
        payload = self.new_lines()
        self._appender(pid, sessions).write(payload, 64 << 20)
        self.model.append(self.partial.pop(pid, b"") + payload, pid)

    def do_partial(self, pid: int, sessions: Sessions) -> None:
        payload = self.new_lines()
        cut = self.chance.randrange(1, payload.find(b"\n"))
        self._appender(pid, sessions).write(payload[:cut], 0)
        self.partial[pid] = self.partial.get(pid, b"") + payload[:cut]

    def do_close(self, pid: int, sessions: Sessions) -> None:
        if pid in self.appenders:
            file = self.appenders.pop(pid)
            file.flush()
            file.release()
            if pid in self.partial:
                self.model.append(self.partial.pop(pid), pid)

    def do_read(self, pid: int, sessions: Sessions) -> None:
        file = sessions.open(self.name, os.O_RDONLY, pid)
        self.known[pid] = read_all(file, self.chance.choice([10, 1 << 20]))
        file.release()
        assert self.known[pid] == self.model.shown
        self.model.see(pid)

    def new_content(self, pid: int) -> bytes:
        """Return what a program writes anew: from what it knew, something cut out, something added."""
        lines = self.chance.choice([self.known.get(pid, b""), self.model.shown]).splitlines(keepends=True)
        if self.chance.random() < 0.6:
            lines = [line for line in lines if self.chance.random() < 0.7]
        lines += [self.new_lines()] * self.chance.randint(0, 1)
        made = b"".join(lines)
        return made[:-1] if self.chance.random() < 0.2 else made

    def do_truncating(self, pid: int, sessions: Sessions) -> None:
        made, seen = self.new_content(pid), self.model.seen_by(pid)
        file = sessions.open(self.name, TRUNC, pid)
        for begin in range(0, len(made), 37):
            file.write(made[begin : begin + 37], begin)
        assert file.read(1 << 20, 0) == made
        file.flush()
        file.release()
        self.model.put(made, seen, pid)

    def do_replace(self, pid: int, sessions: Sessions) -> None:
        made = self.new_content(pid)
        sessions.replace(self.name, io.BytesIO(made), None, pid)
        self.model.put(made, self.model.seen_by(pid), pid)

    def do_truncate(self, pid: int, sessions: Sessions) -> None:
        length = self.chance.randint(0, len(self.model.shown) + 5)
        seen, shown = self.model.seen_by(pid), self.model.shown
        sessions.truncate(self.name, length, pid)
        if length < len(shown):
            self.model.put(shown[:length], seen, pid)

    def do_inside(self, pid: int, sessions: Sessions) -> None:
        shown = self.model.shown
        if shown:
            offset, seen = self.chance.randrange(len(shown)), self.model.seen_by(pid)
            file = sessions.open(self.name, RDWR, pid)
            file.write(b"#", offset)
            file.release()
            self.model.put(shown[:offset] + b"#" + shown[offset + 1 :], seen, pid)

    def do_compact(self, pid: int, sessions: Sessions) -> None:
        self.store.session("a/x").compact()

    def do_rename(self, pid: int, sessions: Sessions) -> None:
        new = self.chance.choice(["a/x.jsonl", "y.jsonl", "a/x.jsonl.reset.1"])
        sessions.rename(self.name, new)
        self.name = new

    def do_check(self, pid: int, sessions: Sessions) -> None:
        sessions = self.chance.choice([*self.mounts, Sessions(self.store)])
        assert content(sessions, self.name) == self.model.shown
        facts = sessions.facts(self.name)
        assert facts is not None
        assert (facts.id, facts.size_bytes) == ("a/x", len(self.model.shown))


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_agree_with_the_model(store: shardstore.Store, seed: int) -> None:
    """Whatever programs do through two mounts and the API, each sees what the rules say, and the log keeps it all."""
    walk = Walk(store, seed)
    for _ in range(120):
        walk.step()
        walk.do_check(0, walk.mounts[0])
    records = list(store.session("a/x").records())
    assert [None if r.kind == "control" else r.payload.rstrip(b"\n") for r in records] == [
        None if payload is None else payload.rstrip(b"\n") for payload in walk.model.log
    ]


def test_appends_from_many_handles_and_the_api_never_interleave(store: shardstore.Store) -> None:
    """Eight threads with handles of their own and eight with the API: every line is there once, whole, in order."""
    sessions = Sessions(store)
    sessions.create("x.jsonl", RDWR, FIRST_PID).release()

    def through_a_file(worker: int) -> None:
        file = sessions.open("x.jsonl", APPEND, FIRST_PID + worker)
        for n in range(100):
            line = b'{"w":%d,"n":%d}\n' % (worker, n)
            file.write(line[:5], 0)
            file.write(line[5:], 0)
        file.release()

    def through_the_api(worker: int) -> None:
        session = store.session("x")
        for n in range(100):
            session.append(b'{"w":%d,"n":%d}\n' % (worker, n))

    stop = threading.Event()

    def compact() -> None:
        while not stop.wait(0.01):
            store.session("x").compact()

    compactor = threading.Thread(target=compact)
    compactor.start()
    together([lambda w=w: through_a_file(w) for w in range(8)] + [lambda w=w: through_the_api(w) for w in range(8, 16)])
    stop.set()
    compactor.join()
    lines = content(sessions, "x.jsonl").splitlines()
    assert Counter(lines) == Counter(b'{"w":%d,"n":%d}' % (w, n) for w in range(16) for n in range(100))
    for worker in range(16):
        mine = [line for line in lines if line.startswith(b'{"w":%d,' % worker)]
        assert mine == [b'{"w":%d,"n":%d}' % (worker, n) for n in range(100)]


def test_threads_share_one_handle(store: shardstore.Store) -> None:
    """Whole lines written by threads through one handle are all there, none torn."""
    sessions = Sessions(store)
    file = sessions.create("x.jsonl", APPEND, FIRST_PID)
    together([lambda w=w: [file.write(b"%d:%d\n" % (w, n), 0) for n in range(50)] for w in range(8)])
    file.release()
    assert sorted(content(sessions, "x.jsonl").split()) == sorted(
        b"%d:%d" % (w, n) for w in range(8) for n in range(50)
    )


def test_lines_of_one_write_are_one_record_and_committed_at_once(store: shardstore.Store) -> None:
    """Whole lines are one record when write returns; what is left waits for its newline, or for the close."""
    file = Sessions(store).create("x.jsonl", APPEND, FIRST_PID)
    file.write(b"one\ntwo\nthr", 0)
    session = store.session("x")
    assert [r.payload for r in session.records()] == [b"one\ntwo\n"]
    file.write(b"ee\nfour", 11)
    assert [r.payload for r in session.records()] == [b"one\ntwo\n", b"three\n"]
    file.flush()
    assert [(r.payload, r.kind, r.source) for r in session.records()][2:] == [(b"four", "turn", "mount")]
    file.release()
    assert session.head() == 3


def test_a_writer_s_base_is_what_its_process_saw(store: shardstore.Store) -> None:
    """A record's base is the process's last look, through whatever handle; None if it never looked."""
    sessions = Sessions(store)
    store.session("x").append(b"1\n")
    store.session("x").append(b"2\n")
    blind = sessions.open("x.jsonl", APPEND, FIRST_PID)
    blind.write(b"3\n", 0)
    reader = sessions.open("x.jsonl", os.O_RDONLY, FIRST_PID + 1)
    assert reader.read(5, 0) == b"1\n2\n3"  # two whole records and a piece of the third
    writer = sessions.open("x.jsonl", APPEND, FIRST_PID + 1)
    writer.write(b"4\n", 0)
    assert [r.base for r in store.session("x").records()][2:] == [0, 2]


def test_others_see_the_old_content_until_a_rewrite_is_closed(store: shardstore.Store) -> None:
    """A file that is being overwritten is its writer's own until it is closed; then it is everybody's."""
    sessions = Sessions(store)
    store.session("x").append(b"old\n")
    reader = sessions.open("x.jsonl", os.O_RDONLY, FIRST_PID)
    writer = sessions.open("x.jsonl", TRUNC, FIRST_PID + 1)
    writer.write(b"new\n", 0)
    assert (reader.read(100, 0), writer.read(100, 0)) == (b"old\n", b"new\n")
    assert content(sessions, "x.jsonl") == b"old\n"
    writer.flush()
    assert content(sessions, "x.jsonl") == b"new\n"
    store.session("x").append(b"more\n")
    assert reader.read(100, 0) == b"old\nmore\n"  # offsets of an open file stay right


def test_what_came_since_the_look_survives_a_rewrite(store: shardstore.Store) -> None:
    """A program that replaces the file by what it made of it does not cost what others appended meanwhile."""
    sessions = Sessions(store)
    session = store.session("x")
    session.append(b"a\nb\n")
    assert content(sessions, "x.jsonl", FIRST_PID) == b"a\nb\n"
    session.append(b"heartbeat\n")
    sessions.replace("x.jsonl", io.BytesIO(b"summary\n"), None, FIRST_PID)
    assert content(sessions, "x.jsonl") == b"summary\nheartbeat\n"
    assert session.read_jsonl() == b"a\nb\nheartbeat\n"  # the log keeps what it had


def test_a_known_head_of_the_new_file_bounds_what_it_replaces(store: shardstore.Store) -> None:
    """What was appended after a temporary file was begun survives, though another thread has read it meanwhile."""
    sessions = Sessions(store)
    session = store.session("x")
    session.append(b"a\n")
    begun = sessions.head("x.jsonl")
    session.append(b"late\n")
    assert content(sessions, "x.jsonl", FIRST_PID) == b"a\nlate\n"
    sessions.replace("x.jsonl", io.BytesIO(b"b\n"), begun, FIRST_PID)
    assert content(sessions, "x.jsonl") == b"b\nlate\n"


def test_an_equal_line_is_no_evidence_that_a_later_one_was_kept(store: shardstore.Store) -> None:
    """A line that others appended again is shown, even if a rewrite holds the same line from before."""
    sessions = Sessions(store)
    session = store.session("x")
    session.append(b"tick\nx\n")
    content(sessions, "x.jsonl", FIRST_PID)
    session.append(b"tick\n")
    sessions.replace("x.jsonl", io.BytesIO(b"tick\n"), None, FIRST_PID)
    assert content(sessions, "x.jsonl") == b"tick\ntick\n"


def test_saving_without_a_change_writes_nothing(store: shardstore.Store) -> None:
    """An editor that writes back what it read leaves no trace, with or without the last newline."""
    sessions = Sessions(store)
    store.session("x").append(b"a\nb")
    for data in (b"a\nb\n", b"a\nb"):
        content(sessions, "x.jsonl", FIRST_PID)
        file = sessions.open("x.jsonl", TRUNC, FIRST_PID)
        file.write(data, 0)
        file.flush()
        file.release()
    assert store.session("x").head() == 1


def test_writing_on_at_the_end_appends_for_files_without_o_append(store: shardstore.Store) -> None:
    """A write where the file ended for its writer, or beyond (the size is not true), appends after what others did."""
    sessions = Sessions(store)
    store.session("x").append(b"a\n")
    file = sessions.open("x.jsonl", RDWR, FIRST_PID)
    assert file.read(100, 0) == b"a\n"
    store.session("x").append(b"b\n")
    assert sessions.facts("x.jsonl") is not None  # so that the mount knows of it, the file's user not
    file.write(b"c\n", 2)
    file.write(b"d\n", 4)
    file.write(b"e\n", 64 << 20)
    assert store.session("x").head() == 5  # each was committed at once
    file.release()
    assert store.session("x").read_jsonl() == b"a\nb\nc\nd\ne\n"


def test_misuse_is_refused_as_a_file_refuses_it(store: shardstore.Store) -> None:
    """Wrong modes, missing names and deleted sessions answer with the errno that a file would."""
    sessions = Sessions(store)
    file = sessions.create("x.jsonl", os.O_RDONLY, FIRST_PID)
    blind = sessions.open("x.jsonl", os.O_WRONLY, FIRST_PID)
    cases = [
        (errno.EBADF, lambda: file.write(b"x\n", 0)),
        (errno.EINVAL, lambda: file.truncate(0)),
        (errno.EBADF, lambda: blind.read(1, 0)),
        (errno.ENOENT, lambda: sessions.open("y.jsonl", RDWR, FIRST_PID)),
        (errno.ENOENT, lambda: sessions.unlink("y.jsonl")),
        (errno.EEXIST, lambda: sessions.create("x.jsonl", RDWR | os.O_EXCL, FIRST_PID)),
        (errno.EXDEV, lambda: sessions.rename("x.jsonl", "x.txt")),
        (errno.EFBIG, lambda: blind.write(b"x" * (1 << 26) + b"xx", 0)),
    ]
    for code, call in cases:
        assert errno_of(call) == code
    store.session("x").delete()
    for call in (lambda: blind.write(b"x\n", 0), lambda: file.read(1, 0)):
        assert errno_of(call) == errno.ESTALE


def test_closing_everything_commits_what_waits(store: shardstore.Store) -> None:
    """Unmounting commits partial lines and rewrites of files that are still open."""
    sessions = Sessions(store)
    sessions.create("x.jsonl", APPEND, FIRST_PID).write(b"half", 0)
    store.session("y").append(b"old\n")
    sessions.open("y.jsonl", TRUNC, FIRST_PID).write(b"new\n", 0)
    sessions.close()
    again = Sessions(store)
    assert (content(again, "x.jsonl"), content(again, "y.jsonl")) == (b"half\n", b"new\n")


def test_memory_and_descriptors_are_bounded(store: shardstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that has seen many sessions keeps few images, and large ones in files that have no name."""
    monkeypatch.setattr("shardstore.mount.handles.OPENED_MAX", 4)
    monkeypatch.setattr("shardstore.mount.handles.ROOM_EVERY", 1)
    monkeypatch.setattr("shardstore.mount.image.MEMORY_BYTES_MAX", 64)
    sessions = Sessions(store)
    for n in range(12):
        for line in range(10):
            store.session(f"s{n}").append(b'{"n":%d,"line":%d}\n' % (n, line))
    before = len(os.listdir("/proc/self/fd"))
    for n in range(12):
        assert content(sessions, f"s{n}.jsonl") == store.session(f"s{n}").read_jsonl()
    assert len(sessions._opened) <= 5
    assert len(os.listdir("/proc/self/fd")) <= before + 5 + 2 * 12  # a folder or two that the store holds for each


def test_inode_stays(store: shardstore.Store, tmp_path: Path) -> None:
    """A session keeps its inode number under every name and in every mount; two sessions have two."""
    sessions = Sessions(store)
    sessions.create("x.jsonl", RDWR, FIRST_PID)
    sessions.create("y.jsonl", RDWR, FIRST_PID)
    before = sessions.facts("x.jsonl")
    sessions.rename("x.jsonl", "z.jsonl")
    after, other = Sessions(store).facts("z.jsonl"), sessions.facts("y.jsonl")
    assert before is not None
    assert after is not None
    assert other is not None
    assert before.ino == after.ino != other.ino
    assert 0 < before.ino < 1 << 63
