"""Batches in halves where memory runs out: every row answered once or told to be too large, and nothing else caught."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curate.models.halving import in_halves, ran_out, smaller_budget


def scripted(sizes: Sequence[int], room: int, fits: int = 10**9) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Answers of rows of given sizes where ``room`` fits; the batches tried, and those halved."""
    out = [""] * len(sizes)
    tried: list[list[int]] = []
    halved: list[list[int]] = []

    def work(rows: Sequence[int]) -> None:
        tried.append(list(rows))
        for j in rows:  # some answers are written before memory runs out
            if sum(sizes[i] for i in rows) > room:
                raise torch.OutOfMemoryError("no room")
            out[j] += "done"

    def alone(j: int) -> None:
        out[j] += "alone"

    in_halves(
        list(range(len(sizes))),
        work,
        device="cpu",
        halved=lambda rows: halved.append(list(rows)),
        alone=alone,
        fits=lambda rows: len(rows) <= fits,
    )
    return out, tried, halved


def test_halves_by_hand() -> None:
    out, tried, halved = scripted([5, 1, 1, 1, 1], room=3)
    assert out == ["alone", "done", "done", "done", "done"]
    assert tried == [[0, 1, 2, 3, 4], [0, 1], [0], [1], [2, 3, 4]]
    assert halved == [[0, 1, 2, 3, 4], [0, 1]]


def test_what_does_not_fit_is_halved_untried_and_a_single_row_is_tried() -> None:
    out, tried, halved = scripted([1, 1, 1], room=9, fits=0)
    assert out == ["done"] * 3 and tried == [[0], [1], [2]] and halved == []


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 30), st.integers(0, 20))
def test_each_row_is_answered_once(sizes: list[int], room: int, fits: int) -> None:
    out, tried, halved = scripted(sizes, room, fits)
    assert out == ["done" if size <= room else "alone" for size in sizes]
    assert all(len(rows) > 1 for rows in halved) and all(len(rows) <= max(fits, 1) for rows in tried)


def test_another_error_is_not_swallowed() -> None:
    def broken(_: Sequence[int]) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_halves([1, 2], broken, device="cpu", halved=lambda _: None, alone=lambda _: None)


def test_free_memory_of_a_gpu_is_given_back_once_the_error_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    class Big:
        def __del__(self) -> None:
            held.append("freed")

    def work() -> None:
        big = Big()  # noqa: F841
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append("emptied"))
    assert ran_out(work, "cuda:1") and held == ["freed", "emptied"]
    assert ran_out(work, "cpu") and held[2:] == ["freed"]
    assert not ran_out(lambda: None, "cuda")


def test_a_smaller_budget_never_grows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="curate"):
        assert smaller_budget(1000, 9, 100) == 400
    assert caplog.messages == ["out of memory at 9 rows of 100 tokens; batches of 400 tokens from here on."]
    assert smaller_budget(300, 9, 100) == 300  # another thread has made it smaller since
