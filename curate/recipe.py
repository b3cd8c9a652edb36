"""The recipe: a typed document that names sources, scorers, combinations, selection steps and the output.

A recipe is YAML (by a safe loader) or the same thing built in Python.  Everything in it is checked before anything
runs: unknown keys (with the nearest valid one), types, references between parts.  An error names the file and the line.

    sources:  [{path: data/*.parquet}]
    scorers:  {likelihood: {use: likelihood, model: ./model}, ngrams: {use: hashed-ngrams}}
    combine:  {quality: {method: rank, of: {likelihood: 1, heuristics.repetition: 0.5}}}
    select:   [{use: kmq, features: ngrams, quality: quality, budget: 10%}]
    output:   {shard_rows: 100000}

Paths of sources are relative to the recipe's own folder.  So is a parameter called ``model``, ``encoder`` or ``prompt``
that starts with ``./`` or ``../``; any other model is a Hub name or an absolute path.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from curate import registry
from curate.budget import Budget, Quota
from curate.document import Place, load_yaml, override
from curate.exceptions import CurateError, InputError, RecipeError
from curate.urls import redacted

if TYPE_CHECKING:
    from curate.base import Column, Scorer, Selector
    from curate.connectors.source import Source
    from curate.exporters.base import Exporter
    from curate.pipelines.run import Run
    from curate.scorers.learner import Learner

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
EXPORT_KEYS = ("use", "name", "to", "file", "shard_rows", "strict")
STEP_KEYS = ("use", "name", "on", "features", "quality", "groups", "budget", "cost", "quota", "nulls", "learner")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Combination(_Strict):
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


class QuotaSpec(_Strict):
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


class Targets(_Strict):
    """Rows that show what a model should learn; see ``attribution``."""

    sets: dict[str, dict[str, Any]] = Field(min_length=1)
    """Task → where its rows are, as a source."""
    rows: int | None = Field(default=None, ge=1)
    """Rows drawn of each set, by the recipe's seed; by default 50, or as many as the smallest set has."""


class Output(_Strict):
    """How the result is written."""

    shard_rows: int = Field(default=100_000, ge=1)
    """Rows per file of dataset/."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_]+$")
    """Name of the split; the files are called SPLIT-00000-of-0000N.parquet."""


class Execution(_Strict):
    """How the run is executed; nothing here changes a result."""

    workers: int | None = Field(default=None, ge=1)
    """Worker processes of the local cluster; the number of usable cores when absent."""
    shard_rows: int = Field(default=2048, ge=1)
    """Examples per shard: the unit of work, of resuming and of progress."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs to use, one worker each; all that this process sees when absent, none with 0."""


class _Document(_Strict):
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


class ExportOptions(_Strict):
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


class Recipe:
    """A checked recipe.

    Build it with ``Recipe.load(path)``, ``Recipe.from_dict(document)``, or ``Recipe(sources=..., scorers=...,
    select=...)``.
    """

    def __init__(self, **document: Any) -> None:
        self._init(document, marks={}, file=None, base=Path.cwd())

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a YAML recipe; ``overrides`` are dotted keys (``select.0.budget``) set before it is checked.

        Raises
        ------
        RecipeError
            With ``file:line``, what was asked, what was found and the nearest valid word.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
            hint = f"; {path.parent or '.'} holds {', '.join(near[:8])}" if near else ""
            from curate.pipelines import ready

            if path.stem in ready.names():
                hint += f"; for the ready-made one, 'curate recipes {path.stem} > {path}' first"
            raise RecipeError(f"no recipe at {path}{hint}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read as a recipe: {error}") from error
        document, marks = load_yaml(text, path)
        for key, value in (overrides or {}).items():
            override(document, key, value)
        self = cls.__new__(cls)
        self._init(document, marks=marks, file=path, base=path.parent.resolve())
        return self

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], base: str | Path = ".") -> Recipe:
        """Check a document that is already in memory; relative paths are relative to ``base``."""
        self = cls.__new__(cls)
        self._init(dict(document), marks={}, file=None, base=Path(base).resolve())
        return self

    def _init(self, document: dict[str, Any], *, marks: dict[Place, int], file: Path | None, base: Path) -> None:
        self._marks, self.file, self.base = marks, file, base
        try:
            self._doc = _Document.model_validate(document)
        except ValidationError as error:
            raise self._explain(error, (), document) from None
        self.name = self._doc.name or (file.stem if file else "recipe")
        if not _NAME.match(self.name):
            raise self.error(("name",), f"name {self.name!r}: letters, digits, - and _ were asked.")
        self.seed, self.output, self.execution = self._doc.seed, self._doc.output, self._doc.execution
        self.combine = self._doc.combine
        self.report = self._doc.report
        self.run_dir = self._doc.run
        sources = [(("sources", i), spec) for i, spec in enumerate(self._doc.sources)]
        self.sources: list[Source] = [self._source(spec, at) for at, spec in sources]
        sets = self._doc.targets.sets if self._doc.targets else {}
        self.targets: dict[str, Source] = self._named_sources(sets, ("targets", "sets"), "task")
        self.benchmarks: dict[str, Source] = self._named_sources(self._doc.benchmarks, ("benchmarks",), "benchmark")
        self.scorers: dict[str, Scorer] = self._scorers()
        self._columns()  # names clash early
        self._combinations()
        self.steps: list[Step] = [self._step(i, dict(spec)) for i, spec in enumerate(self._doc.select)]
        self.exports: list[ExportSpec] = []
        for i, spec in enumerate(self._doc.exports):
            self.exports.append(self._export(i, dict(spec)))

    # -- errors ------------------------------------------------------------------------------------------------------

    def error(self, at: Place, message: str) -> RecipeError:
        """Return an error that points at the line where ``at`` (or its nearest parent) stands."""
        line = next((self._marks[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self._marks), None)
        where = None if self.file is None else f"{self.file}:{line}" if line else str(self.file)
        return RecipeError(redacted(message), where=where)

    def _explain(self, error: ValidationError, at: Place, given: Any, cls: type | None = None) -> RecipeError:
        """Say what is wrong with a part; ``cls`` is the class that it should become."""
        lines = []
        first = error.errors()[0]
        for item in error.errors():
            loc = tuple(p for p in item["loc"] if isinstance(p, (str, int)))
            dotted = ".".join(map(str, (*at, *loc)))
            if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                valid = _valid_keys(loc) if cls is None else _keys_of(cls, loc[:-1])
                near = registry.nearest(str(loc[-1]), valid)
                lines.append(f"unknown key {dotted!r}{near} Valid: {', '.join(valid)}.")
            elif item["type"] in ("missing", "missing_argument"):
                lines.append(f"{dotted!r} is missing.")
            elif item["type"] == "value_error":  # one of ours, which says what was found
                lines.append(f"{dotted!r}: {item['msg'].removeprefix('Value error, ')}")
            else:
                found = item.get("input")
                lines.append(f"{dotted!r}: {item['msg'][0].lower()}{item['msg'][1:]}; found {found!r}.")
        loc = tuple(p for p in first["loc"] if isinstance(p, (str, int)))
        return self.error((*at, *loc), "\n".join(dict.fromkeys(lines)))

    def _build(self, cls: type, params: dict[str, Any], at: Place) -> Any:
        """Build a dataclass from recipe parameters, with types checked and unknown keys refused."""
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        unknown = [k for k in params if k not in known]
        if unknown:
            near = registry.nearest(unknown[0], known)
            dotted = ".".join(map(str, (*at, unknown[0])))
            raise self.error((*at, unknown[0]), f"unknown key {dotted!r}{near} Valid: {', '.join(known) or 'none'}.")
        try:
            checked: Any = TypeAdapter(cls).validate_python(params)
        except ValidationError as error:
            raise self._explain(error, at, params, cls) from None
        except CurateError as error:
            raise self.error(at, str(error)) from error
        return checked

    # -- the parts ---------------------------------------------------------------------------------------------------

    def _resolve(self, path: str) -> str:
        return path if "://" in path or path.startswith("hf:") or os.path.isabs(path) else str(self.base / path)

    def _source(self, spec: dict[str, Any], at: Place) -> Source:
        from curate.connectors.source import Source

        source = self._build(Source, dict(spec), at)
        if isinstance(source.path, str):
            return dataclasses.replace(source, path=self._resolve(source.path))
        return dataclasses.replace(source, path=[self._resolve(p) for p in source.path])

    def _named_sources(self, sets: Mapping[str, dict[str, Any]], place: Place, what: str) -> dict[str, Source]:
        out = {}
        for name, spec in sets.items():
            if not _NAME.match(name):
                raise self.error((*place, name), f"{what} {name!r}: letters, digits, - and _ were asked.")
            out[name] = self._source(spec, (*place, name))
        return out

    @property
    def target_rows(self) -> int | None:
        """Rows of each set of targets, where the recipe says."""
        return None if self._doc.targets is None else self._doc.targets.rows

    def _scorers(self) -> dict[str, Scorer]:
        out: dict[str, Scorer] = {}
        for name, spec in self._doc.scorers.items():
            at: Place = ("scorers", name)
            if not _NAME.match(name):
                raise self.error(at, f"scorer name {name!r}: letters, digits, - and _ were asked.")
            params = dict(spec)
            word = params.pop("use", name)
            try:
                cls = registry.find("scorers", str(word))
            except InputError as error:
                raise self.error((*at, "use"), str(error)) from None
            for key in ("model", "encoder", "prompt"):
                if isinstance(params.get(key), str) and params[key].startswith(("./", "../")):
                    params[key] = os.path.normpath(self.base / params[key])
            if "seed" in (f.name for f in dataclasses.fields(cls)) and "seed" not in params:
                params["seed"] = self.seed
            out[name] = self._build(cls, params, at)
        for name, scorer in out.items():
            if scorer.of is not None:
                self._check_derived(name, scorer.of, out)
            if scorer.fits_on in ("targets", "both") and not self.targets:
                raise self.error(
                    ("scorers", name),
                    f"{name!r} needs targets; add 'targets: {{sets: {{TASK: {{path: …}}}}}}' to the recipe.",
                )
            if scorer.fits_on == "benchmarks" and not self.benchmarks:
                raise self.error(
                    ("scorers", name),
                    f"{name!r} needs benchmarks; add 'benchmarks: {{NAME: {{path: …}}}}' to the recipe.",
                )
        return out

    def _check_derived(self, name: str, of: str, scorers: dict[str, Scorer]) -> None:
        """Raise unless the stage that a scorer reads is there and makes what it takes."""
        takes = scorers[name].takes
        if takes != "vector":
            able = [n for n, s in scorers.items() if s.of is None and takes in (c.name for c in s.columns)]
            if of not in able:
                raise self.error(
                    ("scorers", name, "of"),
                    f"{name!r} reads the column {takes!r} of a stage, and {of!r} has none{registry.nearest(of, able)} "
                    f"Stages that have it: {', '.join(able) or 'none'}.",
                )
            return
        made = {n: s.columns[0].vector for n, s in scorers.items() if s.of is None}
        vectors = [n for n, vector in made.items() if vector is not None and vector[0].kind == "f"]
        if of not in vectors:
            raise self.error(
                ("scorers", name, "of"),
                f"{name!r} reads the vectors of a stage, and {of!r} is none{registry.nearest(of, vectors)} "
                f"Stages with vectors: {', '.join(vectors) or 'none'}.",
            )

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Every score column by its full reference, "stage.column"."""
        return {f"{n}.{c.name}": c for n, s in self.scorers.items() for c in s.columns}

    def _columns(self) -> None:
        for name in self.combine:
            if name in self.scorers:
                raise self.error(
                    ("combine", name), f"{name!r} is the name of a scorer and of a combination; rename one."
                )
            if not _NAME.match(name):
                raise self.error(("combine", name), f"combination name {name!r}: letters, digits, - and _ were asked.")

    def _combinations(self) -> None:
        for name, spec in self.combine.items():
            if spec.missing == "reweight" and (spec.method != "mean" or spec.winsorise):
                raise self.error(
                    ("combine", name, "missing"),
                    f"missing: reweight is for the plain mean, whose parts have one unit; combine.{name} has method: "
                    f"{spec.method}{', winsorise' if spec.winsorise else ''}.",
                )
            resolved = {}
            for ref, weight in spec.of.items():
                at: Place = ("combine", name, "of", ref)
                full = self.reference(ref, at, combinations=False)
                if not weight > 0:
                    raise self.error(
                        at,
                        f"weight {weight} of {ref!r}: a number above 0 was asked; directions say which way is better.",
                    )
                resolved[full] = weight
                if (
                    self.columns[full].higher_is_better is None
                    and ref not in spec.directions
                    and full not in spec.directions
                ):
                    raise self.error(
                        at,
                        f"{full!r} has no better direction of its own; add to combine.{name}: directions: "
                        f"{{{ref}: higher}} (or lower).",
                    )
            for ref in spec.directions:
                if self.reference(ref, ("combine", name, "directions", ref), combinations=False) not in resolved:
                    raise self.error(
                        ("combine", name, "directions", ref), f"a direction for {ref!r}, which is not among 'of'."
                    )
            if not resolved:
                raise self.error(("combine", name, "of"), "a combination of no columns.")

    def reference(self, ref: str, at: Place, *, combinations: bool = True) -> str:
        """Return the full name of a score column: "stage" means its first column."""
        if combinations and ref in self.combine:
            return ref
        stage, _, column = ref.partition(".")
        if stage in self.scorers:
            scorer = self.scorers[stage]
            known = [c.name for c in scorer.columns]
            column = column or known[0]
            if column in known:
                spec = scorer.columns[known.index(column)]
                if spec.vector is not None:
                    raise self.error(at, f"{ref!r} is a feature vector; a score column was asked.")
                if spec.dtype == "string":
                    raise self.error(at, f"{ref!r} is a text; a score column was asked.")
                return f"{stage}.{column}"
            raise self.error(
                at,
                f"{stage!r} writes no column {column!r}{registry.nearest(column, known)} It writes: "
                f"{', '.join(known)}.",
            )
        known = [*self.scorers, *(self.combine if combinations else ())]
        raise self.error(
            at,
            f"no scorer{' or combination' if combinations else ''} is called "
            f"{stage!r}{registry.nearest(stage, known)} Known: {', '.join(known) or 'none'}.",
        )

    def label(self, ref: str, at: Place, more: tuple[str, ...]) -> str:
        """Return the full name of what tells groups of rows: a column of the examples, or a score column of labels."""
        if ref in more:
            return ref
        stage, _, column = ref.partition(".")
        labels = [f"{n}.{c.name}" for n, s in self.scorers.items() for c in s.columns if c.label]
        here = [one for one in labels if one == ref or (not column and one.partition(".")[0] == stage)]
        if here:
            return here[0]
        known = [*more, *labels]
        raise self.error(
            at, f"{ref!r} tells no groups of rows{registry.nearest(ref, known)} What does: {', '.join(known)}."
        )

    def direction(self, ref: str) -> bool | None:
        """Whether a higher value of a column or combination is better."""
        return True if ref in self.combine else self.columns[ref].higher_is_better

    def _step(self, i: int, spec: dict[str, Any]) -> Step:
        at: Place = ("select", i)
        if "use" not in spec:
            raise self.error(
                at, f"select.{i} names no selector; add 'use: …' ({', '.join(registry.names('selectors'))})."
            )
        try:
            cls = registry.find("selectors", str(spec["use"]))
        except InputError as error:
            raise self.error((*at, "use"), str(error)) from None
        params = {k: v for k, v in spec.items() if k not in STEP_KEYS}
        fields = [f.name for f in dataclasses.fields(cls)]
        for key in params:
            if key not in fields:
                valid = [*fields, *STEP_KEYS]
                raise self.error(
                    (*at, key),
                    f"unknown key 'select.{i}.{key}'{registry.nearest(key, valid)} Valid: {', '.join(valid)}.",
                )
        if "seed" in fields and "seed" not in params:
            params["seed"] = self.seed
        refs: dict[str, str | None] = {}
        for key in ("on", "quality", "cost"):
            value = spec.get(key)
            refs[key] = None if value is None else self.reference(str(value), (*at, key))
        if cls.x_name == "scores" and refs["on"] is None:
            raise self.error(at, f"{spec['use']} chooses by a score; add 'on: SCORER' or 'on: SCORER.COLUMN'.")
        if cls.needs_quality and refs["quality"] is None:
            raise self.error(at, f"{spec['use']} takes rows by a score; add 'quality: SCORER' (or SCORER.COLUMN).")
        if cls.x_name != "scores" and refs["on"] is not None:
            raise self.error((*at, "on"), f"{spec['use']} chooses by {cls.x_name}, not by a score; drop 'on'.")
        if "largest" in fields and "largest" not in params and refs["on"] and self.direction(refs["on"]) is False:
            params["largest"] = False  # the column says that lower is better
        features = spec.get("features")
        if cls.x_name == "features":
            made = {n: s.columns[0].vector for n, s in self.scorers.items()}
            codes = {n: vector[0].kind != "f" for n, vector in made.items() if vector is not None}
            vectors = [n for n, whole in codes.items() if cls.codes in (None, whole)]
            if features is None and len(vectors) == 1:
                features = vectors[0]
            if features not in vectors:
                add = "signatures: {use: minhash}" if cls.codes else "ngrams: {use: hashed-ngrams}"
                what = "digests or signatures" if cls.codes else "features"
                raise self.error(
                    (*at, "features"),
                    f"{spec['use']} needs {what}: one of "
                    f"{', '.join(vectors) or f'(this recipe has no scorer that makes them; add {add})'}; "
                    f"found {features!r}.",
                )
        elif features is not None:
            raise self.error((*at, "features"), f"{spec['use']} looks at no features; drop 'features'.")
        try:
            budget = None if spec.get("budget") is None else Budget.parse(spec["budget"])
            quota = None if spec.get("quota") is None else QuotaSpec.model_validate(spec["quota"])
            if quota is not None:
                quota.quota()
        except ValidationError as error:
            raise self._explain(error, (*at, "quota"), spec["quota"], QuotaSpec) from None
        except InputError as error:
            raise self.error((*at, "quota" if str(error).startswith("quota") else "budget"), str(error)) from None
        if budget is not None and budget.tokens is not None and refs["cost"] is None:
            tokens = [f"{n}.{c.name}" for n, s in self.scorers.items() for c in s.columns if c.unit == "tokens"]
            stages = {t.partition(".")[0] for t in tokens}
            if len(stages) != 1:
                raise self.error(
                    (*at, "budget"),
                    "a budget in tokens needs the rows' token counts: add 'cost: STAGE.COLUMN' "
                    f"(columns counted in tokens: {', '.join(tokens) or 'none; add length: {use: length, model: …}'}).",
                )
            refs["cost"] = tokens[0]
        groups = spec.get("groups")
        if groups is None and cls.needs_groups:
            groups = "prompt"
        if groups is not None:
            groups = self.label(str(groups), (*at, "groups"), ("prompt", "source", "group"))
        if quota is not None:
            quota.by = self.label(quota.by, (*at, "quota", "by"), ("source", "group"))
        nulls = spec.get("nulls", "drop")
        if nulls not in ("drop", "stop"):
            raise self.error((*at, "nulls"), f"nulls is drop or stop; found {nulls!r}.")
        name = str(spec.get("name") or f"{i + 1}-{spec['use']}")
        learner = self._learner(spec, cls, (*at, "learner"))
        if learner is not None and params.get("round_rows") is None and (quota is not None or refs["cost"] is not None):
            raise self.error(
                at, f"{spec['use']} cannot tell how many rows a quota or a budget in tokens will keep; add round_rows."
            )
        return Step(
            name=name,
            selector=self._build(cls, params, at),
            features=features,
            groups=groups,
            budget=budget,
            quota=quota,
            nulls=nulls,
            learner=learner,
            **refs,
        )

    def _learner(self, spec: dict[str, Any], cls: type[Selector], at: Place) -> Learner | None:
        """Return what a selector of several rounds learns from between them; None for any other."""
        given = spec.get("learner")
        if given is None and not cls.needs_learner:
            return None
        if not cls.needs_learner:
            raise self.error(at, f"{spec['use']} learns nothing while it chooses; drop 'learner'.")
        if not isinstance(given, Mapping):
            raise self.error(
                at,
                f"{spec['use']} trains a model between its rounds; add 'learner: {{model: …, warm_up: {{…}}}}'; found "
                f"{given!r}.",
            )
        from curate.scorers.learner import Learner

        params: dict[str, Any] = {"seed": self.seed, **given}
        for key in ("model", "reward_model"):
            if isinstance(params.get(key), str) and params[key].startswith(("./", "../")):
                params[key] = os.path.normpath(self.base / params[key])
        learner: Learner = self._build(Learner, params, at)
        return learner

    def _export(self, i: int, spec: dict[str, Any]) -> ExportSpec:
        at: Place = ("exports", i)
        if "use" not in spec:
            raise self.error(
                at, f"exports.{i} names no format; add 'use: …' ({', '.join(registry.names('exporters'))})."
            )
        word = str(spec.pop("use"))
        given = {k: spec.pop(k) for k in ExportOptions.model_fields if k in spec}
        exporter = self._exporter(word, spec, at, more=EXPORT_KEYS)
        try:
            options = ExportOptions.model_validate(given)
        except ValidationError as error:
            raise self._explain(error, at, given) from None
        if options.file not in (None, *exporter.formats):
            raise self.error(
                (*at, "file"), f"{word} is read from {', '.join(exporter.formats)}; {options.file!r} was asked."
            )
        name = options.name or word
        if any(name == other.name for other in self.exports):
            raise self.error(at, f"two exports are called {name!r}; give one of them another 'name:'.")
        return ExportSpec(name, exporter, options)

    def _exporter(self, word: str, params: dict[str, Any], at: Place, more: tuple[str, ...] = ()) -> Exporter:
        try:
            cls = registry.find("exporters", word)
        except InputError as error:
            raise self.error((*at, "use"), str(error)) from None
        known = [f.name for f in dataclasses.fields(cls)]
        for key in params:
            if key not in known:
                dotted = ".".join(map(str, (*at, key)))
                near = registry.nearest(key, [*known, *more])
                raise self.error(
                    (*at, key), f"unknown key {dotted!r}{near} Valid: {', '.join((*known, *more)) or 'none'}."
                )
        return self._build(cls, params, at)

    # -- faces -------------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """Return the recipe as written, with defaults filled in."""
        return self._doc.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True)

    def run(self, directory: str | Path | None = None, **options: Any) -> Run:
        """Run the whole pipeline into ``directory``; see ``curate.pipelines.run.Run``."""
        from curate.pipelines.run import Run

        run = Run(self, directory, **options)
        run.execute()
        return run


def exporter_of(word: str, params: dict[str, Any]) -> Exporter:
    """Build a format from its word and parameters, checked as in a recipe.

    Raises
    ------
    RecipeError
        If nothing goes by that word, or it has no such parameter.
    """
    recipe = Recipe.__new__(Recipe)
    recipe._marks, recipe.file = {}, None
    return recipe._exporter(word, params, ())


def _keys_of(cls: type, path: tuple[str | int, ...]) -> list[str]:
    """Return the keys of a class, or of what stands at a path in it; a backend's word is a step of such a path."""
    found = [cls]
    for part in path:
        named = [c for c in found if c.__name__.lower() == str(part).lower()]
        if named:
            found = named
            continue
        hints = [typing.get_type_hints(c).get(str(part)) for c in found]
        found = [c for hint in hints for c in _classes(hint)] or found
    return list(dict.fromkeys(name for c in found for name in _names(c)))


def _classes(hint: Any) -> list[type]:
    """Return the classes with keys of their own that a type is made of."""
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, BaseModel)):
        return [hint]
    return [c for arg in typing.get_args(hint) for c in _classes(arg)]


def _names(cls: type) -> list[str]:
    if issubclass(cls, BaseModel):
        return list(cls.model_fields)
    return [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]


def _valid_keys(loc: tuple[str | int, ...]) -> list[str]:
    """Keys that the document allows beside an unknown one."""
    model: Any = _Document
    for part in loc[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
            args = getattr(annotation, "__args__", ())
            model = next(
                (a for a in (annotation, *args) if isinstance(a, type) and issubclass(a, BaseModel)), annotation
            )
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
