"""Programs that know nothing of shardstore, on mounted sessions: each behaves as on a plain file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import read_until
from mounts import Mounted, append, mounted_in, needs, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LINES = [b'{"n":%d,"text":"%s"}\n' % (number, b"x" * (number % 50)) for number in range(2_000)]
CONTENT = b"".join(LINES)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted store with one session."""
    for mount in mounted_in(tmp_path):
        session = mount.session("a")
        for first in range(0, len(LINES), 100):
            session.append(LINES[first : first + 100])
        yield mount


def said(mount: Mounted, *words: str, shell: bool = False) -> bytes:
    """Run a program in the mounted folder; it must end well and complain of nothing."""
    done = subprocess.run(words[0] if shell else words, cwd=mount.path, shell=shell, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


@needs("jq")
def test_jq(mount: Mounted) -> None:
    """`jq` sees every line; its output over the file, by a temporary one and `mv`, is the new content."""
    assert said(mount, "jq", "-s", "map(.n) | add", "a.jsonl") == b"1999000\n"
    said(mount, "jq -c 'select(.n < 3) | {n}' a.jsonl > tmp && mv tmp a.jsonl", shell=True)
    assert (mount.path / "a.jsonl").read_bytes() == b'{"n":0}\n{"n":1}\n{"n":2}\n'
    assert mount.view("a").startswith(CONTENT)


def test_grep_and_wc(mount: Mounted) -> None:
    """`grep` and `wc -l` read to the end and no further; `wc -c` is right below `.real`."""
    assert said(mount, "grep", "-c", "xx", "a.jsonl") == b"1920\n"
    assert said(mount, "grep", '"n":1999,', "a.jsonl") == LINES[1999]
    assert said(mount, "wc", "-l", "a.jsonl") == b"2000 a.jsonl\n"
    assert said(mount, "wc", "-c", ".real/a.jsonl") == b"%d .real/a.jsonl\n" % len(CONTENT)
    assert said(mount, "cat", "a.jsonl") == CONTENT
    assert said(mount, "head", "-n", "1", "a.jsonl") == LINES[0]
    assert said(mount, "tail", "-n", "2", ".real/a.jsonl") == b"".join(LINES[-2:])


def test_cp(mount: Mounted, tmp_path: Path) -> None:
    """`cp` from the folder and from `.real` gives the exact bytes, and a copy into the folder is a session."""
    for source in ("a.jsonl", ".real/a.jsonl"):
        said(mount, "cp", source, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == CONTENT
    said(mount, "cp", "a.jsonl", "b.jsonl")
    assert mount.view("b") == CONTENT
    said(mount, "cp", str(tmp_path / "copy"), "folder.jsonl")
    assert mount.view("folder") == CONTENT


@needs("rsync")
def test_rsync(mount: Mounted, tmp_path: Path) -> None:
    """`rsync` from `.real` copies, and the second time finds nothing to do; into the folder it rewrites."""
    said(mount, "rsync", "-a", ".real/", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "a.jsonl").read_bytes() == CONTENT
    assert said(mount, "rsync", "-ai", ".real/", str(tmp_path / "copy")) == b""
    append(mount.path / "a.jsonl", LINES[0])
    assert said(mount, "rsync", "-ai", ".real/", str(tmp_path / "copy")).count(b"\n") == 1
    (tmp_path / "copy" / "a.jsonl").write_bytes(LINES[0])
    said(mount, "rsync", "-a", str(tmp_path / "copy") + "/", ".real/")
    assert (mount.path / "a.jsonl").read_bytes() == LINES[0]


def test_tail_follows(mount: Mounted) -> None:
    """`tail -f` below `.real` shows what is appended, by whomever."""
    words = ["tail", "-n", "1", "-s", "0.1", "-f", str(mount.real / "a.jsonl")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        read_until(follower.stdout, LINES[-1])
        append(mount.path / "a.jsonl", LINES[0])
        read_until(follower.stdout, LINES[0])
        mount.session("a").append(LINES[1])
        read_until(follower.stdout, LINES[1])
        follower.terminate()


def test_shell_redirections(mount: Mounted) -> None:
    """`>>` appends, `>` rewrites, `:>` empties, `mv` renames and `rm` removes."""
    said(mount, "echo '{}' >> a.jsonl; echo '{}' >> new.jsonl; printf half >> new.jsonl", shell=True)
    assert (mount.view("a"), mount.view("new")) == (CONTENT + b"{}\n", b"{}\nhalf")
    said(mount, "echo '{\"only\":1}' > a.jsonl", shell=True)
    assert said(mount, "cat", "a.jsonl") == b'{"only":1}\n'
    said(mount, "mv a.jsonl b.jsonl; : > new.jsonl", shell=True)
    assert sorted(os.listdir(mount.path)) == ["b.jsonl", "new.jsonl"]
    assert said(mount, "cat", "new.jsonl") == b""
    said(mount, "mv -n new.jsonl b.jsonl; true", shell=True)
    assert said(mount, "cat", "b.jsonl") == b'{"only":1}\n'
    said(mount, "mv b.jsonl plain; rm new.jsonl", shell=True)
    assert os.listdir(mount.path) == ["plain"]
    assert (mount.path / "plain").read_bytes() == b'{"only":1}\n'


def test_sed_in_place(mount: Mounted) -> None:
    """`sed -i` rewrites, and what others append meanwhile stays."""
    said(mount, "sed", "-i", 's/"x*"/""/; 2d', "a.jsonl")
    expected = [b'{"n":%d,"text":""}\n' % number for number in range(len(LINES))]
    assert (mount.path / "a.jsonl").read_bytes() == b"".join(expected[:1] + expected[2:])
    assert mount.view("a").startswith(CONTENT)


@needs("vim")
@pytest.mark.parametrize("where", ["", ".real/"])
def test_vim(mount: Mounted, where: str) -> None:
    """`vim -c wq` changes nothing; an edit is a rewrite of the same session, and leaves no other files."""
    vim = ["vim", "-N", "-u", "NONE", "-i", "NONE", "-es"]
    subprocess.run([*vim, "-c", "wq", where + "a.jsonl"], cwd=mount.path, check=True, timeout=60)
    assert (mount.path / "a.jsonl").read_bytes() == CONTENT
    subprocess.run([*vim, "-c", "1d", "-c", "wq", where + "a.jsonl"], cwd=mount.path, check=True, timeout=60)
    assert (mount.path / "a.jsonl").read_bytes() == b"".join(LINES[1:])
    assert os.listdir(mount.path) == ["a.jsonl"]
    assert mount.session("a").head() == 21
    assert not mount.session("a").info().archived


@needs("node")
def test_node(mount: Mounted) -> None:
    """Node's whole reads, appends, streams, renames and exclusive creations do what they do on a disk."""
    script = """
      const fs = require("fs"), assert = require("assert");
      const before = fs.readFileSync("a.jsonl", "utf8").split("\\n").length, seen = fs.statSync("a.jsonl");
      fs.appendFileSync("a.jsonl", '{"by":"node"}\\n');
      const after = fs.statSync("a.jsonl");
      assert.deepStrictEqual([after.size, after.mtimeMs, after.ino], [seen.size, seen.mtimeMs, seen.ino]);
      assert.strictEqual(fs.readFileSync("a.jsonl", "utf8").split("\\n").length, before + 1);
      fs.writeFileSync("a.jsonl.lock", "1", { flag: "wx" });
      assert.throws(() => fs.writeFileSync("a.jsonl.lock", "2", { flag: "wx" }), { code: "EEXIST" });
      fs.unlinkSync("a.jsonl.lock");
      fs.writeFileSync("new.tmp", '{"n":1}\\n'); fs.renameSync("new.tmp", "b.jsonl");
      const log = fs.createWriteStream("c.jsonl", { flags: "a" });
      for (let n = 0; n < 100; n++) log.write(JSON.stringify({ n }) + "\\n");
      log.end(() => fs.promises.readFile("c.jsonl", "utf8").then((text) => {
        assert.strictEqual(text.split("\\n").length, 101);
        assert.deepStrictEqual(fs.readdirSync(".").sort(), ["a.jsonl", "b.jsonl", "c.jsonl"]);
        console.log("done");
      }));
    """
    assert said(mount, str(shutil.which("node")), "-e", script) == b"done\n"
    assert mount.view("a") == CONTENT + b'{"by":"node"}\n'
    assert mount.view("b") == b'{"n":1}\n'
