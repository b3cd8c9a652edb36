"""What a recipe is made of: its outline, and the steps, corrections and exports that are read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curate.budget import Budget, Quota

if TYPE_CHECKING:
    from curate.base import Selector
    from curate.correction import Corrector
    from curate.exporters.base import Exporter
    from curate.scorers.learner import Learner

EXPORT_KEYS = ("use", "name", "to", "file", "shard_rows", "strict")
STEP_KEYS = ("use", "name", "on", "features", "quality", "groups", "budget", "cost", "quota", "nulls", "learner")
CORRECTION_KEYS = ("use", "name", "after", "rows", "revert")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Combination(Strict):
    """Several score columns made into one."""

    method: Literal["rank", "zscore", "minmax", "topsis", "product", "mean"]
    of: dict[str, float]
    """Column reference → weight, above 0.  Directions come from the columns' ``higher_is_better``."""
    directions: dict[str, Literal["higher", "lower"]] = {}
    """For columns that have no direction of their own, or to overrule it."""
    winsorise: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the rows at each end of a column that are brought to the next value within: 0.001 of outliers."""
    missing: Literal["null", "reweight"] = "null"
    """A row that lacks a part: it has no value, or (of a mean) the weights of the parts that it has are scaled up."""


class QuotaSpec(Strict):
    """Shares of the groups in what is chosen."""

    by: str = "source"
    """What tells the groups: source, group, or a score column of labels ("language.language", "clusters.cluster")."""
    shares: Literal["uniform", "proportional", "tempered"] | dict[str, float] = "uniform"
    temperature: float = 2.0
    floor: int | str | None = None
    """What each group gets at least: rows (tokens, if the budget is in tokens), or a share of the budget, "5%"."""
    ceiling: int | str | None = None
    """What each group gets at most."""
    floors: dict[str, int | str] = {}
    """Floors of single groups."""
    ceilings: dict[str, int | str] = {}
    """Ceilings of single groups."""
    counts: dict[str, int | str] = {}
    """What single groups get exactly; the others share the rest."""
    short: Literal["stop", "take"] = "stop"
    """Where the pool holds less than the quota asks: stop, or take what there is."""

    def quota(self) -> Quota:
        """Return it without what tells the groups."""
        return Quota(**self.model_dump(exclude={"by"}))


class Targets(Strict):
    """Rows that show what a model should learn; see ``attribution``."""

    sets: dict[str, dict[str, Any]] = Field(min_length=1)
    """Task → where its rows are, as a source."""
    rows: int | None = Field(default=None, ge=1)
    """Rows drawn of each set, by the recipe's seed; by default 50, or as many as the smallest set has."""


class Evaluate(Strict):
    """How ``curate evaluate`` puts the outcome to the test: a proxy trained on it, and on what it must beat."""

    model: str | None = None
    """The proxy before its training: folder or Hub name of a causal LM in safetensors."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """How conversations become tokens, as of the score likelihood."""
    training: dict[str, Any] = {}
    """How it is trained; see ``curate.models.proxy.Training``."""
    targets: Targets | None = None
    """What it is measured on; by default the recipe's own targets; without any, rows of the pool that are held out."""
    held_out: int = Field(default=40, ge=2)
    """Rows of each source that are held out where there are no targets."""
    rows_per_task: int = Field(default=100, ge=2)
    """Rows of each task that are measured, at most."""
    budgets: list[int | str | dict[str, Any]] = []
    """What to compare at: rows (``500``, ``2k``, ``5%`` of the pool) or training tokens (``50k tokens``); by default as
    many rows as the smallest run has kept."""
    seeds: int = Field(default=3, ge=1)
    """Trainings of each selection; with one there is no verdict."""
    equal: list[Literal["rows", "tokens"]] = Field(default=["rows", "tokens"], min_length=1)
    """What is made equal at a budget in rows: numbers of rows, training tokens, or one after the other."""
    baselines: list[Literal["random", "balanced", "longest", "full"]] = ["random", "balanced", "longest", "full"]
    """Rows of the pool to hold the runs against; the untrained model is always among them."""
    validity: list[str] = []
    """Scores whose deciles are trained on, to see whether the outcome follows the score."""
    generate: bool = True
    """Whether answers that can be verified are asked for."""
    verifiers: dict[str, Literal["number", "option", "exact", "code", "none"]] = {}
    """Task → how its answers are verified, where that cannot be told from the rows."""
    new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens; by default half as many again as the longest reference."""
    run_code: bool = False
    """Whether programs that the proxy writes may be run here; see ``curate.verifiers.sandbox``."""
    seed: int | None = None
    """Of draws and trainings; the recipe's own when absent."""


class Output(Strict):
    """How the result is written."""

    shard_rows: int = Field(default=100_000, ge=1)
    """Rows per file of dataset/."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_]+$")
    """Name of the split; the files are called SPLIT-00000-of-0000N.parquet."""


class Execution(Strict):
    """How the run is executed; nothing here changes a result."""

    workers: int | None = Field(default=None, ge=1)
    """Worker processes of the local cluster; the number of usable cores when absent."""
    shard_rows: int = Field(default=2048, ge=1)
    """Examples per shard: the unit of work, of resuming and of progress."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs to use, one worker each; all that this process sees when absent, none with 0."""


class Document(Strict):
    """The outline; scorers and steps are checked one by one against the class that they name."""

    name: str | None = None
    seed: int = Field(default=0, ge=0)
    run: str | None = None
    sources: list[dict[str, Any]] = Field(min_length=1)
    targets: Targets | None = None
    benchmarks: dict[str, dict[str, Any]] = {}
    """Name → where the rows of a benchmark are, as a source; see ``contamination``."""
    scorers: dict[str, dict[str, Any]] = {}
    combine: dict[str, Combination] = {}
    select: list[dict[str, Any]] = []
    correct: list[dict[str, Any]] = []
    """Corrections: each follows a step of the selection, and sees the rows that went into it."""
    evaluate: Evaluate | None = None
    output: Output = Output()
    exports: list[dict[str, Any]] = []
    report: bool = True
    """Whether a run ends with its report, report.html."""
    execution: Execution = Execution()


@dataclass(frozen=True)
class Step:
    """One selection step: a selector, what it looks at, and how much it may keep."""

    name: str
    selector: Selector
    on: str | None
    features: str | None
    quality: str | None
    groups: str | None
    budget: Budget | None
    cost: str | None
    quota: QuotaSpec | None
    nulls: Literal["drop", "stop"]
    learner: Learner | None = None
    """What a selector of several rounds learns from between them."""


@dataclass(frozen=True)
class Correction:
    """One correction: a corrector, what it learns of each row from, and which rows it looks at."""

    name: str
    corrector: Corrector
    after: int
    """Number of the selection step that it follows; -1 before all of them."""
    rows: Literal["all", "kept", "dropped"]
    """Of the rows that went into that step: all, those that it kept, or those that it dropped."""
    stages: Mapping[str, str]
    """Role → the stage that fills it."""
    own: tuple[str, ...]
    """The stages that are this correction's own: they look at its rows, when it comes."""
    revert: tuple[str, ...] | Literal["all"]
    """Ids whose answers stay as they were."""


class ExportOptions(Strict):
    """What an entry of ``exports`` says besides the format's own parameters."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Names the folder under exports/; the format's word when absent."""
    to: str | None = None
    """Another folder or URL than RUN/exports/NAME."""
    file: Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"] | None = None
    """Kind of the data files; the format's first choice when absent."""
    shard_rows: int = Field(default=100_000, ge=1)
    """Rows per file."""
    strict: bool = False
    """Stop if the format cannot hold every row."""


@dataclass(frozen=True)
class ExportSpec:
    """What is handed over at the end of a run: a format, and where its folder stands."""

    name: str
    exporter: Exporter
    options: ExportOptions
