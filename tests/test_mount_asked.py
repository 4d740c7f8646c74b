"""What was said of a session by name counts for a moment, and never after this mount has changed the name."""

from __future__ import annotations

import pytest

from shardstore.mount import asked
from shardstore.mount.asked import Asked
from shardstore.mount.handles import Facts

FACTS = Facts(id="s", size_bytes=1, mtime_ms=2, created_ms=3, ino=4)


@pytest.fixture(autouse=True)
def long_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a moment outlast any test."""
    monkeypatch.setattr(asked, "FRESH_S", 3600.0)


def test_an_answer_is_used_again() -> None:
    """It is kept under its name, until there is another."""
    answers = Asked()
    assert answers.fresh("s.jsonl") is None
    assert answers.ask("s.jsonl", lambda: FACTS) is answers.fresh("s.jsonl") is FACTS
    assert answers.fresh("t.jsonl") is None
    assert answers.ask("s.jsonl", lambda: None) is answers.fresh("s.jsonl") is None


def test_an_old_answer_is_only_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its moment it is used no more, but for who asks for what was said last."""
    answers = Asked()
    answers.ask("s.jsonl", lambda: FACTS)
    monkeypatch.setattr(asked, "FRESH_S", 0.0)
    assert answers.fresh("s.jsonl") is None
    assert answers.last("s.jsonl") is FACTS


def test_what_was_asked_before_a_change_is_not_kept() -> None:
    """An answer that comes after a name has changed, to a question from before, is for the asker alone."""
    answers = Asked()
    answers.ask("s.jsonl", lambda: FACTS)

    def answer() -> Facts:
        answers.forget("s.jsonl", "t.jsonl")
        return FACTS

    assert answers.ask("s.jsonl", answer) is FACTS
    assert answers.fresh("s.jsonl") is answers.last("s.jsonl") is None


def test_no_more_names_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound all are forgotten, and asked for anew."""
    monkeypatch.setattr(asked, "NAMES_MAX", 2)
    answers = Asked()
    for name in "abc":
        answers.ask(name, lambda: FACTS)
    assert [answers.fresh(name) for name in "abc"] == [None, None, FACTS]
