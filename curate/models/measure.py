r"""What a model makes of held-out examples: the loss of their answers, and whether its own answers are right.

    nll_i = −Σ_t log p(y_t | x, y_<t)       over the tokens of the last answer, its end token included; nats

Loss per token of a task is Σ nll / Σ tokens over its rows.  What stands before the last answer is the prompt; the mask
is that of training (``curate.models.template`` with turns "last").  The model's own answer is its greedy one.

Where an answer can be told right or wrong without a judge, ``curate.verifiers`` does it, by one verifier a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.models.base import CausalLM, Generation, Sampling
from curate.models.template import EncodedRow, Encoder
from curate.verifiers.base import Finding, Item, Verifier
from curate.verifiers.choose import Chosen, make, verifier_of
from curate.verifiers.sandbox import Limits

if TYPE_CHECKING:
    from curate.verifiers.choose import Name

MEASURED = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("nll", pa.float64()),  # nats, summed over the answer's tokens; null with a reason
        pa.field("tokens", pa.int64(), nullable=False),  # that were scored; 0 where nll is null
        pa.field("reason", pa.string()),  # why there is no nll
        pa.field("correct", pa.bool_()),  # null where it cannot be told; the outcome says why
        pa.field("answer", pa.string()),  # what the model wrote; null where it was not asked
        pa.field("written", pa.int64()),  # tokens of that
        pa.field("found", pa.string()),  # what was taken for its answer
        pa.field("outcome", pa.string(), nullable=False),  # "right", "wrong", "no number", "code was not run" …
    ]
)

MOST_TOKENS = 512
"""Of an answer, where nothing else is asked."""
NO_TASK = "examples"
"""The task of rows that name none."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What is asked of the model beside the loss."""

    generate: bool = True
    """Whether it answers the rows that can be verified: what takes the time."""
    verifiers: Mapping[str, Name] = field(default_factory=dict)
    """Task → "number", "option", "exact", "code" or "none", where ``verifier_of`` is not to choose."""
    new_tokens: int | Mapping[str, int] | None = None
    """Tokens of its answers at most, for all tasks or by task; else half as many again as the task's longest reference
    answer has, and 8 more, at most 512."""
    run_code: bool = False
    """Whether code that it writes may run on this machine; see ``curate.verifiers.sandbox``."""
    limits: Limits = field(default_factory=Limits)
    """Of each program."""


@dataclass(frozen=True)
class Plan:
    """How a set of examples is measured: the same for every model, and made without one."""

    rows: list[EncodedRow]
    reasons: list[str | None]
    """Why a row has no loss."""
    tasks: list[str]
    items: list[Item]
    chosen: dict[str, Chosen]
    """Task → its verifier, and why that one."""
    refusals: list[str | None]
    """Why a row's answer is not asked for."""
    new_tokens: dict[str, int]
    """Task → tokens of an answer at most; of the tasks in which any is asked for."""

    def describe(self) -> list[str]:
        """Return a line a task: its rows, its verifier and why, and what is left out."""
        lines = []
        for task, chosen in self.chosen.items():
            its = [i for i, name in enumerate(self.tasks) if name == task]
            asked = sum(self.refusals[i] is None for i in its)
            lost = Counter(self.reasons[i] for i in its if self.reasons[i] is not None)
            told = "".join(f"; {count:,} without a loss: {reason}" for reason, count in sorted(lost.items()))
            limit = f", at most {self.new_tokens[task]} tokens" if task in self.new_tokens else ""
            lines.append(
                f"{task}: {len(its):,} rows, verified by {chosen.name} ({chosen.why}), "
                f"{asked:,} answers asked{limit}{told}"
            )
        return lines


def plan(examples: pa.Table, encoder: Encoder, *, context: int | None, asking: Asking | None = None) -> Plan:
    """Return how examples are to be measured.

    Parameters
    ----------
    examples : "id" and "messages"; "tools", "group" (the task) and "extra" (other columns, JSON) where there are any.
    encoder : of the model's tokenizer, with turns "last".
    context : tokens that the model reads at most; a longer row has no loss, it is not cut.

    Raises
    ------
    InputError
        If columns are missing, the encoder is of all turns, or a task is named that no row has.
    """
    asking = asking or Asking()
    missing = [name for name in ("id", "messages") if name not in examples.column_names]
    if missing:
        raise InputError(f"measure: the columns id and messages were asked; {', '.join(missing)} is missing.")
    if encoder.turns != "last":
        raise InputError(
            f"measure: an encoder with turns='last' was asked, turns={encoder.turns!r} was found: the loss is that of "
            "the last answer, and so is what the model is asked for."
        )
    n = examples.num_rows
    columns: dict[str, list[Any]] = {
        name: examples[name].to_pylist() if name in examples.column_names else [None] * n
        for name in ("messages", "tools", "group", "extra")
    }
    tasks = [task or NO_TASK for task in columns["group"]]
    _check_tasks(asking, tasks)
    rows = encoder.encode(columns["messages"], columns["tools"])
    items = [Item.of(*pair) for pair in zip(columns["messages"], columns["extra"], strict=True)]
    reasons = [_no_loss(row, context) for row in rows]
    refusals: list[str | None] = [None] * n
    chosen, limits = {}, {}
    for task in dict.fromkeys(tasks):
        its = [i for i, name in enumerate(tasks) if name == task]
        chosen[task] = verifier_of([items[i] for i in its], asking.verifiers.get(task))
        verifier = make(chosen[task].name, run_code=asking.run_code, limits=asking.limits)
        for i in its:
            refusals[i] = _not_asked(verifier, chosen[task], items[i], rows[i], context, asking)
        asked = [i for i in its if refusals[i] is None]
        if asked:
            limits[task] = _most(asking, task, [int(rows[i].mask.sum()) for i in asked])
    return Plan(rows, reasons, tasks, items, chosen, refusals, limits)


def _check_tasks(asking: Asking, tasks: Sequence[str]) -> None:
    by_task = asking.new_tokens if isinstance(asking.new_tokens, Mapping) else {}
    unknown = sorted({*asking.verifiers, *by_task} - set(tasks))
    if unknown:
        raise InputError(
            f"measure: settings for {', '.join(map(repr, unknown))} were given; the examples' tasks are "
            f"{', '.join(map(repr, sorted(set(tasks))))}."
        )
    numbers = by_task.values() if by_task else [] if asking.new_tokens is None else [asking.new_tokens]
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        raise InputError(f"measure: new_tokens={asking.new_tokens!r}; at least 1 was asked.")


def _no_loss(row: EncodedRow, context: int | None) -> str | None:
    if row.reason is not None:
        return row.reason
    if not row.mask.any():
        return "no token is in the loss"
    if context is not None and row.ids.size > context:
        return f"longer than the model's context of {context} tokens"
    return None


def _not_asked(
    verifier: Verifier | None, chosen: Chosen, item: Item, row: EncodedRow, context: int | None, asking: Asking
) -> str | None:
    """Return why the model is not asked to answer a row."""
    if verifier is None:
        return "not verified" if chosen.why == "asked for" else chosen.why
    if (refused := verifier.refusal(item)) is not None:
        return refused
    if not asking.generate:
        return "answers were not asked for"
    if row.reason is not None or not row.mask.any():
        return row.reason or "no token is in the loss"
    prompt = int(row.mask.argmax())
    if context is not None and prompt >= context:
        return f"the prompt fills the model's context of {context} tokens"
    return None


def _most(asking: Asking, task: str, references: Sequence[int]) -> int:
    given = asking.new_tokens.get(task) if isinstance(asking.new_tokens, Mapping) else asking.new_tokens
    return given or min(MOST_TOKENS, max(references) * 3 // 2 + 8)


def measure(
    lm: CausalLM, encoder: Encoder, examples: pa.Table, *, asking: Asking | None = None, planned: Plan | None = None
) -> pa.Table:
    """Return what the model makes of each example: a table ``MEASURED``, one row per example, in order.

    A row that cannot be measured is null, with its reason; a model that gives no numbers (NaN, infinity) has null
    losses and is not asked for answers.

    Parameters
    ----------
    planned : what ``plan`` returned for these examples, to spare several models the same work.

    Raises
    ------
    InputError
        See ``plan``.
    ModelError
        If the model fails.
    """
    asking = asking or Asking()
    how = planned or plan(examples, encoder, context=lm.context, asking=asking)
    if len(how.rows) != examples.num_rows:
        raise InputError(f"measure: a plan of {len(how.rows)} rows was given for {examples.num_rows} examples.")
    nll, tokens, reasons = _losses(lm, how)
    findings, written = _answers(lm, encoder, how, asking, broken=_BROKEN in reasons)
    arrays = [
        how.tasks,
        examples["id"].to_pylist(),
        [None if np.isnan(value) else value for value in nll.tolist()],
        tokens,
        reasons,
        [finding.correct for finding in findings],
        [None if text is None else text.text for text in written],
        [None if text is None else text.tokens for text in written],
        [finding.found for finding in findings],
        [finding.outcome for finding in findings],
    ]
    return pa.table([pa.array(a, f.type) for a, f in zip(arrays, MEASURED, strict=True)], schema=MEASURED)


_BROKEN = "the model's loss is not a number"


def _losses(lm: CausalLM, how: Plan) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str | None]]:
    """Return nll (n,), NaN where there is none, tokens (n,) and reasons."""
    reasons = list(how.reasons)
    nll = np.full(len(reasons), np.nan)
    tokens = np.zeros(len(reasons), dtype=np.int64)
    able = [i for i, reason in enumerate(reasons) if reason is None]
    found = lm.token_logprobs([(how.rows[i].ids, how.rows[i].mask) for i in able])
    for i, logprobs in zip(able, found, strict=True):
        if logprobs is None:
            reasons[i] = f"out of memory at {how.rows[i].ids.size} tokens"
        elif not np.isfinite(logprobs).all():
            reasons[i] = _BROKEN
        else:
            nll[i], tokens[i] = -logprobs.sum(dtype=np.float64), logprobs.size
    return nll, tokens, reasons


def _answers(
    lm: CausalLM, encoder: Encoder, how: Plan, asking: Asking, *, broken: bool
) -> tuple[list[Finding], list[Generation | None]]:
    """Return what became of the model's answer to each row, and the answer."""
    findings = [Finding(None, refusal or _BROKEN) for refusal in how.refusals]
    written: list[Generation | None] = [None] * len(findings)
    if broken:
        return findings, written
    # A base model that has answered goes on with the next question; a chat model ends its turn.
    stop = ("\nQuestion:",) if encoder.kind == "plain" else ()
    for task, limit in how.new_tokens.items():
        asked = [i for i, name in enumerate(how.tasks) if name == task and how.refusals[i] is None]
        verifier = make(how.chosen[task].name, run_code=asking.run_code, limits=asking.limits)
        assert verifier is not None
        prompts = [how.rows[i].ids[: int(how.rows[i].mask.argmax())] for i in asked]
        for i, texts in zip(asked, lm.generate(prompts, Sampling(max_tokens=limit, stop=stop)), strict=True):
            if texts is None:
                findings[i] = Finding(None, f"out of memory at a prompt of {prompts[asked.index(i)].size} tokens")
                continue
            written[i] = texts[0]
            findings[i] = verifier.check(how.items[i], texts[0].text, finished=texts[0].finished)
    return findings, written


def summary(measured: pa.Table) -> list[dict[str, Any]]:
    """Return a row a task: rows, loss per token, accuracy, and how many rows had neither and why."""
    out = []
    tasks = measured["task"].to_pylist()
    for task in dict.fromkeys(tasks):
        its = measured.filter(pa.array([name == task for name in tasks]))
        tokens = sum(its["tokens"].to_pylist())
        told = [value for value in its["correct"].to_pylist() if value is not None]
        out.append(
            {
                "task": task,
                "rows": its.num_rows,
                "nll": sum(v for v in its["nll"].to_pylist() if v is not None) / tokens if tokens else None,
                "tokens": tokens,
                "accuracy": sum(told) / len(told) if told else None,
                "verified": len(told),
                "reasons": dict(Counter(reason for reason in its["reason"].to_pylist() if reason is not None)),
            }
        )
    return out
