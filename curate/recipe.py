"""The recipe: a typed document that names sources, scorers, combinations, selection, corrections and the output.

A recipe is YAML (by a safe loader) or the same thing built in Python.  Everything in it is checked before anything
runs: unknown keys (with the nearest valid one), types, references between parts.  An error names the file and the line.

    sources:  [{path: data/*.parquet}]
    scorers:  {likelihood: {use: likelihood, model: ./model}, ngrams: {use: hashed-ngrams}}
    combine:  {quality: {method: rank, of: {likelihood: 1, heuristics.repetition: 0.5}}}
    select:   [{use: kmq, features: ngrams, quality: quality, budget: 10%}]
    correct:  [{use: auto-correct, candidates: {model: ./model}, verdict: {model: ./model}}]
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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from curate import registry
from curate.budget import Budget
from curate.document import Place, load_yaml, override
from curate.exceptions import CurateError, InputError, RecipeError
from curate.recipe_parts import EXPORT_KEYS, Correction, Document, Evaluate, ExportOptions, ExportSpec, Step
from curate.recipe_steps import correction_stages, read_correction, read_step
from curate.urls import redacted

if TYPE_CHECKING:
    from curate.base import Column, Scorer
    from curate.connectors.source import Source
    from curate.exporters.base import Exporter
    from curate.models.proxy import Training
    from curate.pipelines.run import Run

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")


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
            self._doc = Document.model_validate(document)
        except ValidationError as error:
            raise self.explain(error, (), document) from None
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
        self._evaluation()
        self.scorers: dict[str, Scorer] = self._scorers()
        self._columns()  # names clash early
        self._combinations()
        self.steps: list[Step] = [read_step(self, i, dict(spec)) for i, spec in enumerate(self._doc.select)]
        self.corrections: list[Correction] = []
        for i, correction in enumerate(self._doc.correct):
            self.corrections.append(read_correction(self, i, dict(correction)))
        self.exports: list[ExportSpec] = []
        for i, spec in enumerate(self._doc.exports):
            self.exports.append(self._export(i, dict(spec)))

    @cached_property
    def moves(self) -> list[Step | Correction]:
        """The steps in order, each followed by its corrections; first those before all steps."""
        out: list[Step | Correction] = [c for c in self.corrections if c.after < 0]
        for number, step in enumerate(self.steps):
            out += [step, *(c for c in self.corrections if c.after == number)]
        return out

    # -- errors ------------------------------------------------------------------------------------------------------

    def error(self, at: Place, message: str) -> RecipeError:
        """Return an error that points at the line where ``at`` (or its nearest parent) stands."""
        line = next((self._marks[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self._marks), None)
        where = None if self.file is None else f"{self.file}:{line}" if line else str(self.file)
        return RecipeError(redacted(message), where=where)

    def explain(self, error: ValidationError, at: Place, given: Any, cls: type | None = None) -> RecipeError:
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

    def build(self, cls: type, params: dict[str, Any], at: Place) -> Any:
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
            raise self.explain(error, at, params, cls) from None
        except CurateError as error:
            raise self.error(at, str(error)) from error
        return checked

    # -- the parts ---------------------------------------------------------------------------------------------------

    def resolve(self, path: str) -> str:
        """Return a path as it is meant from the recipe's own folder; URLs and absolute ones as they are."""
        return path if "://" in path or path.startswith("hf:") or os.path.isabs(path) else str(self.base / path)

    def _source(self, spec: dict[str, Any], at: Place) -> Source:
        from curate.connectors.source import Source

        source = self.build(Source, dict(spec), at)
        if isinstance(source.path, str):
            return dataclasses.replace(source, path=self.resolve(source.path))
        return dataclasses.replace(source, path=[self.resolve(p) for p in source.path])

    def _evaluation(self) -> None:
        """Read the section "evaluate": what a trained proxy is measured on, and how it is trained."""
        self.evaluate = self._doc.evaluate or Evaluate()
        self.training: Training | None = None
        """How the proxy is trained; None where the recipe has no such section."""
        own = self.evaluate.targets
        self.test_sets = self.targets
        if own is not None:
            self.test_sets = self._named_sources(own.sets, ("evaluate", "targets", "sets"), "task")
        self.evaluation_budgets: list[Budget] = []
        if self._doc.evaluate is None:
            return
        from curate.models.proxy import Training

        for i, budget in enumerate(self.evaluate.budgets):
            try:
                self.evaluation_budgets.append(Budget.parse(budget))
            except InputError as error:
                raise self.error(("evaluate", "budgets", i), f"evaluate.budgets: {error}") from None

        model = self.evaluate.model
        if model is not None and model.startswith(("./", "../")):
            self.evaluate = self.evaluate.model_copy(update={"model": os.path.normpath(self.base / model)})
        self.training = self.build(Training, dict(self.evaluate.training), ("evaluate", "training"))

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
        out = {name: self.scorer(name, spec, ("scorers", name)) for name, spec in self._doc.scorers.items()}
        self.stage_places: dict[str, Place] = {name: ("scorers", name) for name in out}
        self.stages_of_corrections: dict[str, str] = {}
        """Stage → the correction that it belongs to."""
        for i, correction in enumerate(self._doc.correct):
            for stage, (place, scorer, owner) in correction_stages(self, i, correction).items():
                if stage in out:
                    raise self.error(
                        place, f"{stage!r} is the name of two stages; give the correction another 'name:'."
                    )
                out[stage], self.stage_places[stage], self.stages_of_corrections[stage] = scorer, place, owner
        for name, scorer in out.items():
            at = self.stage_places[name]
            if scorer.of is not None:
                self._check_derived(name, scorer.of, out)
            if scorer.fits_on in ("targets", "both") and not self.targets:
                raise self.error(
                    at, f"{name!r} needs targets; add 'targets: {{sets: {{TASK: {{path: …}}}}}}' to the recipe."
                )
            if scorer.fits_on == "benchmarks" and not self.benchmarks:
                raise self.error(
                    at, f"{name!r} needs benchmarks; add 'benchmarks: {{NAME: {{path: …}}}}' to the recipe."
                )
            if scorer.fits_on == "kept" and scorer.fit_rows and name not in self.stages_of_corrections:
                raise self.error(
                    at,
                    f"{name!r} trains on what the selection keeps, which nothing knows while rows are scored; put it "
                    "under a correction: 'correct: [{use: auto-correct, candidates: {…}}]'.",
                )
        return out

    def scorer(self, word: str, spec: Mapping[str, Any], at: Place) -> Scorer:
        """Build a scorer from its entry; ``word`` where that does not say which it uses."""
        name = at[-1]
        if not _NAME.match(str(name)):
            raise self.error(at, f"scorer name {name!r}: letters, digits, - and _ were asked.")
        params = dict(spec)
        word = str(params.pop("use", word))
        try:
            cls = registry.find("scorers", word)
        except InputError as error:
            raise self.error((*at, "use"), str(error)) from None
        for key in ("model", "encoder", "prompt"):
            if isinstance(params.get(key), str) and params[key].startswith(("./", "../")):
                params[key] = os.path.normpath(self.base / params[key])
        if "seed" in (f.name for f in dataclasses.fields(cls)) and "seed" not in params:
            params["seed"] = self.seed
        scorer: Scorer = self.build(cls, params, at)
        return scorer

    def _check_derived(self, name: str, of: str, scorers: dict[str, Scorer]) -> None:
        """Raise unless the stage that a scorer reads is there and makes what it takes."""
        takes = scorers[name].takes
        if takes != "vector":
            able = [n for n, s in scorers.items() if s.of is None and takes in (c.name for c in s.columns)]
            if of not in able:
                raise self.error(
                    (*self.stage_places[name], "of"),
                    f"{name!r} reads the column {takes!r} of a stage, and {of!r} has none{registry.nearest(of, able)} "
                    f"Stages that have it: {', '.join(able) or 'none'}.",
                )
            return
        made = {n: s.columns[0].vector for n, s in scorers.items() if s.of is None}
        vectors = [n for n, vector in made.items() if vector is not None and vector[0].kind == "f"]
        if of not in vectors:
            raise self.error(
                (*self.stage_places[name], "of"),
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
        if stage in self.stages_of_corrections:
            raise self.error(
                at,
                f"{stage!r} belongs to the correction {self.stages_of_corrections[stage]!r}, and looks at its rows "
                "alone; name a stage of 'scorers'.",
            )
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
        known = [n for n in self.scorers if n not in self.stages_of_corrections]
        known += self.combine if combinations else ()
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
            raise self.explain(error, at, given) from None
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
        return self.build(cls, params, at)

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
    model: Any = Document
    for part in loc[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
            args = getattr(annotation, "__args__", ())
            model = next(
                (a for a in (annotation, *args) if isinstance(a, type) and issubclass(a, BaseModel)), annotation
            )
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
