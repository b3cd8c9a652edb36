"""Corrections: after a step of the selection, some of its rows get another answer.

    rows that went into the step ──stages of the correction──► what models wrote and judged (sidecars, as of any stage)
                                                                       │
                      the corrector's rule, part by part ◄─────────────┘
                                   │
             corrections/NAME-…/part (old and new, rule, confidence)  ──►  the selection: replaced, kept, dropped, or
                                                                           as the step said

The stages run when the correction comes, because some learn from what the selection has kept.  What they found is kept
like any score: a run that was stopped goes on, and a corrector with other parameters asks no model again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.correction import Corrector
from curate.exceptions import StageError
from curate.fingerprint import fingerprint
from curate.pipelines.executor import Task
from curate.pipelines.fitting import Fitting
from curate.pipelines.index import Index, Part
from curate.pipelines.scoring import Asked, Scoring
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage

if TYPE_CHECKING:
    from curate.recipe_parts import Correction

VERSION = 1
"""Raised whenever the same evidence would be corrected, or written down, otherwise."""
ACTIONS = ("replace", "keep", "drop")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("action", pa.string()),  # replace | keep | drop; null: as the selection says
        pa.field("applied", pa.bool_(), nullable=False),  # whether the action was taken: it was not reverted
        pa.field("old", pa.string()),  # the answer; null where the row has none
        pa.field("new", pa.string()),  # where the action is "replace"
        pa.field("confidence", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("prompt", pa.string()),
    ]
)


@dataclass(frozen=True)
class Outcome:
    """What a correction says of the rows that it looked at, (m,) arrays in the order of ``rows``."""

    rows: NDArray[np.int64]
    """Places in the pool."""
    action: NDArray[np.int8]
    """Number of the action in ``ACTIONS``; -1 where none was taken."""
    rule: NDArray[np.int32]
    """Index into ``rules``."""
    rules: list[str]
    confidence: NDArray[np.float64]
    directory: str
    """Where it is written down."""
    warning: str | None = None


@dataclass(frozen=True)
class Correcting:
    """Carries out the corrections of a run."""

    store: Store
    index: Index
    stages: dict[str, Stage]
    fitting: Fitting
    scoring: Scoring

    def __call__(
        self, correction: Correction, rows: NDArray[np.int64], kept: NDArray[np.int64], taken: NDArray[np.int64]
    ) -> Outcome:
        """Return what becomes of rows.

        Parameters
        ----------
        rows : places in the pool of the rows that the correction looks at.
        kept : of those that the selection has kept so far, which a model may be trained on.
        taken : of those that an earlier correction has replaced.

        Raises
        ------
        StageError
            If a model is to be trained on the rows that were kept, and there are none.
        """
        rows = np.sort(rows)
        asked = self._mask(rows)
        fitting = dataclasses.replace(self.fitting, kept=kept)
        own = sorted(correction.own, key=lambda name: self.stages[name].scorer.of is not None)
        for name in own:
            stage = self.stages[name]
            if stage.fitted and stage.scorer.fits_on == "kept" and not kept.size:
                raise StageError(
                    f"{name}: it trains on the rows that the selection has kept so far, and there are none."
                )
            base = stage.fingerprint
            stage = self.stages[name] = fitting.fit(stage, self.stages)
            self.store.write_json({"base": base, "fingerprint": stage.fingerprint}, ".curate", "late", f"{name}.json")
            self.scoring.score([stage], asked)
        return self._decide(correction, rows, asked, taken)

    def _mask(self, rows: NDArray[np.int64]) -> Asked:
        """Return which of each part's rows that are no copies are among ``rows``."""
        chosen = np.zeros(self.index.n, dtype=bool)
        chosen[rows] = True
        return {part.stem: chosen[self._places(part)] for part in self.index.parts}

    def _places(self, part: Part) -> NDArray[np.int64]:
        place = self.index.place[part.start : part.start + part.rows]
        return place[place >= 0]

    def _decide(
        self, correction: Correction, rows: NDArray[np.int64], asked: Asked, taken: NDArray[np.int64]
    ) -> Outcome:
        others = self._mask(np.empty(0, dtype=np.int64) if correction.corrector.overrules else taken)
        parts = [part for part in self.index.parts if asked[part.stem].any()]
        masks = [[p.stem, np.packbits(np.r_[asked[p.stem], others[p.stem]]).tobytes().hex()] for p in parts]
        mark = fingerprint(
            "correct",
            VERSION,
            self.index.fingerprint,
            correction.corrector.identity(),
            {role: self.stages[name].key for role, name in correction.stages.items()},
            masks,
            correction.revert,
        )
        directory = f"corrections/{correction.name}-{mark}"
        there = set(self.store.list(directory))
        evidence = {role: self.stages[name].directory for role, name in correction.stages.items()}
        models, prompts = self._made_by(correction)
        corrector = _Told(correction.corrector, evidence, models, prompts, correction.revert)
        tasks: list[Task] = [
            (
                f"{correction.name} {part.stem}",
                correct_part,
                (
                    self.store,
                    directory,
                    corrector,
                    part.name,
                    self.index.kept(part),
                    asked[part.stem],
                    others[part.stem],
                ),
            )
            for part in parts
            if part.name not in there
        ]
        for _ in self.scoring.map(tasks):
            pass
        action = np.full(self.index.n, -1, dtype=np.int8)
        rule = np.zeros(self.index.n, dtype=np.int32)
        confidence = np.full(self.index.n, np.nan)
        words: dict[str, int] = {}
        tables = self.store.read_tables(directory, [p.name for p in parts], ["action", "applied", "rule", "confidence"])
        for part, table in zip(parts, tables, strict=True):
            at = self._places(part)[asked[part.stem]]
            found = zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)
            for place, (what, applied, why, sure) in zip(at.tolist(), found, strict=True):
                action[place] = ACTIONS.index(what) if what is not None and applied else -1
                rule[place] = words.setdefault(why, len(words))
                confidence[place] = np.nan if sure is None else sure
        warning = self._warning(correction) or _nearly_all(rule[rows], list(words))
        return Outcome(rows, action[rows], rule[rows], list(words), confidence[rows], directory, warning)

    def _made_by(self, correction: Correction) -> tuple[str | None, str | None]:
        """Return the models and the prompts behind a correction, each with the role that it has."""
        models, prompts = [], []
        for role, name in correction.stages.items():
            scorer = self.stages[name].scorer
            model = scorer.params().get("model")
            if model is not None:
                local = os.path.basename(os.path.normpath(str(model))) if os.path.isdir(str(model)) else str(model)
                trained = ", trained on the rows kept" if self.stages[name].fitted else ""
                models.append(f"{role}: {local}{trained}")
            prompt = scorer.identity().get("prompt")
            if isinstance(prompt, Mapping):
                prompts.append(f"{role}: {prompt['name']}, version {prompt['version']}")
        return "; ".join(models) or None, "; ".join(prompts) or None

    def _warning(self, correction: Correction) -> str | None:
        """Tell of a judge that is asked about its own words: it is the model, untrained, that wrote the candidates."""
        roles = {role: self.stages[name] for role, name in correction.stages.items() if name in correction.own}
        if not {"candidates", "verdict"} <= set(roles) or roles["candidates"].fitted:
            return None
        models = [roles[role].scorer.identity().get("model") for role in ("candidates", "verdict")]
        if models[0] is None or models[0] != models[1]:
            return None
        return "the judge's own model, untrained, wrote the candidates: train it, or name another"


_USELESS = ("the candidate ", "the own answer ", "the prediction ", "no candidate", "no verdict", "the orders disagree")
"""How rules begin that tell of a model of no use, where they hold of nearly all rows."""


def _nearly_all(rule: NDArray[np.int32], words: list[str]) -> str | None:
    """Tell of a model that says the same of nearly all rows: its answers are empty, are cut, go by the order."""
    if rule.size < 20:
        return None
    counts = np.bincount(rule, minlength=len(words))
    top = int(counts.argmax())
    useless = words[top].startswith(_USELESS) and words[top] != "the candidate is better"
    if counts[top] <= 0.9 * rule.size or not useless:
        return None
    return f"{counts[top]:,} of {rule.size:,} rows: {words[top]}"


@dataclass(frozen=True)
class _Told:
    """A corrector, and all that it is told besides the rows."""

    corrector: Corrector
    evidence: dict[str, str]
    """Role → the directory of what its stage found."""
    models: str | None
    prompts: str | None
    revert: tuple[str, ...] | str


# -- in a worker -------------------------------------------------------------------------------------------------------


def correct_part(
    store: Store,
    directory: str,
    told: _Told,
    part: str,
    kept: NDArray[np.bool_],
    asked: NDArray[np.bool_],
    taken: NDArray[np.bool_],
) -> int:
    """Write what becomes of the rows of one part that are asked about; return how many these are.

    ``kept`` says which rows of the part are no copies; ``asked`` and ``taken`` speak of those.
    """
    rows = pa.array(np.flatnonzero(kept)[asked])
    examples = store.read_table("examples", part, columns=["id", "messages"]).take(rows)
    at = pa.array(np.flatnonzero(asked))
    evidence = {role: store.read_table(where, part).take(at) for role, where in told.evidence.items()}
    found = told.corrector.correct(examples, evidence)
    ids = examples.column("id").to_pylist()
    old = [_answer(messages) for messages in examples.column("messages").to_pylist()]
    action, new, rule = list(found.action), list(found.answer), list(found.rule)
    applied = [what is not None for what in action]
    for i, earlier in enumerate(taken[asked].tolist()):
        if earlier and applied[i]:
            applied[i], rule[i] = False, "an earlier correction has replaced the answer"
        elif applied[i] and (told.revert == "all" or ids[i] in told.revert):
            applied[i], rule[i] = False, f"reverted; else: {rule[i]}"
    n, threshold = len(ids), told.corrector.threshold
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "action": pa.array(action, pa.string()),
            "applied": pa.array(applied, pa.bool_()),
            "old": pa.array(old, pa.string()),
            "new": pa.array(new, pa.string()),
            "confidence": pa.array(found.confidence, pa.float64(), from_pandas=True),
            "threshold": pa.array([threshold] * n, pa.float64()),
            "rule": pa.array(rule, pa.string()),
            "model": pa.array([told.models] * n, pa.string()),
            "prompt": pa.array([told.prompts] * n, pa.string()),
        },
        schema=SCHEMA,
    )
    store.write_table(table, *directory.split("/"), part)
    return n


def _answer(messages: list[Mapping[str, Any]]) -> str | None:
    return next((m["content"] for m in reversed(messages) if m["role"] == "assistant"), None)
