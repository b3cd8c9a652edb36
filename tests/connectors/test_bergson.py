"""bergson's store of gradients: ours is read by it, and its own by us."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from curate.connectors import bergson
from curate.exceptions import InputError
from curate.numerics.attribution import Features, attribute
from curate.seeding import rng_for


def rows(n: int, d: int, dtype: Any = np.float16, name: str = "x") -> NDArray[Any]:
    return rng_for(0, "bergson", name).standard_normal((n, d)).astype(dtype)


def store(folder: Path, array: NDArray[Any], sizes: dict[str, int], **more: Any) -> None:
    """Write a store as bergson does (``create_index`` of 2.5.1), numbers first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gradients.bin").write_bytes(array.tobytes())
    info = {"attribute_tokens": False, "num_items": len(array), "num_grads": len(array), "grad_sizes": sizes}
    (folder / "info.json").write_text(json.dumps(info | {"base_dtype": array.dtype.name} | more, indent=2))


def whole(features: Features) -> NDArray[Any]:
    return np.concatenate([np.asarray(shard) for shard in features.shards])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_store_of_theirs(tmp_path: Path, dtype: Any) -> None:
    x = rows(7, 9, dtype)
    store(tmp_path, x, {"q": 4, "k": 3, "v": 2})
    assert bergson.modules(tmp_path) == {"q": 4, "k": 3, "v": 2}
    found = whole(bergson.read(tmp_path))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(whole(bergson.read(tmp_path, "k")), x[:, 4:7])
    np.testing.assert_allclose(attribute(bergson.read(tmp_path, "v"), x[:2, 7:]), attribute(x[:, 7:], x[:2, 7:]))


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    x = (rows(5, 6, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)  # numbers that bfloat16 has
    store(tmp_path, (x.view(np.uint32) >> 16).astype(np.uint16), {"q": 6}, base_dtype="bfloat16")
    found = whole(bergson.read(tmp_path))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, x)


def test_a_store_of_several_machines_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    x = rows(8, 4)
    store(tmp_path / "shard_00001", x[5:], {"q": 4})
    store(tmp_path / "shard_00000", x[:5], {"q": 4})
    (tmp_path / "logs").mkdir()
    np.testing.assert_array_equal(whole(bergson.read(tmp_path)), x)


def test_a_store_before_base_dtype(tmp_path: Path) -> None:
    x = rows(3, 5)
    store(tmp_path, x, {"q": 3, "k": 2}, dtype={"names": ["q", "k"], "formats": ["(3,)<f2", "(2,)<f2"], "itemsize": 10})
    info = json.loads((tmp_path / "info.json").read_text())
    del info["base_dtype"]
    (tmp_path / "info.json").write_text(json.dumps(info))
    np.testing.assert_array_equal(whole(bergson.read(tmp_path)), x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_written_and_read(tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bergson, "_BLOCK", 20)  # three rows at a time
    x = rows(10, 6, dtype)
    x[4] = np.nan  # a row that has no gradient
    np.save(tmp_path / "part-0.npy", x[:7])
    made = {"d": 6, "law": "count-sketch", "seed": 3, "checkpoint": "abc"}
    bergson.write(tmp_path / "out", Features([str(tmp_path / "part-0.npy"), x[7:]], made), {"epoch 1": 4, "epoch 2": 2})
    found = bergson.read(tmp_path / "out")
    assert found.made == made
    np.testing.assert_array_equal(whole(found), x)
    np.testing.assert_array_equal(whole(bergson.read(tmp_path / "out", "epoch 2")), x[:, 4:])
    assert sorted(os.listdir(tmp_path / "out")) == ["gradients.bin", "info.json"]


def test_other_byte_orders_and_no_rows(tmp_path: Path) -> None:
    x = rows(3, 4, ">f4")
    bergson.write(tmp_path / "big", x)
    np.testing.assert_array_equal(whole(bergson.read(tmp_path / "big")), x)
    bergson.write(tmp_path / "none", x[:0])
    assert whole(bergson.read(tmp_path / "none")).shape == (0, 4)


def test_their_own_reader(tmp_path: Path) -> None:
    data = pytest.importorskip("bergson.data", reason="bergson is not a dependency")
    x = rows(10, 6)
    bergson.write(tmp_path / "ours", x, {"a": 4, "b": 2})
    np.testing.assert_array_equal(data.load_gradients(tmp_path / "ours"), x)
    np.testing.assert_array_equal(data.load_module_gradients(tmp_path / "ours")["b"], x[:, 4:])
    for dtype in ("float16", "float32", "bfloat16"):
        theirs = data.create_index(tmp_path / dtype, 10, {"a": 4, "b": 2}, np.dtype(dtype))
        theirs[:] = x.astype(np.float32).astype(np.dtype(dtype))
        theirs.flush()
        np.testing.assert_array_equal(whole(bergson.read(tmp_path / dtype)), np.asarray(theirs).astype(np.float32))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a store \(info\.json and gradients\.bin\) was asked, .* holds none"):
        bergson.read(tmp_path)


def test_a_store_cut_short(tmp_path: Path) -> None:
    store(tmp_path, rows(3, 4), {"q": 4})
    (tmp_path / "gradients.bin").write_bytes(b"12345")
    with pytest.raises(InputError, match=r"gradients\.bin of 24 bytes was asked by its info\.json, 5 were found"):
        bergson.read(tmp_path)
    (tmp_path / "gradients.bin").unlink()
    with pytest.raises(InputError, match="0 were found"):
        bergson.read(tmp_path)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"attribute_tokens": True}, "a row for each example was asked, .* has one for each token"),
        ({"base_dtype": "int8"}, "numbers of type float16, .* were asked, .* has 'int8'"),
        ({"grad_sizes": [4]}, "is not that of a store: AttributeError"),
        ({"num_grads": None}, "is not that of a store: TypeError"),
    ],
)
def test_what_is_no_store_of_examples(tmp_path: Path, more: dict[str, Any], text: str) -> None:
    store(tmp_path, rows(3, 4), {"q": 4}, **more)
    with pytest.raises(InputError, match=text):
        bergson.read(tmp_path)


def test_shards_of_unlike_modules(tmp_path: Path) -> None:
    store(tmp_path / "a", rows(3, 4), {"q": 4})
    store(tmp_path / "b", rows(3, 4), {"k": 4})
    with pytest.raises(InputError, match="has other modules than"):
        bergson.read(tmp_path)


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    store(tmp_path, rows(3, 4), {"q": 4})
    with pytest.raises(InputError, match=r"module 'k' was asked, .* has q"):
        bergson.read(tmp_path, "k")


def test_what_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"modules of 4 numbers in all were asked, sizes \{'a': 3\} were found"):
        bergson.write(tmp_path / "out", rows(2, 4), {"a": 3})
    with pytest.raises(InputError, match="features of one type were asked, float16, float32 were found"):
        bergson.write(tmp_path / "out", Features([rows(2, 4), rows(2, 4, np.float32)]))
    with pytest.raises(InputError, match="in at least one shard were asked"):
        bergson.write(tmp_path / "out", Features([]))
    bergson.write(tmp_path / "out", rows(2, 4))
    with pytest.raises(InputError, match="holds a store already"):
        bergson.write(tmp_path / "out", rows(2, 4))
