from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from curate.exceptions import RecipeError
from curate.recipe import Recipe

GOOD = """\
name: good
seed: 3
sources:
  - path: data/*.parquet
scorers:
  heuristics: {use: text-heuristics}
  rating:
    use: column
    column: rating
    higher_is_better: true
  ngrams: {use: hashed-ngrams, dim: 8}
combine:
  quality:
    method: rank
    of: {rating: 2, heuristics.repetition: 1}
select:
  - use: threshold
    on: heuristics.repetition
    max: 0.5
  - use: kmq
    quality: quality
    clusters: 4
    budget: 10%
"""


def load(tmp_path: Path, text: str, **overrides: object) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path, overrides)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(str(tmp_path), "DIR")


def test_a_good_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.sources[0].path == str(tmp_path / "data/*.parquet")  # relative to the recipe
    first, second = recipe.steps
    assert first.on == "heuristics.repetition" and first.budget is None
    assert second.features == "ngrams" and second.quality == "quality"  # the only features there are
    assert second.selector.params()["seed"] == 3  # the recipe's, unless the step says another
    assert recipe.reference("rating", ()) == "rating.value"
    again = Recipe.from_dict(yaml.safe_load(recipe.to_yaml()), base=tmp_path)
    assert again.document() == recipe.document()


def test_words_that_yaml_once_took_for_booleans(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD.replace("name: good", "name: no"))
    assert recipe.name == "no"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 3", "sede: 3", "DIR/recipe.yaml:2: unknown key 'sede'; did you mean 'seed'?"),
        ("seed: 3", "seed: minus one", "DIR/recipe.yaml:2: 'seed': input should be a valid integer"),
        ("sources:\n  - path: data/*.parquet\n", "", "DIR/recipe.yaml:1: 'sources' is missing."),
        ("- path: data/*.parquet", "- pth: data/*.parquet", "DIR/recipe.yaml:4: unknown key 'sources.0.pth'; did you mean 'path'?"),
        ("use: text-heuristics", "use: text-heuristic", "DIR/recipe.yaml:6: no scorer is called 'text-heuristic'; did you mean 'text-heuristics'?"),
        ("column: rating", "colum: rating", "DIR/recipe.yaml:9: unknown key 'scorers.rating.colum'; did you mean 'column'?"),
        ("dim: 8", "dim: eight", "DIR/recipe.yaml:11: 'scorers.ngrams.dim': input should be a valid integer"),
        ("method: rank", "method: rnak", "DIR/recipe.yaml:14: 'combine.quality.method': input should be 'rank', 'zscore', 'minmax', 'topsis', 'product' or 'mean'; found 'rnak'"),
        ("heuristics.repetition: 1}", "heuristics.repetitoin: 1}", "DIR/recipe.yaml:15: 'heuristics' writes no column 'repetitoin'; did you mean 'repetition'?"),
        ("rating: 2,", "rating: 0,", "DIR/recipe.yaml:15: weight 0.0 of 'rating': a number above 0"),
        ("heuristics.repetition: 1}", "heuristics.turns: 1}", "DIR/recipe.yaml:15: 'heuristics.turns' has no better direction of its own; add"),
        ("use: threshold", "use: treshold", "DIR/recipe.yaml:17: no selector is called 'treshold'; did you mean 'threshold'?"),
        ("max: 0.5", "maxx: 0.5", "DIR/recipe.yaml:19: unknown key 'select.0.maxx'; did you mean 'max'?"),
        ("on: heuristics.repetition", "on: heuristic.repetition", "DIR/recipe.yaml:18: no scorer or combination is called 'heuristic'; did you mean 'heuristics'?"),
        ("    on: heuristics.repetition\n", "", "DIR/recipe.yaml:17: threshold chooses by a score; add 'on: SCORER'"),
        ("    quality: quality\n", "    quality: ngrams\n", "DIR/recipe.yaml:21: 'ngrams' is a feature vector; a score column was asked."),
        ("budget: 10%", "budget: ten", "DIR/recipe.yaml:23: a count was asked, 'ten' was found"),
        ("budget: 10%", "budget: 110%", "DIR/recipe.yaml:23: a budget's fraction lies in (0, 1]; found 1.1"),
        ("budget: 10%", "budget: 5k tokens", "DIR/recipe.yaml:23: a budget in tokens needs the rows' token counts: add 'cost: STAGE.COLUMN'"),
        ("budget: 10%", "budget: 5\n    quota: {bye: source}", "DIR/recipe.yaml:24: unknown key 'select.1.quota.bye'; did you mean 'by'?"),
        ("budget: 10%", "budget: 5\n    nulls: ignore", "DIR/recipe.yaml:24: nulls is drop or stop; found 'ignore'"),
        ("  - use: kmq\n", "  - features: ngrams\n", "DIR/recipe.yaml:20: select.1 names no selector; add 'use: …'"),
        ("name: good", "name: good\nname: bad", "DIR/recipe.yaml:2: 'name' stands twice."),
        ("name: good", "name: [good", "DIR/recipe.yaml:"),
        ("name: good", "name: ../../etc", "DIR/recipe.yaml:1: name '../../etc': letters, digits, - and _ were asked."),
    ],
)  # fmt: skip
def test_errors_point_at_the_line_and_say_what_to_do(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    assert refused(tmp_path, GOOD.replace(old, new, 1)).startswith(message)


def test_no_features_at_all(tmp_path: Path) -> None:
    text = GOOD.replace("  ngrams: {use: hashed-ngrams, dim: 8}\n", "")
    assert "kmq needs features" in refused(tmp_path, text)


def test_an_empty_recipe_and_one_that_is_no_mapping(tmp_path: Path) -> None:
    assert "the recipe is empty" in refused(tmp_path, "")
    assert "a mapping was asked" in refused(tmp_path, "- a\n- b\n")


def test_no_python_objects_from_yaml(tmp_path: Path) -> None:
    assert "not valid YAML" in refused(tmp_path, "sources: !!python/object/apply:os.system ['true']\n")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"no recipe at .*nope.yaml; .* holds other.yaml"):
        Recipe.load(tmp_path / "nope.yaml")


def test_overrides(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, **{"select.1.budget": "5%", "output.shard_rows": 7, "seed": 9})
    assert str(recipe.steps[1].budget) == "0.05 of the rows"
    assert recipe.output.shard_rows == 7 and recipe.seed == 9
    with pytest.raises(RecipeError, match=r"--set select.7.budget: there is no 'select.7' in the recipe"):
        load(tmp_path, GOOD, **{"select.7.budget": "5%"})
    with pytest.raises(RecipeError, match="unknown key 'sed'"):
        load(tmp_path, GOOD, sed=1)


def test_lower_is_better_turns_top_k_round(tmp_path: Path) -> None:
    text = GOOD.replace("use: threshold", "use: top-k").replace("max: 0.5", "budget: 5")
    assert load(tmp_path, text).steps[0].selector.params()["largest"] is False
    text = text.replace("budget: 5", "budget: 5\n    largest: true", 1)
    assert load(tmp_path, text).steps[0].selector.params()["largest"] is True


def test_models_beside_the_recipe(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  ngrams:",
        "  likelihood: {use: likelihood, model: ./model}\n  hub: {use: likelihood, model: org/name}\n  ngrams:",
    )
    recipe = load(tmp_path, text)
    assert recipe.scorers["likelihood"].params()["model"] == str(tmp_path / "model")
    assert recipe.scorers["hub"].params()["model"] == "org/name"


def test_from_python(tmp_path: Path) -> None:
    recipe = Recipe(sources=[{"path": "x.jsonl"}], select=[{"use": "random", "budget": 3}])
    assert recipe.steps[0].name == "1-random"
    with pytest.raises(RecipeError, match="unknown key 'selcet'; did you mean 'select'"):
        Recipe(sources=[{"path": "x.jsonl"}], selcet=[])


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        (
            {"use": "ifd", "backend": {"use": "vllm", "gpumemory": 1}},
            "'scorers.x.backend.vllm.gpumemory'; did you mean 'gpu_memory'",
        ),
        ({"use": "ifd", "backend": {"use": "http"}}, "'scorers.x.backend.http.url' is missing."),
        ({"use": "ifd", "backend": "http"}, "or {use: http, url: http://…/v1} was asked; found 'http'."),
        ({"use": "gradients", "warm_up": {"epoch": 1}}, "'scorers.x.warm_up.epoch'; did you mean 'epochs'"),
        ({"use": "gradients", "warm_up": {"lora": {"rank": 1}}}, "Valid: r, alpha, dropout, layers."),
        ({"use": "gradients", "warm_up": {"epochs": 0}}, "'scorers.x.warm_up': warm-up: epochs=0; it must be above 0."),
    ],
)
def test_keys_of_parts_within_parts_are_checked(scorer: dict[str, Any], told: str) -> None:
    """A key that nobody reads would be dropped without a word."""
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict({"sources": [{"path": "x"}], "scorers": {"x": {"model": "m", **scorer}}})
    assert told in str(error.value)
