"""The last MLP at some positions gives what it gives at all; where it does not, it is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from curate.models.last_mlp import last_mlp
from curate.models.transformers_lm import TransformersLM


@pytest.fixture
def base(tiny_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval().base_model


def states(base: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out = base(input_ids=ids, use_cache=False)[0]
    return out.reshape(-1, out.shape[-1])


def test_the_states_asked_for_are_those_of_the_whole_pass_and_no_others_are_computed(base: Any) -> None:
    ids = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(0))
    whole = states(base, ids)
    seen: list[int] = []
    base.layers[-1].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    with torch.inference_mode():
        hooks = last_mlp(torch, base, 64, "cpu")
    assert hooks is not None
    seen.clear()
    at = torch.tensor([1, 8, 21, 32])
    with hooks.only(at):
        part = states(base, ids)
    assert seen == [4]
    torch.testing.assert_close(part[at], whole[at], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states(base, ids), whole, rtol=0, atol=0)
    assert seen == [4, 33]


def test_an_error_inside_leaves_nothing_behind(base: Any) -> None:
    ids = torch.arange(3, 15).reshape(1, 12)
    whole = states(base, ids)
    with torch.inference_mode():
        hooks = last_mlp(torch, base, 64, "cpu")
    assert hooks is not None
    with pytest.raises(IndexError), hooks.only(torch.tensor([99])):
        states(base, ids)
    torch.testing.assert_close(states(base, ids), whole, rtol=0, atol=0)


def test_a_feed_forward_part_that_looks_at_other_positions_is_left_whole(base: Any) -> None:
    forward = base.layers[-1].mlp.forward
    base.layers[-1].mlp.forward = lambda x: forward(x) + x.mean(dim=1, keepdim=True)
    with torch.inference_mode():
        assert last_mlp(torch, base, 64, "cpu") is None
    mlp = base.layers[-1].mlp
    assert not mlp._forward_hooks and not mlp._forward_pre_hooks


class Pair(torch.nn.Linear):
    """A feed-forward part that also returns what its router thought, as some mixtures of experts do."""

    def forward(self, input: torch.Tensor) -> Any:
        return super().forward(input), None


class Mixture(torch.nn.Module):
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(64, 8)
        layer = torch.nn.Module()
        layer.mlp = Pair(8, 8)
        self.layers = torch.nn.ModuleList([layer])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> tuple[torch.Tensor]:
        hidden = self.embed(input_ids)
        return (hidden + self.layers[0].mlp(hidden)[0],)


def test_a_feed_forward_part_that_returns_something_else_is_left_whole() -> None:
    base = Mixture()
    with torch.inference_mode():
        assert last_mlp(torch, base, 64, "cpu") is None
    assert states(base, torch.arange(3, 9)[None]).isfinite().all()


def test_models_without_layers_are_left_whole() -> None:
    assert last_mlp(torch, torch.nn.Linear(2, 2), 64, "cpu") is None


def test_the_shipped_model_is_scored_this_way(example_model: str) -> None:
    assert TransformersLM(example_model)._last_mlp is not None
