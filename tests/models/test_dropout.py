"""Dropout by rows: its share, its mean, and that neither company nor padding change a row's zeros."""

from __future__ import annotations

import math

import pytest

from curate.exceptions import ModelError
from curate.models.dropout import RowDropout

torch = pytest.importorskip("torch")


def test_it_drops_its_share_and_keeps_the_mean() -> None:
    its = RowDropout(torch.nn.Module(), 0.25)
    with its.drawing([1], [100]):
        found = its.drop(torch.full((1, 100, 40), 3.0))
    assert found.unique().tolist() == [0, 4]
    assert abs(float((found == 0).float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


def test_company_and_padding_change_nothing() -> None:
    its = RowDropout(torch.nn.Module(), 0.5)
    x = torch.rand(2, 50, 8)
    with its.drawing([1, 2], [50, 30]):
        one, two = its.drop(x), its.drop(x)
    assert not torch.equal(one, two) and not torch.equal(one[0, :30] == 0, one[1, :30] == 0)
    assert torch.equal(one[1, 30:], x[1, 30:])
    with its.drawing([2], [30]):
        alone = [its.drop(x[1:, :33])[0, :30] for _ in range(2)]
    assert torch.equal(alone[0], one[1, :30]) and torch.equal(alone[1], two[1, :30])


def test_every_adapter_drops_and_nothing_else() -> None:
    layer = torch.nn.Module()
    layer.lora_dropout = torch.nn.ModuleDict({"default": torch.nn.Dropout(0.5)})
    layer.attention_dropout = torch.nn.Dropout(0.5)
    its, x = RowDropout(layer.eval(), 0.5), torch.ones(1, 9, 9)
    with its.drawing([0], [9]):
        assert (layer.lora_dropout["default"](x) == 0).any()
        assert torch.equal(layer.attention_dropout(x), x)


def test_rows_that_cannot_be_told_apart() -> None:
    its = RowDropout(torch.nn.Module(), 0.5)
    with its.drawing([0, 1], [3, 3]), pytest.raises(ModelError, match=r"reads \(6, 4\) where 2 rows, tokens and width"):
        its.drop(torch.ones(6, 4))
