"""What a learner says of rows: against Transformers and peft run plainly; trained rows, rewards, rows it cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import models
from curate.exceptions import InputError, ModelError, StageError
from curate.models.checkpoints import from_arrays
from curate.models.lora import Lora, attach, put
from curate.models.reward import RewardLM
from curate.models.warmup import WarmUp
from curate.scorers.learner import Learner
from curate.scorers.reward_gap import RewardGap, answered
from curate.testing import check_scorer, odd_examples
from tests.conftest import conversation
from tests.models.tiny import tiny_tokenizer

pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = WarmUp(epochs=2, batch=4, rate=3e-2, warmup=0.0, lora=Lora(r=4, alpha=16, dropout=0.0))


def table(*rows: list[dict[str, Any]], own: list[str | None] | None = None) -> pa.Table:
    message = pa.struct([(name, pa.string()) for name in ("role", "content", "thinking", "tool_calls")])
    columns: dict[str, Any] = {
        "messages": pa.array(list(rows), pa.list_(message)),
        "tools": pa.nulls(len(rows), pa.string()),
    }
    return pa.table(columns if own is None else columns | {"own": pa.array(own, pa.string())})


ROWS = [
    conversation("What is the capital of France?", "The capital of France is Paris."),
    conversation("Write a function that adds two numbers.", "def add(a, b):\n    return a + b"),
    [*conversation("Hi", "Hello."), *conversation("How many apples are left?", "There are 7 apples left.")],
    conversation("naïve café?", "你好, 😀 and so on"),
]


def learner(model: Path, **changes: Any) -> Learner:
    return Learner(**{"model": str(model), "device": "cpu", "warm_up": SMALL, "new_tokens": 9, **changes})


def fitted(model: Path, sample: pa.Table, **changes: Any) -> Learner:
    made = learner(model, **changes)
    made.load(made.fit(sample))
    return made


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> Iterator[Learner]:
    made = fitted(tiny_model, table(*ROWS))
    yield made
    made.close()


# -- the numbers ---------------------------------------------------------------------------------------------------------


def test_both_perplexities_are_those_of_the_model_that_was_trained(trained: Learner, tiny_model: Path) -> None:
    """peft's own forward pass, row by row, over the tokens of the template; Transformers' own greedy generation."""
    found = trained.score(table(*ROWS)).to_pylist()
    state = learner(tiny_model).fit(table(*ROWS))
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    adapted = attach(model, SMALL.lora, name="tiny").eval()
    put(adapted, from_arrays(state).weights)
    encoder = models.encoder(str(tiny_model), turns="last")
    tokenizer = tiny_tokenizer()
    moved = 0.0
    for row, messages in zip(found, ROWS, strict=True):
        (encoded,) = encoder.encode([messages], [None])
        start = int(encoded.mask.argmax())
        prompt = torch.tensor(encoded.ids[:start].astype(np.int64))[None]
        with torch.no_grad():
            whole = adapted.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=9,
                do_sample=False,
                pad_token_id=0,
                use_cache=False,
            )[0]
            nll = []
            for ids in (torch.tensor(encoded.ids.astype(np.int64)), whole):
                logp = torch.log_softmax(adapted(input_ids=ids[None]).logits[0].double(), dim=-1)
                at = torch.arange(start, len(ids))
                nll.append(float(-logp[at - 1, ids[at]].mean()))
            after = adapted(input_ids=prompt).logits
            with adapted.disable_adapter():
                moved = max(moved, float((after - adapted(input_ids=prompt).logits).abs().max()))
        assert row["reason"] is None
        assert row["given_nll"] == pytest.approx(nll[0], abs=2e-4) and row["own_nll"] == pytest.approx(nll[1], abs=2e-4)
        assert row["gap"] == pytest.approx(nll[0] - nll[1], abs=4e-4)
        assert row["own"] == tokenizer.decode(whole[start:], skip_special_tokens=True)
        assert row["tokens"] == encoded.mask.sum() + len(whole) - start
    assert moved > 0.1  # the adapter has learned something


def test_less_is_left_to_learn_of_rows_that_it_was_trained_on(tiny_model: Path) -> None:
    """The sign: what the model was trained on, it knows; S of other rows is larger."""
    layers = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    settings = replace(SMALL, epochs=12, rate=5e-2, lora=replace(SMALL.lora, alpha=8, layers=layers))
    made = fitted(tiny_model, table(*ROWS[:2]), warm_up=settings)
    gaps = made.score(table(*ROWS)).column("gap").to_pylist()
    made.close()
    assert max(gaps[:2]) < 0.2 and min(gaps[2:]) > 0.8, gaps


def test_without_a_training_it_is_the_base_model(tiny_model: Path) -> None:
    made, again = learner(tiny_model), fitted(tiny_model, table(*ROWS))
    plain, after = (scorer.score(table(*ROWS)).column("given_nll").to_numpy() for scorer in (made, again))
    likelihood = models.load(str(tiny_model), device="cpu")
    encoded = models.encoder(str(tiny_model), turns="last").encode(ROWS, [None] * len(ROWS))
    expected = [-found.mean() for found in likelihood.token_logprobs([(r.ids, r.mask) for r in encoded])]
    models.release(likelihood)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    assert np.abs(plain - after).max() > 0.1
    made.close()
    again.close()


def test_the_contract(tiny_model: Path) -> None:
    check_scorer(learner(tiny_model, new_tokens=2), odd_examples().slice(0, 14))


def test_a_training_that_is_stopped_goes_on_to_the_same_bits(tiny_model: Path) -> None:
    made, sample = learner(tiny_model), table(*ROWS)
    whole = made.fit(sample)
    first = made.fit_step(0, sample, None)
    backwards = sample.take(pa.array(range(len(ROWS))[::-1]))
    again = learner(tiny_model).fit_step(1, backwards, {k: v.copy() for k, v in first.items()})
    assert sorted(again) == sorted(whole) and all(np.array_equal(again[name], whole[name]) for name in whole)
    assert any(name.startswith("first/") for name in first) and not any("first/" in name for name in whole)


# -- rows that tell nothing ----------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_compared_say_why(trained: Learner) -> None:
    odd = table(
        [{"role": "assistant", "content": "I begin."}],
        [{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "I am."}],
        [{"role": "user", "content": " "}, {"role": "assistant", "content": "What?"}],
        conversation("a b c d e f g " * 200, "x"),
        ROWS[0],
    )
    reasons = trained.score(odd).column("reason").to_pylist()
    nothing = "nothing is asked before the last answer"
    assert reasons[:3] == [nothing] * 3 and reasons[3].startswith("longer than max_tokens=") and reasons[4] is None


def test_no_row_to_train_on(tiny_model: Path) -> None:
    with pytest.raises(StageError, match="learner: of 1 rows that were chosen none can be trained on: longer than"):
        learner(tiny_model, max_tokens=5).fit(table(ROWS[0]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"new_tokens": 0}, "learner: new_tokens=0; it must be at least 1."),
        ({"judge": "reward-model"}, "a reward_model belongs to judge: reward-model, and none is named; give both"),
        ({"reward_model": "x"}, "and judge: perplexity was asked beside one; give both or neither"),
        ({"warm_up": WarmUp(seed=3)}, "learner: seed 3 of the warm-up was asked beside seed 0; leave it out."),
    ],
)
def test_parameters_that_make_no_sense(changes: dict[str, Any], said: str, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=said):
        learner(tiny_model, **changes)


def test_what_its_parts_depend_on(tiny_model: Path, reward_model: Path) -> None:
    base = learner(tiny_model)
    longer = learner(tiny_model, new_tokens=10)
    judged = learner(tiny_model, judge="reward-model", reward_model=str(reward_model))
    other = learner(tiny_model, warm_up=replace(SMALL, rate=1e-2))
    assert base.of_training() == longer.of_training() == judged.of_training() != other.of_training()
    assert base.of_answers() == judged.of_answers() != longer.of_answers()
    assert base.identity() != judged.identity() and str(reward_model) not in str(judged.identity())
    assert learner(tiny_model, device="auto", batch_tokens=64).identity() == base.identity()


# -- rewards -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tiny_model, tmp_path_factory.mktemp("reward") / "tiny", outputs=1)


def save_reward_model(base: Path, folder: Path, *, outputs: int) -> Path:
    """A sequence-classification model over the tiny Llama's tokenizer, of random weights."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig.from_pretrained(base, num_labels=outputs, pad_token_id=0)
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_the_gap_is_that_of_two_plain_passes(reward_model: Path) -> None:
    own = ["Paris it is. ", "", "There are 7 apples left.", "no"]
    scorer = RewardGap(model=str(reward_model), device="cpu")
    found = scorer.score(table(*ROWS, own=own)).to_pylist()
    scorer.close()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    encoder = models.encoder(str(reward_model))
    for row, messages, text in zip(found, ROWS, own, strict=True):
        rewards = []
        for answer in (messages[-1]["content"], text.strip()):
            (encoded,) = encoder.encode([[*messages[:-1], {"role": "assistant", "content": answer}]], [None])
            with torch.no_grad():
                rewards.append(float(model(input_ids=torch.tensor(encoded.ids.astype(np.int64))[None]).logits[0, 0]))
        assert row["given_reward"] == pytest.approx(rewards[0], abs=1e-5)
        assert row["own_reward"] == pytest.approx(rewards[1], abs=1e-5)
        assert row["gap"] == pytest.approx(rewards[0] - rewards[1], abs=2e-5)
    assert found[2]["gap"] == pytest.approx(0, abs=1e-6) and abs(found[0]["gap"]) > 1e-3


def test_a_row_without_an_answer_has_no_gap(reward_model: Path) -> None:
    scorer = RewardGap(model=str(reward_model), device="cpu")
    long = conversation("Why?", "because " * 2000)
    found = scorer.score(table(ROWS[0], long, ROWS[1], own=[None, "so", "x"])).column("reason").to_pylist()
    scorer.close()
    assert found[0] == "no answer to hold it against" and found[2] is None
    assert found[1].startswith("longer than the reward model's context of ")


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_batches_change_no_reward(kind: str, reward_model: Path, tmp_path: Path) -> None:
    """Also where what stands behind a row is seen, but for the mask."""
    if kind == "bidirectional":
        sizes = {
            "initializer_range": 1.0,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
        config = transformers.BertConfig(vocab_size=512, max_position_embeddings=64, num_labels=1, **sizes)
        torch.manual_seed(1)
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
        tiny_tokenizer().save_pretrained(tmp_path / "bert")
        reward_model = tmp_path / "bert"
    rows = [np.arange(5, 5 + length) for length in (3, 17, 1, 9, 9, 30)]
    lm = RewardLM(str(reward_model), device="cpu")
    alone = [lm.rewards([row])[0] for row in rows]
    assert np.ptp(np.array(alone)) > 1e-3
    for batch_tokens in (1, 40, 10_000):
        lm.batch_tokens = batch_tokens
        np.testing.assert_allclose(lm.rewards(rows), alone, atol=1e-5)
    lm._pad = None
    np.testing.assert_allclose(lm.rewards(rows), alone, atol=1e-5)


def test_memory_that_runs_out_halves_a_batch(reward_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = RewardLM(str(reward_model), device="cpu")
    rows = [np.arange(5, 5 + length) for length in (30, 9, 8, 3)]
    expected = lm.rewards(rows)
    forward = lm._model.forward

    def short(**given: Any) -> Any:
        if given["input_ids"].shape[0] > 1 or given["input_ids"].shape[1] == 30:
            raise MemoryError
        return forward(**given)

    monkeypatch.setattr(lm._model, "forward", short)
    found = lm.rewards(rows)
    assert found[0] is None and found[1:] == pytest.approx(expected[1:], abs=1e-5)


def test_models_that_give_no_reward(tiny_model: Path, tmp_path: Path) -> None:
    two = save_reward_model(tiny_model, tmp_path / "two", outputs=2)
    with pytest.raises(ModelError, match="one output was asked; it has 2, one a class"):
        RewardLM(str(two), device="cpu")
    with pytest.raises(ModelError, match=r"score\.weight"):  # a language model: its head is not in the files
        RewardLM(str(tiny_model), device="cpu")


def test_the_answer_that_is_replaced_is_the_last() -> None:
    messages = [
        *conversation("a", "b"),
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": " d ", "thinking": "hm", "tool_calls": "[]"},
        {"role": "user", "content": "bye"},
    ]
    given, own = answered(messages, None), answered(messages, " e\n")
    assert given[:3] == own[:3] == messages[:3] and len(given) == len(own) == 4
    assert given[3]["content"] == "d" and given[3]["thinking"] == "hm"
    assert own[3] == {"role": "assistant", "content": "e", "thinking": None, "tool_calls": None}
    assert answered(messages[:1], "x") == messages[:1]
