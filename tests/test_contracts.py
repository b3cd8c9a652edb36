"""Every built-in scorer keeps the laws of its contract; the selectors have ``tests/selectors/test_contracts.py``.

A new scorer is found through the registry and fails here until it has a line in the table below.
"""

import pyarrow.compute as pc
import pytest

from curate import registry
from curate.testing import check_scorer, odd_examples

# Word → the arguments to check it with, one dict per variant; "MODEL" stands for a tiny model's folder.
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
    "length": [{"model": "MODEL"}, {"model": "MODEL", "template": "plain"}],
    "text-heuristics": [{}],
    "column": [{"column": "quality"}, {"column": "absent", "higher_is_better": False}],
    "hashed-ngrams": [{"dim": 16, "buckets": 4096}, {"dim": 64, "buckets": 512, "text": "both", "characters": 3}],
    "minilm": [{"device": "cpu"}],
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
)


def test_every_built_in_scorer_is_in_the_table():
    assert sorted(SCORERS) == sorted(registry.BUILT_IN["scorers"])


@pytest.mark.parametrize(
    ("word", "params"), [(word, params) for word, variants in SCORERS.items() for params in variants]
)
def test_scorers(word, params, tiny_model):
    params = {key: str(tiny_model) if value == "MODEL" else value for key, value in params.items()}
    examples = odd_examples()
    if word in SLOW:
        examples = examples.filter(pc.less(examples["chars"], 200)).slice(0, 16)
    check_scorer(registry.find("scorers", word)(**params), examples)
