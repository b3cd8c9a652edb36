"""Targets that stand in training rows: by keys, by words, by wrapper; order and batches change nothing."""

from __future__ import annotations

import pyarrow as pa
import pytest

from curate.evaluation import overlap
from curate.evaluation.overlap import overlapping
from curate.example import keys
from curate.exceptions import InputError

STORY = "janet has sixteen ducks that lay one egg a day and she eats three of them for breakfast"
WORK = "first take the eggs that are eaten from those that are laid then multiply what is left by two"


def table(*rows: tuple[str, ...], system: str | None = None, task: str | None = None) -> pa.Table:
    """(question, answer …) → examples; several turns where there are more."""
    made = []
    for i, turns in enumerate(rows):
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[j % 2], "content": text} for j, text in enumerate(turns)]
        content, prompt = keys(messages, None)
        made.append({"id": f"r{i}", "messages": messages, "group": task, "content_key": content, "prompt_key": prompt})
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("messages", kind), ("group", pa.string()),
                        ("content_key", pa.binary(16)), ("prompt_key", pa.binary(16))])  # fmt: skip
    return pa.Table.from_pylist(made, schema)


def test_each_way_of_standing_in_the_training_rows():
    targets = table(
        ("capital of norway?", "oslo"),
        ("capital of peru?", "lima"),
        ("capital of chad?", "it is n'djamena"),
        (STORY, "13"),
        ("how much?", WORK),
        ("capital of fiji?", "suva"),
    )
    training = table(
        ("capital of norway?", "oslo"),
        ("capital of peru?", "some other town"),
        ("hello", "hi", "Capital of Chad?!", "yes"),
        ("a riddle", "here: " + STORY.upper() + ", and so on"),
        (WORK.replace("two", "three"), "…"),
    )
    found = overlapping(targets, training)
    assert found.mask.tolist() == [True] * 5 + [False]
    assert found.how == [
        "the same conversation", "the same prompt", "words of its prompt", "words of its prompt", "words of its answer",
        None,
    ]  # fmt: skip
    assert found.where == ["r0", "r1", "r2", "r3", "r4", None]
    assert found.share.tolist() == pytest.approx([1, 1, 1, 1, 6 / 7, 0])
    assert found.counts == {
        "the same conversation": 1, "the same prompt": 1, "words of its prompt": 2, "words of its answer": 1
    }  # fmt: skip
    assert found.by_task(["a", "a", None, "b", "c", "c"]) == {"a": 2, "": 1, "b": 1, "c": 1}
    assert overlapping(targets, training, allowed=0.9).mask.tolist() == [True] * 4 + [False] * 2
    assert overlapping(targets, training, allowed=1.0).mask.tolist() == [True] * 2 + [False] * 4


def test_short_answers_and_the_wrapper_of_a_task_give_nobody_away():
    wrapper = "classify the intent of this request to a voice assistant and answer with one label request: "
    targets = table(*((wrapper + f"number {word}", "yes") for word in ("one", "two", "three", "four", "five", "six")))
    training = table((wrapper + "another", "yes"), ("yes?", "yes"))
    assert not overlapping(targets, training).mask.any()
    assert overlapping(targets, training, common=1.0).mask.all()  # without the notion of a wrapper all would be
    assert overlapping(targets, table((wrapper + "number six", "no"))).mask.tolist() == [False] * 5 + [True]


def test_what_one_task_has_in_common_another_may_not():
    shared = "a long sentence of many words that each of the rows of one task begins with and goes on"
    rows = [(f"{shared} {word}", "yes") for word in ("one", "two", "three", "four", "five", "six")]
    both = pa.concat_tables([table(*rows, task="many"), table((f"{shared} once", "yes"), task="alone")])
    assert overlapping(both, table((f"{shared} again", "no"))).mask.tolist() == [False] * 6 + [True]
    answers = pa.concat_tables([table(*rows), table(("then?", f"{shared} once"))])  # nor questions and answers
    assert overlapping(answers, table((f"{shared} again", "no"))).how[-2:] == [None, "words of its answer"]


def test_one_row_may_hold_many_targets_and_many_rows_one():
    targets = table((STORY, "a"), (WORK, "b"), (STORY, "a"), (STORY, "c"))
    both = overlapping(targets, table((f"{STORY} {WORK}", "x")))
    assert both.mask.all() and both.where == ["r0"] * 4
    best = overlapping(targets, table((STORY[:-15], "x"), (STORY, "x"), (STORY, "c")))
    assert best.where == ["r1", None, "r1", "r2"]
    assert best.how == ["the same prompt", None, "the same prompt", "the same conversation"]


def test_batches_and_their_order_change_nothing(monkeypatch):
    targets = table((STORY, "13"), (WORK, "x"), ("else?", "no"))
    training = table(("a", "b"), (STORY, "13"), ("c", WORK), ("d", "e"), (STORY, "14"))
    whole = overlapping(targets, training)
    monkeypatch.setattr(overlap, "_ROWS", 2)
    for given in (
        training,
        [training.slice(0, 1), training.slice(1)],
        iter([training]),
        training.take([4, 3, 2, 1, 0]),
    ):
        found = overlapping(targets, given)
        assert (found.how, found.share.tolist()) == (whole.how, whole.share.tolist())
        assert found.mask.tolist() == [True, True, False]
    assert found.where[1] == "r2"
    monkeypatch.setattr(overlap, "_ROWS", 1)
    more = overlapping(table((STORY, "13")), table((STORY[:-15], "a"), ("x", "y", STORY, "b"), (STORY[:-20], "c")))
    assert (more.where, more.share.tolist()) == (["r1"], [1.0])  # of batches, too, the row that holds most is told


def test_empty_sides_and_rows_without_text():
    targets, training = table((STORY, "13"), ("", ""), ("?!", "")), table((STORY, "13"), ("", " "))
    assert overlapping(targets, training.slice(0, 0)).mask.tolist() == [False] * 3
    assert overlapping(targets, []).counts == {}
    assert overlapping(targets.slice(0, 0), training).mask.tolist() == []
    assert overlapping(table(("", "")), training).how == ["the same prompt"]
    assert overlapping(targets, training).mask.tolist() == [True, True, False]
    unanswered = table((STORY,))
    assert overlapping(unanswered, training).mask.all()


def test_what_cannot_be_meant_is_refused():
    rows = table(("a", "b"))
    with pytest.raises(InputError, match=r"n=1, common=0\.01, allowed=0\.0; at least 2 words"):
        overlapping(rows, rows, n=1)
    for wrong in ({"common": 0.0}, {"allowed": -0.1}, {"allowed": 1.5}):
        with pytest.raises(InputError, match="were asked"):
            overlapping(rows, rows, **wrong)
    with pytest.raises(InputError, match=r"the training rows lack \['prompt_key'\]"):
        overlapping(rows, rows.drop_columns(["prompt_key"]))
    with pytest.raises(InputError, match=r"the targets lack \['messages'\]"):
        overlapping(rows.drop_columns(["messages"]), rows)
