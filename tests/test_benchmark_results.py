"""What becomes of a benchmark's rows: files, tables, comparisons and pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import msgspec
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import comparing, tables
from benchmarks.checking import Check
from benchmarks.cli import main
from benchmarks.results import Described, Figure, Result, Row, load, quantiles, save
from benchmarks.wording import heading, is_better, ratio_words, shown, verdict

RATE, P50, ROOM = Figure("appends_per_s", "/s", "more"), Figure("p50", "us", "less"), Figure("disk", "x", "less")
NAMES = ["shardstore", "shardstore-unsynced", "jsonl", "jsonl-unsynced", "floor-file", "floor-record"]
APPEND = Described("append", "one process appends", figures=[RATE, P50])
WRITERS = Described("writers", "several append", figures=[RATE, P50])
RATES = {"shardstore": 100.0, "jsonl": 200.0, "shardstore-unsynced": 8000.0, "jsonl-unsynced": 4000.0,
         "floor-file": 250.0, "floor-record": 110.0}  # fmt: skip


def row(workload: str, case: str, subject: str, rate: float, number: int = 0, **more: object) -> Row:
    """Return a round with a clean check, unless told otherwise."""
    taken = {"figures": {"appends_per_s": rate, "p50": 1e6 / rate}, "check": Check(acknowledged=9)} | more
    taken.setdefault("quantiles_us", quantiles([1e6 / rate * part for part in range(1, 50)]))
    return Row(workload=workload, case=case, subject=subject, round=number, **taken)  # type: ignore[arg-type]


def result(rows: Sequence[Row] | None = None, **more: object) -> Result:
    """Return a result: unless told otherwise, three rounds of every subject's appends."""
    machine = {"processor": "a", "memory": "1 GiB", "filesystem": "ext4", "system": "Linux", "python": "3"}
    subjects = [
        Described(name, name, is_durable="unsynced" not in name, is_floor="floor" in name) for name in NAMES
    ]  # fmt: skip
    whole = [row("append", "some sizes", name, rate, number) for name, rate in RATES.items() for number in range(3)]
    taken = {
        "command": "run", "date": "2026-01-01T00:00:00", "machine": machine, "workloads": [APPEND, WRITERS],
        "subjects": subjects, "rows": whole if rows is None else list(rows),
    } | more  # fmt: skip
    return Result(**taken)  # type: ignore[arg-type]


def printed(one: Result, *, details: bool = False) -> str:
    """Return what the terminal shows, 100 columns wide."""
    out = StringIO()
    tables.show(one, Console(file=out, width=100), details=details)
    return out.getvalue()


def line_with(text: str, *words: str) -> str:
    """Return the one line that begins with the first of some words, and holds all of them."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(words[0] + " ")]
    assert all(word in line for word in words), line
    return line


# -------------------------------------------------------------- files


def test_verdict_tells_each_count() -> None:
    """Words name everything that a check found, and a session that can't be read."""
    assert verdict(Check(acknowledged=3)) == "clean"
    assert verdict(Check(lost=1200, torn=2, refused=3)) == "1,200 lost, 2 torn, 3 refused"
    assert verdict(Check(error="ValueError: x")) == "unreadable: ValueError: x"
    assert verdict(None) == "unchecked"


def test_a_result_is_read_as_it_was_saved(tmp_path: Path) -> None:
    """Saving and loading gives the same result; the file also holds the multiples of the floor, by name."""
    path, one = str(tmp_path / "a.json"), result()
    save(one, path)
    assert load(path) == one
    told = orjson.loads(Path(path).read_bytes())["times_floor"]["append"]["some sizes"]
    assert told == {"shardstore": 2.5, "jsonl": 1.25, "floor-file": 1.0, "floor-record": pytest.approx(2.273)}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"rows": 3}', b"\xff"])
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes) -> None:
    """Any other file is a ValueError that names it, and so is a result of another version."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        load(str(path))
    save(msgspec.structs.replace(result(), version=99), str(path))
    with pytest.raises(ValueError, match="version 99"):
        load(str(path))


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=500))
def test_quantiles_span_the_samples(samples: list[float]) -> None:
    """A distribution rises from the least sample to the greatest."""
    found = quantiles(samples)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (round(min(samples), 2), round(max(samples), 2))


def test_floor_of_other_workloads_is_that_of_append() -> None:
    """Figures of several writers are read against one process's bare calls, of the same durability."""
    rows = [*result().rows, row("writers", "4 writers", "jsonl", 500.0), row("writers", "4 writers", "shardstore", 50)]
    one = result(rows)
    assert one.times_floor("writers", "4 writers", "jsonl") == 0.5
    assert one.times_floor("writers", "4 writers", "shardstore") == 5.0
    assert one.times_floor("append", "some sizes", "shardstore", "floor-record") == pytest.approx(1.1)
    assert one.times_floor("append", "some sizes", "shardstore-unsynced") is None


# -------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.4, "us", "0.4 µs"), (44.64, "us", "44.6 µs"), (1682, "us", "1.68 ms"), (999.6, "us", "1 ms"),
        (0, "ms", "0 µs"), (2.5, "s", "2.5 s"), (10396, "/s", "10.4 k/s"), (395, "/s", "395/s"), (2e6, "/s", "2 M/s"),
        (512, "MB/s", "512 MB/s"), (0.5, "MB/s", "500 kB/s"), (1, "MiB", "1.05 MB"), (12345, "tokens", "12,345"),
        (99.26, "%", "99.3%"), (1.071, "x", "1.07x"), (None, "us", ""),
    ],
)  # fmt: skip
def test_values_have_units_that_fit(value: float | None, unit: str, words: str) -> None:
    """A figure is shown with three digits in a unit of its size; a count as it is."""
    found = shown(value, unit)
    assert found.replace("0.400", "0.4").replace("2.50", "2.5") == words


def test_ratios_say_who_is_better() -> None:
    """More of a rate and less of a time are faster; what is neither is more or less, and better by its figure."""
    assert ratio_words(200, 100, RATE) == "2.00x faster"
    assert ratio_words(100, 200, RATE) == "2.00x slower"
    assert ratio_words(100, 200, P50) == "2.00x faster"
    assert ratio_words(3000, 200, P50) == "15x slower"
    assert ratio_words(2, 1, ROOM) == "2.00x more"
    assert ratio_words(100.1, 100, RATE) == ratio_words(0, 0, P50) == "same"
    assert ratio_words(None, 1, P50) == ""
    assert (is_better(200, 100, RATE), is_better(200, 100, P50), is_better(1, 1, P50)) == (True, False, None)
    assert (heading(RATE), heading(Figure("waited_p99", "ms", "less"))) == ("appends", "waited p99")


# -------------------------------------------------------------- tables


def test_table_compares_within_a_durability() -> None:
    """Durable and unsynced subjects are apart, each compared with shardstore's own kind, and with the floor's."""
    text = printed(result())
    assert text.index("durable") < text.index("jsonl ") < text.index("unsynced") < text.index("jsonl-unsynced")
    line_with(text, "jsonl", "200/s", "2.00x faster", "5 ms", "1.25", "clean")
    line_with(text, "jsonl-unsynced", "4 k/s", "2.00x slower")
    line_with(text, "shardstore", "2.50", "clean")
    assert "shardstore: 1.10 x the time of its own bare system calls" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_speed_without_a_clean_check_is_printed_as_such() -> None:
    """A figure whose check found something, or that has none, is marked, struck, and told below the table."""
    rows = [row("append", "some", "shardstore", 100), row("append", "some", "jsonl", 900, check=Check(lost=2))]
    rows.append(row("append", "some", "floor-file", 100, check=None))
    text = printed(result(rows))
    line_with(text, "jsonl", "900/s ✗", "9.00x faster", "2 lost")
    line_with(text, "floor-file", "100/s ✗", "unchecked")
    assert "no valid speed, for it does not hold what it acknowledged: jsonl; some: 2 lost" in text
    assert "| jsonl | ~~900/s ✗~~ |" in tables.markdown(result(rows))
    assert "~~" not in tables.markdown(result())


def test_a_table_that_is_too_wide_becomes_two() -> None:
    """However many figures a workload has, none is cut off, and each subject's name stands before all of its own."""
    names = [f"figure_{number}_of_many" for number in range(12)]
    many = [Described("append", "one", figures=[Figure(name, "us", "less") for name in names])]
    rows = [row("append", "a", "jsonl", 1, figures={name: 1000.0 + at for at, name in enumerate(names)})]
    text = printed(result(rows, workloads=many))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count(" ms") == len(names)
    assert text.count("jsonl ") == 2
    assert text.count("clean") == 1


def test_failed_and_missing_subjects_are_told() -> None:
    """Who failed, is missing or can't take part is named, with the reason."""
    rows = [*result().rows, row("append", "some sizes", "jsonl", 1, 3, figures={}, failed="OSError: full", check=None)]
    rows.append(row("writers", "2", "jsonl", 1, figures={}, failed="Timeout: 60 s", check=None, quantiles_us=[]))
    one = result(rows, missing={"lmdb": "pip install x"}, cannot={"append": {"jsonl-unsynced": "no order"}})
    for text in (printed(one), tables.markdown(one)):
        assert "failed: append, some sizes: jsonl: OSError: full" in text
        assert "1 of 4 failed" in text
        assert "failed: writers, 2: jsonl: Timeout: 60 s" in text
        assert "missing: lmdb: pip install x" in text
        assert "no part in append: jsonl-unsynced: no order" in text


def curve(**more: object) -> Result:
    """Return a result with a curve of writers."""
    rows = [
        row("writers", f"{writers} writers", name, rate * writers, x=float(writers), **more)
        for name, rate in RATES.items()
        if "floor" not in name
        for writers in (1, 4, 16)
    ]
    return result([*result().rows, *rows])


def test_a_curve_has_one_table_unless_details_are_wanted() -> None:
    """Cases that make a curve stand side by side, with ratios and multiples of the floor below; or each alone."""
    text = printed(curve())
    assert "writers · several append: appends" in text
    line_with(text.partition("writers ·")[2].partition("x floor")[0], "jsonl", "200/s", "800/s", "3.20 k/s")
    line_with(text.partition("append: x floor")[2], "jsonl", "1.25", "0.31", "0.08")
    assert "all checks clean" in text
    assert "writers · several append: 4 writers" in printed(curve(), details=True)
    unclean = printed(curve(check=Check(lost=1)))
    assert "200/s ✗" in unclean
    assert "all checks clean" not in unclean


# -------------------------------------------------------------- comparisons


def slowed(name: str, times: float) -> Result:
    """Return the same result with one subject slower."""
    rows = [
        row(one.workload, one.case, one.subject, one.figures["appends_per_s"] / (times if one.subject == name else 1),
            one.round)
        for one in result().rows
    ]  # fmt: skip
    return result(rows)


def saved(tmp_path: Path, *results: Result) -> list[str]:
    """Save results and return their paths."""
    paths = [str(tmp_path / f"{number}.json") for number in range(len(results))]
    for one, path in zip(results, paths, strict=True):
        save(one, path)
    return paths


def test_what_got_worse_comes_first_and_fails(tmp_path: Path) -> None:
    """A subject that is twice as slow is told first, whatever its figures count; within the threshold it is fine."""
    before, now = result(), slowed("jsonl", 2)
    worst = comparing.changes(before, now)[:2]
    assert {(one.subject, one.figure) for one in worst} == {("jsonl", RATE), ("jsonl", P50)}
    assert all(one.worse == pytest.approx(2) and one.is_regression(0.1) for one in worst)
    paths = saved(tmp_path, before, now)
    done = CliRunner().invoke(main, ["compare", *paths])
    assert done.exit_code == 1
    assert "2.00x slower" in done.output
    assert CliRunner().invoke(main, ["compare", *paths, "--threshold", "150"]).exit_code == 0
    assert CliRunner().invoke(main, ["compare", *paths, "-s", "shardstore"]).exit_code == 0
    assert CliRunner().invoke(main, ["compare", *reversed(paths)]).exit_code == 0


def test_noise_is_no_regression() -> None:
    """Rounds that overlap tell nothing; too few of them tell only what is worse by more than a factor of two."""

    def rates(*values: float) -> Result:
        return result([row("append", "some", "jsonl", value, number) for number, value in enumerate(values)])

    noisy = comparing.changes(rates(100, 200, 50), rates(60, 150, 90))
    assert not any(one.is_significant for one in noisy)
    for now, is_told in ((60, False), (10, True)):
        few = comparing.changes(rates(100, 100), rates(now, now))
        assert [one.is_regression(0.1) for one in few] == [is_told] * len(few)
    clear = comparing.changes(rates(100, 101, 99), rates(50, 51, 49))
    assert all(one.is_regression(0.1) and one.low <= one.worse <= one.high for one in clear)


def test_a_figure_that_is_gone_is_a_regression() -> None:
    """What was measured and is not any more says why."""
    before = result([row("append", "some", "jsonl", 100.0, 0)])
    now = result([row("append", "some", "jsonl", 100.0, 0)])
    now.rows = [msgspec.structs.replace(one, figures={}, note="it takes too long") for one in now.rows]
    assert [(one.broken, one.is_regression(0.1)) for one in comparing.changes(before, now)] == [
        ("no figure any more: it takes too long", True)
    ]


@given(st.lists(st.floats(1, 1e6), min_size=3, max_size=8))
def test_the_same_samples_are_never_worse(samples: list[float]) -> None:
    """The interval of a ratio of a thing to itself holds 1."""
    low, high = comparing.interval(samples, samples, more_is_better=True)
    assert low <= 1 <= high


def test_a_check_that_broke_is_a_regression(tmp_path: Path) -> None:
    """Lines lost where none were, or a failure that is new, fail a comparison however fast it is."""
    rows = result().rows
    lost = [row("append", "some sizes", "jsonl", 900, number, check=Check(lost=1)) for number in range(3)]
    failed = row("append", "some sizes", "jsonl", 1, 3, figures={}, failed="OSError: full", check=None)
    for now in (result([one for one in rows if one.subject != "jsonl"] + lost), result([*rows, failed])):
        assert comparing.changes(result(), now)[0].broken
        assert CliRunner().invoke(main, ["compare", *saved(tmp_path, result(), now)]).exit_code == 1


def test_other_machines_are_not_compared(tmp_path: Path) -> None:
    """Results of another machine or filesystem are refused, unless they shall be compared anyway."""
    other = result(machine=result().machine | {"filesystem": "btrfs"})
    paths = saved(tmp_path, result(), other)
    done = CliRunner().invoke(main, ["compare", *paths])
    assert done.exit_code == 2
    assert "filesystem: ext4 / btrfs" in done.output
    assert "--anyway" in done.output
    assert CliRunner().invoke(main, ["compare", *paths, "--anyway"]).exit_code == 0


def test_what_is_in_one_result_only_is_told(tmp_path: Path) -> None:
    """Workloads and subjects that only one side has are named, and the others compared."""
    before = result([one for one in result().rows if one.subject != "jsonl"])
    done = CliRunner().invoke(main, ["compare", *saved(tmp_path, before, curve())])
    assert done.exit_code == 0
    assert "only now: jsonl; writers" in done.output


def test_a_bad_file_is_an_error_in_words(tmp_path: Path) -> None:
    """What can't be read is named, without a traceback."""
    for command in (["show"], ["compare", str(tmp_path / "b")], ["plot", "--out", str(tmp_path)]):
        done = CliRunner().invoke(main, [*command, str(tmp_path / "none.json")])
        assert done.exit_code == 1
        assert "Error:" in done.output


# -------------------------------------------------------------- pictures


def test_pictures_of_what_a_result_has(tmp_path: Path) -> None:
    """Each workload that has rows becomes an SVG and a PNG, with every subject's name and what is better."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (path,) = saved(tmp_path, curve())
    done = CliRunner().invoke(main, ["plot", path, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    names = {one.name for one in (tmp_path / "out").iterdir()}
    kinds = ("overview", "latency", "append", "writers")
    assert names == {f"{name}.{kind}" for name in kinds for kind in ("svg", "png")}
    for name in kinds:
        text = (tmp_path / "out" / f"{name}.svg").read_text()
        assert all(word in text for word in ("shardstore", "jsonl", "better"))
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "higher is better" in (tmp_path / "out" / "writers.svg").read_text()


def test_pictures_mark_what_is_not_clean(tmp_path: Path) -> None:
    """A subject that lost something is marked in the picture, and told below it."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from benchmarks import plots

    rows = [row("append", "some", "shardstore", 9.0), row("append", "some", "jsonl", 9.0, check=Check(lost=1))]
    plots.draw(result(rows), str(tmp_path))
    text = (tmp_path / "append.svg").read_text()
    assert "jsonl ✗" in text
    assert "did not hold what it acknowledged: jsonl" in text


WORKLOADS: dict[str, Callable[[str, float], Row]] = {
    "load": lambda name, x: row("load", f"{x:g}", name, x, x=x, figures={"ms": x, "entries_per_s": 9.0}),
    "last": lambda name, x: row("last", f"{x:g}", name, x, x=x, figures={"open_p50": x}),
    "growth": lambda name, x: row("growth", f"{x:g}", name, x, x=x, figures={"p50": x}),
    "footprint": lambda name, x: row(
        "footprint", "all", name, x, figures={"disk": x, "disk_after": 1, "inodes": x, "inodes_after": 1}
    ),
    "turns": lambda name, x: row(
        "turns", "all", name, x, figures={"turns_kept": 80.0, "turns_lost": 1, "turns_failed": 3, "tokens_wasted": 900}
    ),
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_pictures_of_one_workload_alone(workload: str, tmp_path: Path) -> None:
    """Any part of the workloads can be drawn by itself, with zeros, one round, and subjects that have no figure."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from benchmarks import plots

    rows = [WORKLOADS[workload](name, x) for name in NAMES[:4] for x in (10.0, 100.0)]
    rows.append(row(workload, "100", "floor-file", 1, figures={}, failed="OSError: full", check=None, quantiles_us=[]))
    figures = [Figure(name, "us", "less") for name in rows[0].figures]
    drawn = plots.draw(result(rows, workloads=[Described(workload, "something", figures=figures)]), str(tmp_path))
    assert drawn
    assert all(Path(path).stat().st_size > 1000 for path in drawn)
    if workload == "turns":
        assert "1 lost, 3 failed" in (tmp_path / "turns.svg").read_text()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lacks matplotlib is told what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["plot", *saved(tmp_path, result()), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "shardstore[bench]" in done.output
