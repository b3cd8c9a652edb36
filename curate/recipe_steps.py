"""Steps and corrections of a recipe, read and checked against the parts that they name."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from curate import registry
from curate.budget import Budget
from curate.document import Place
from curate.exceptions import InputError
from curate.recipe_parts import CORRECTION_KEYS, STEP_KEYS, Correction, QuotaSpec, Step

if TYPE_CHECKING:
    from curate.base import Scorer, Selector
    from curate.correction import Corrector, Role
    from curate.recipe import Recipe
    from curate.scorers.learner import Learner


def read_step(recipe: Recipe, i: int, spec: dict[str, Any]) -> Step:
    at: Place = ("select", i)
    if "use" not in spec:
        raise recipe.error(
            at, f"select.{i} names no selector; add 'use: …' ({', '.join(registry.names('selectors'))})."
        )
    try:
        cls = registry.find("selectors", str(spec["use"]))
    except InputError as error:
        raise recipe.error((*at, "use"), str(error)) from None
    params = {k: v for k, v in spec.items() if k not in STEP_KEYS}
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in params:
        if key not in fields:
            valid = [*fields, *STEP_KEYS]
            raise recipe.error(
                (*at, key),
                f"unknown key 'select.{i}.{key}'{registry.nearest(key, valid)} Valid: {', '.join(valid)}.",
            )
    if "seed" in fields and "seed" not in params:
        params["seed"] = recipe.seed
    refs: dict[str, str | None] = {}
    for key in ("on", "quality", "cost"):
        value = spec.get(key)
        refs[key] = None if value is None else recipe.reference(str(value), (*at, key))
    if cls.x_name == "scores" and refs["on"] is None:
        raise recipe.error(at, f"{spec['use']} chooses by a score; add 'on: SCORER' or 'on: SCORER.COLUMN'.")
    if cls.needs_quality and refs["quality"] is None:
        raise recipe.error(at, f"{spec['use']} takes rows by a score; add 'quality: SCORER' (or SCORER.COLUMN).")
    if cls.x_name != "scores" and refs["on"] is not None:
        raise recipe.error((*at, "on"), f"{spec['use']} chooses by {cls.x_name}, not by a score; drop 'on'.")
    if "largest" in fields and "largest" not in params and refs["on"] and recipe.direction(refs["on"]) is False:
        params["largest"] = False  # the column says that lower is better
    features = spec.get("features")
    if cls.x_name == "features":
        made = {n: s.columns[0].vector for n, s in recipe.scorers.items()}
        codes = {n: vector[0].kind != "f" for n, vector in made.items() if vector is not None}
        vectors = [n for n, whole in codes.items() if cls.codes in (None, whole)]
        if features is None and len(vectors) == 1:
            features = vectors[0]
        if features not in vectors:
            add = "signatures: {use: minhash}" if cls.codes else "ngrams: {use: hashed-ngrams}"
            what = "digests or signatures" if cls.codes else "features"
            raise recipe.error(
                (*at, "features"),
                f"{spec['use']} needs {what}: one of "
                f"{', '.join(vectors) or f'(this recipe has no scorer that makes them; add {add})'}; "
                f"found {features!r}.",
            )
    elif features is not None:
        raise recipe.error((*at, "features"), f"{spec['use']} looks at no features; drop 'features'.")
    try:
        budget = None if spec.get("budget") is None else Budget.parse(spec["budget"])
        quota = None if spec.get("quota") is None else QuotaSpec.model_validate(spec["quota"])
        if quota is not None:
            quota.quota()
    except ValidationError as error:
        raise recipe.explain(error, (*at, "quota"), spec["quota"], QuotaSpec) from None
    except InputError as error:
        raise recipe.error((*at, "quota" if str(error).startswith("quota") else "budget"), str(error)) from None
    if budget is not None and budget.tokens is not None and refs["cost"] is None:
        tokens = [f"{n}.{c.name}" for n, s in recipe.scorers.items() for c in s.columns if c.unit == "tokens"]
        stages = {t.partition(".")[0] for t in tokens}
        if len(stages) != 1:
            raise recipe.error(
                (*at, "budget"),
                "a budget in tokens needs the rows' token counts: add 'cost: STAGE.COLUMN' "
                f"(columns counted in tokens: {', '.join(tokens) or 'none; add length: {use: length, model: …}'}).",
            )
        refs["cost"] = tokens[0]
    groups = spec.get("groups")
    if groups is None and cls.needs_groups:
        groups = "prompt"
    if groups is not None:
        groups = recipe.label(str(groups), (*at, "groups"), ("prompt", "source", "group"))
    if quota is not None:
        quota.by = recipe.label(quota.by, (*at, "quota", "by"), ("source", "group"))
    nulls = spec.get("nulls", "drop")
    if nulls not in ("drop", "stop"):
        raise recipe.error((*at, "nulls"), f"nulls is drop or stop; found {nulls!r}.")
    name = str(spec.get("name") or f"{i + 1}-{spec['use']}")
    learner = _learner(recipe, spec, cls, (*at, "learner"))
    if learner is not None and params.get("round_rows") is None and (quota is not None or refs["cost"] is not None):
        raise recipe.error(
            at, f"{spec['use']} cannot tell how many rows a quota or a budget in tokens will keep; add round_rows."
        )
    return Step(
        name=name,
        selector=recipe.build(cls, params, at),
        features=features,
        groups=groups,
        budget=budget,
        quota=quota,
        nulls=nulls,
        learner=learner,
        **refs,
    )


def _learner(recipe: Recipe, spec: dict[str, Any], cls: type[Selector], at: Place) -> Learner | None:
    """Return what a selector of several rounds learns from between them; None for any other."""
    given = spec.get("learner")
    if given is None and not cls.needs_learner:
        return None
    if not cls.needs_learner:
        raise recipe.error(at, f"{spec['use']} learns nothing while it chooses; drop 'learner'.")
    if not isinstance(given, Mapping):
        raise recipe.error(
            at,
            f"{spec['use']} trains a model between its rounds; add 'learner: {{model: …, warm_up: {{…}}}}'; found "
            f"{given!r}.",
        )
    from curate.scorers.learner import Learner

    params: dict[str, Any] = {"seed": recipe.seed, **given}
    for key in ("model", "reward_model"):
        if isinstance(params.get(key), str) and params[key].startswith(("./", "../")):
            params[key] = os.path.normpath(recipe.base / params[key])
    learner: Learner = recipe.build(Learner, params, at)
    return learner


def correction_stages(recipe: Recipe, i: int, spec: Mapping[str, Any]) -> dict[str, tuple[Place, Scorer, str]]:
    """Return the stages that are a correction's own: name → where it stands, the scorer, the correction's name."""
    at: Place = ("correct", i)
    name, cls = _corrector(recipe, at, spec)
    out: dict[str, tuple[Place, Scorer, str]] = {}
    for role, needed in cls.roles.items():
        given = spec.get(role)
        if isinstance(given, str) or _left_out(spec, role, needed):
            continue
        if needed.of is not None and _left_out(spec, needed.of, cls.roles[needed.of]):
            raise recipe.error(
                (*at, role), f"{role!r} looks at {needed.of!r}, which is left out; add it, or drop this."
            )
        if given is not None and not isinstance(given, Mapping):
            raise recipe.error(
                (*at, role), f"{role!r} is the name of a scorer, or an entry like one: {{model: …}}; found {given!r}."
            )
        params = {**needed.params, **(given or {})}
        if needed.of is not None and "of" not in params and _reads_another(str(params.get("use", needed.scorer))):
            other = spec.get(needed.of)
            params["of"] = other if isinstance(other, str) else f"{name}-{needed.of}"
        out[f"{name}-{role}"] = ((*at, role), recipe.scorer(needed.scorer, params, (*at, role)), name)
    return out


def _reads_another(word: str) -> bool:
    """Whether a scorer reads what another stage found; False for a word that nothing goes by, which is told later."""
    try:
        return "of" in (f.name for f in dataclasses.fields(registry.find("scorers", word)))
    except InputError:
        return False


def _left_out(spec: Mapping[str, Any], role: str, needed: Role) -> bool:
    """Whether a role stays empty: it may, and neither it nor what it looks at is given."""
    return spec.get(role) is None and needed.optional and (needed.of is None or spec.get(needed.of) is None)


def _corrector(recipe: Recipe, at: Place, spec: Mapping[str, Any]) -> tuple[str, type[Corrector]]:
    if "use" not in spec:
        raise recipe.error(
            at, f"correct.{at[1]} names no corrector; add 'use: …' ({', '.join(registry.names('correctors'))})."
        )
    try:
        cls = registry.find("correctors", str(spec["use"]))
    except InputError as error:
        raise recipe.error((*at, "use"), str(error)) from None
    return str(spec.get("name") or spec["use"]), cls


def read_correction(recipe: Recipe, i: int, spec: dict[str, Any]) -> Correction:
    """Check an entry of ``correct``; its stages are built already."""
    at: Place = ("correct", i)
    name, cls = _corrector(recipe, at, spec)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise recipe.error((*at, "name"), f"name {name!r}: letters, digits, - and _ were asked.")
    if any(name == other.name for other in recipe.corrections) or any(name == step.name for step in recipe.steps):
        raise recipe.error(at, f"two corrections or steps are called {name!r}; give one of them another 'name:'.")
    fields = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    valid = [*fields, *cls.roles, *CORRECTION_KEYS]
    for key in spec:
        if key not in valid:
            raise recipe.error(
                (*at, key),
                f"unknown key 'correct.{i}.{key}'{registry.nearest(key, valid)} Valid: {', '.join(valid)}.",
            )
    stages, own = {}, []
    for role, needed in cls.roles.items():
        given = spec.get(role)
        if _left_out(spec, role, needed):
            continue
        stage = given if isinstance(given, str) else f"{name}-{role}"
        if not isinstance(given, str):
            own.append(stage)
        elif stage not in recipe.scorers or stage in recipe.stages_of_corrections:
            known = [n for n in recipe.scorers if n not in recipe.stages_of_corrections]
            raise recipe.error(
                (*at, role),
                f"no scorer is called {stage!r}{registry.nearest(stage, known)} Known: {', '.join(known) or 'none'}.",
            )
        columns = recipe.scorers[stage].columns
        has = [c.name for c in columns]
        if not needed.columns and columns[0].dtype not in ("float64", "int64"):
            raise recipe.error(
                (*at, role),
                f"{spec['use']} reads the first column of {role!r}, a number; that of {stage!r} is {has[0]!r}, "
                f"{columns[0].dtype}.",
            )
        if lacking := [c for c in needed.columns if c not in has]:
            raise recipe.error(
                (*at, role),
                f"{stage!r} writes no column {lacking[0]!r}, which {spec['use']} reads as {role!r}; it "
                f"writes {', '.join(has)}.",
            )
        stages[role] = stage
    params = {k: v for k, v in spec.items() if k in fields}
    if "seed" in fields and "seed" not in params:
        params["seed"] = recipe.seed
    if isinstance(params.get("file"), str):
        params["file"] = recipe.resolve(params["file"])
    if params.get("on") is not None and "on" in fields:
        params["on"] = recipe.reference(str(params["on"]), (*at, "on"))
    rows = spec.get("rows", "all")
    if rows not in ("all", "kept", "dropped"):
        raise recipe.error((*at, "rows"), f"rows is all, kept or dropped; found {rows!r}.")
    revert = spec.get("revert") or []
    if revert != "all" and not (isinstance(revert, list) and all(isinstance(one, str) for one in revert)):
        raise recipe.error((*at, "revert"), f"revert is a list of ids, or all; found {revert!r}.")
    return Correction(
        name=name,
        corrector=recipe.build(cls, params, at),
        after=_after(recipe, spec.get("after"), at),
        rows=rows,
        stages=stages,
        own=tuple(own),
        revert=revert if revert == "all" else tuple(revert),
    )


def _after(recipe: Recipe, given: Any, at: Place) -> int:
    """Return the number of the step that a correction follows; the last one where it does not say."""
    if given is None:
        return len(recipe.steps) - 1
    if given == "start":
        return -1
    names = [step.name for step in recipe.steps]
    if given not in names:
        near = registry.nearest(str(given), [*names, "start"])
        raise recipe.error(
            (*at, "after"),
            f"no step of the selection is called {given!r}{near} Steps: {', '.join(names) or 'none'}; or start.",
        )
    return names.index(given)
