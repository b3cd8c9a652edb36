"""Projections of gradients: their streams, their linearity, and that their error is what the formula says."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.seeding import rng_for

torch = pytest.importorskip("torch")

from curate.models import projection as module  # noqa: E402
from curate.models.projection import Law, Projection  # noqa: E402

LAWS: tuple[Law, ...] = ("count-sketch", "rademacher")
laws = pytest.mark.parametrize("law", LAWS)


def project(p: Projection, pieces: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    out = torch.zeros(len(next(iter(pieces.values()))), p.d, dtype=dtype)
    for name, piece in pieces.items():
        p.add(out, name, piece)
    return out


def matrix(p: Projection, name: str, size: int) -> NDArray[np.float64]:
    """Return P as a matrix (size, d): what becomes of each coordinate."""
    return project(p, {name: torch.eye(size, dtype=torch.float64)}).numpy()


def normal(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.from_numpy(rng_for(0, name).standard_normal(shape))


def mixed(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """F(x, y), as a sum over pairs."""
    return sum((x[i] * y[j] + x[j] * y[i]) ** 2 for i, j in itertools.combinations(range(len(x)), 2))


# -- the matrices ----------------------------------------------------------------------------------------------------


def test_a_count_sketch_moves_blocks_of_d_whole() -> None:
    r = matrix(Projection(7), "w", 7 * 5 + 3)
    assert set(np.unique(r)) == {-1.0, 0.0, 1.0}
    places = np.abs(r).argmax(axis=1)
    assert (np.abs(r).sum(axis=1) == 1).all()
    for start in range(0, len(r), 7):
        its = places[start : start + 7]
        np.testing.assert_array_equal(its, (its[0] + np.arange(len(its))) % 7)
    assert len(set(places[::7])) > 1  # not all by the same shift


def test_rademacher_is_plus_and_minus_one_over_root_d() -> None:
    r = matrix(Projection(7, law="rademacher"), "w", 38)
    np.testing.assert_allclose(np.abs(r), 7**-0.5, rtol=1e-15)


def test_blocks_of_a_dense_projection_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWN", 16 * 64)  # 64 coordinates a block
    signs = np.sign(matrix(Projection(16, law="rademacher"), "w", 192)).reshape(3, -1)
    products = signs @ signs.T / 1024
    assert (np.abs(products - np.eye(3)) < 5 / 1024**0.5).all()


@laws
def test_signs_are_fair_and_unlike_each_other(law: Law) -> None:
    r = matrix(Projection(16, law=law), "w", 4096)
    signs = np.sign(r.sum(axis=1) if law == "count-sketch" else r[:, 0])
    assert abs(signs.mean()) < 5 / np.sqrt(len(signs))
    for lag in (1, 2, 7, 8, 16, 64):
        assert abs((signs[lag:] * signs[:-lag]).mean()) < 5 / np.sqrt(len(signs) - lag)


def test_shifts_take_every_place_alike() -> None:
    r = matrix(Projection(8), "w", 8 * 1000)
    counts = np.bincount(np.abs(r[::8]).argmax(axis=1), minlength=8)
    assert ((counts - 125) ** 2 / 125).sum() < 29.9  # chi-square, 7 degrees of freedom: 1e-4


@laws
def test_names_sizes_seeds_and_laws_have_streams_of_their_own(law: Law) -> None:
    base = matrix(Projection(16, law=law), "w", 64)
    np.testing.assert_array_equal(base, matrix(Projection(16, law=law), "w", 64))
    others = [
        matrix(Projection(16, law=law), "v", 64),
        matrix(Projection(16, law=law, seed=1), "w", 64),
        matrix(Projection(16, law=law), "w", 65)[:64],
    ]
    for other in others:
        product = (base * other).sum() / 64  # 1 if they were the same; else its standard deviation is 1/√(64 · 16)
        assert abs(product) < 5 / np.sqrt(64 * 16)
        assert not np.array_equal(base, other)


def test_streams_stay_what_they_were() -> None:
    """Golden: features that were stored yesterday are held against features of today.  Recorded on 2026-11-21."""
    x = torch.arange(1, 41, dtype=torch.float64)[None]
    sketch = project(Projection(8), {"w": x})[0].numpy()
    dense = project(Projection(8, law="rademacher"), {"w": x})[0].numpy() * 8**0.5
    np.testing.assert_array_equal(sketch, [39, -76, -37, -38, 115, -58, 83, -24])
    np.testing.assert_array_equal(dense.round(9), [-146, -96, -224, 134, -114, -28, -94, -84])


# -- one stream, however it is asked ---------------------------------------------------------------------------------


@laws
@settings(max_examples=60, deadline=None)
@given(d=st.sampled_from([1, 2, 5, 64, 256, 300]), size=st.integers(1, 1400), n=st.integers(1, 4), data=st.data())
def test_a_projection_is_its_matrix_times_the_gradient(
    law: Law, d: int, size: int, n: int, data: st.DataObject
) -> None:
    p = Projection(d, law=law, seed=data.draw(st.integers(0, 5)))
    x = normal(n, size, name=f"{d} {size}")
    expected = x.numpy() @ matrix(p, "w", size)
    np.testing.assert_allclose(project(p, {"w": x}).numpy(), expected, rtol=0, atol=1e-11)
    found = project(p, {"w": x.float()}, torch.float32).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + size**0.5) * 5)


@laws
@pytest.mark.parametrize("d", [64, 512])
def test_batches_shapes_and_order_change_nothing(law: Law, d: int) -> None:
    p = Projection(d, law=law)
    a, b = normal(6, 40, 50, name="a"), normal(6, 7, 11, name="b")
    whole = project(p, {"a": a, "b": b})
    for rows in ([0], [4, 5], [5, 0, 3]):
        part = project(Projection(d, law=law), {"b": b[rows], "a": a[rows].flatten(1)})
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)
    turned = a.mT.contiguous().mT  # the same numbers, laid out otherwise
    torch.testing.assert_close(project(p, {"a": turned, "b": b}), whole, rtol=0, atol=1e-12)


@laws
def test_it_adds_to_what_is_there(law: Law) -> None:
    p, x = Projection(300, law=law), normal(2, 1000)
    out = normal(2, 300, name="out")
    expected = out + project(p, {"w": x})
    p.add(out, "w", x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_both_ways_to_move_blocks_agree() -> None:
    p, x = Projection(300), normal(3, 2000)
    by_gather = torch.zeros(3, 300, dtype=torch.float64)
    p._add_gathered(by_gather, "w", x)
    by_shift = torch.zeros(3, 300, dtype=torch.float64)
    p._add_shifted(by_shift, "w", x)
    torch.testing.assert_close(by_gather, by_shift, rtol=0, atol=1e-12)


def test_a_piece_larger_than_the_working_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(3, 2000)
    whole = project(Projection(64), {"w": x})
    monkeypatch.setattr(module, "_GATHERED", 64 * 3 * 4)  # four blocks at a time
    torch.testing.assert_close(project(Projection(64), {"w": x}), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [64, 512])
def test_signs_that_are_not_kept_are_the_same(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = {"a": normal(2, 3000, name="a"), "b": normal(2, 2000, name="b")}
    whole = project(Projection(d), pieces)
    monkeypatch.setattr(module, "_KEPT", 2500)
    p = Projection(d)
    for _ in range(2):
        assert torch.equal(project(p, pieces), whole)
    assert [key[0] for key in p._kept] == ["b"]


@laws
def test_bfloat16_gradients_are_summed_in_float32(law: Law) -> None:
    p, x = Projection(512, law=law), normal(3, 5000).bfloat16()
    found, expected = project(p, {"w": x}, torch.float32), project(p, {"w": x.double()})
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@given(count=st.integers(1, 200), seed=st.integers(0, 99))
def test_bits_become_the_same_signs_on_a_device(count: int, seed: int) -> None:
    """What a GPU does with bits, done on the CPU."""
    signs = module._signs(rng_for(seed), count, torch.device("cpu"))
    bits = torch.frombuffer(bytearray(rng_for(seed).bytes(-(-count // 8))), dtype=torch.uint8)
    assert torch.equal(2 * module._unpack(bits, count) - 1, signs)


@laws
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_projects_like_a_cpu(law: Law) -> None:
    p, x = Projection(512, law=law), normal(3, 5000)
    out = torch.zeros(3, 512, dtype=torch.float64, device="cuda")
    p.add(out, "w", x.cuda())
    torch.testing.assert_close(out.cpu(), project(p, {"w": x}), rtol=0, atol=1e-11)


def test_threads_share_a_projection() -> None:
    pieces = {f"w{i}": normal(2, 3000, name=str(i)) for i in range(8)}
    expected = project(Projection(300), pieces)
    p = Projection(300)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: project(p, pieces), range(32)):
            assert torch.equal(found, expected)
    assert p._room == module._KEPT - 8 * 3000  # counted once each


# -- the error -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "d"), [(6, 3), (5, 3), (7, 2)])
def test_mean_and_variance_of_a_count_sketch_over_all_its_signs_and_shifts(size: int, d: int) -> None:
    """Not a sample: every sign and every shift, each as likely as the others."""
    x, y = normal(2, size).numpy()
    both = torch.from_numpy(np.stack([x, y]))
    p, products = Projection(d), []
    for signs in itertools.product([-1, 1], repeat=size):
        for shifts in itertools.product(range(d), repeat=-(-size // d)):
            p._kept["w", size, both.device] = torch.tensor(signs, dtype=torch.int8), torch.tensor(shifts)
            a, b = project(p, {"w": both})
            products.append(float(a @ b))
    blocks = sum(mixed(x[i : i + d], y[i : i + d]) for i in range(0, size, d))
    assert np.mean(products) == pytest.approx(x @ y, abs=1e-12)
    assert np.var(products) == pytest.approx((mixed(x, y) - blocks) / d, rel=1e-12)


def of_low_rank(out: int, inputs: int) -> NDArray[np.float64]:
    """Two gradients δxᵀ of one matrix, with a few inputs that outweigh the rest, the same ones in both."""
    rng = rng_for(0, "low rank")
    x = 0.03 * rng.standard_normal(inputs)
    x[rng.choice(inputs, 2, replace=False)] = 1.0
    rows = np.stack([np.outer(rng.standard_normal(out), x * rng.uniform(0.5, 1.5, inputs)).ravel() for _ in range(2)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@laws
@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_the_error_over_seeds_is_as_stated(law: Law, kind: str) -> None:
    d, seeds = 64, 3000
    rows = of_low_rank(96, 16) if kind == "low rank" else normal(2, 1536).numpy() / 1536**0.5
    x, y = rows
    errors = []
    for seed in range(seeds):
        a, b = project(Projection(d, law=law, seed=seed), {"w": torch.from_numpy(rows)})
        errors.append(float(a @ b) - x @ y)

    def f(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * (x * x) @ (y * y))

    within = sum(f(x[i : i + d], y[i : i + d]) for i in range(0, len(x), d)) if law == "count-sketch" else 0
    variance = (f(x, y) - within) / d
    squares = np.square(errors)
    assert abs(np.mean(errors)) < 4.5 * (variance / seeds) ** 0.5
    assert abs(squares.mean() - variance) < 4.5 * squares.std() / seeds**0.5
    assert variance <= f(x, y) / d


def test_several_pieces_err_independently() -> None:
    """A piece more, of another name: F is that of the whole vector, and no term between pieces has a mean."""
    d, seeds = 32, 3000
    rows = normal(2, 640).numpy() / 640**0.5
    rows[1] = rows[0]  # squared length
    parts = np.split(rows, 10, axis=1)
    errors = []
    for seed in range(seeds):
        pieces = {f"w{i}": torch.from_numpy(part) for i, part in enumerate(parts)}
        a, b = project(Projection(d, seed=seed), pieces)
        errors.append(float(a @ b) - rows[0] @ rows[1])
    x = rows[0]
    whole = 2 * (x @ x) ** 2 - 2 * (x**4).sum()
    within = sum(2 * (b @ b) ** 2 - 2 * (b**4).sum() for b in np.split(x, 20))
    variance, squares = (whole - within) / d, np.square(errors)
    assert abs(np.mean(errors)) < 4.5 * (variance / seeds) ** 0.5
    assert abs(squares.mean() - variance) < 4.5 * squares.std() / seeds**0.5


# -- what is refused -------------------------------------------------------------------------------------------------


def test_describe() -> None:
    assert Projection(5, law="rademacher", seed=3).describe() == {"d": 5, "law": "rademacher", "seed": 3}


def test_a_projection_to_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="d=0 numbers were asked; at least 1"):
        Projection(0)


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(InputError, match="law 'gauss' was asked; there are count-sketch, rademacher"):
        Projection(8, law="gauss")  # type: ignore[arg-type]


@pytest.mark.parametrize(("out", "piece"), [((2, 7), (2, 5)), ((3, 8), (2, 5)), ((2, 8), (2,))])
def test_shapes_that_do_not_fit_are_refused(out: tuple[int, ...], piece: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"projection of w: a piece \(n, ...\) into \(n, 8\) was asked; found"):
        Projection(8).add(torch.zeros(out), "w", torch.zeros(piece))


def test_sums_in_half_precision_are_refused() -> None:
    with pytest.raises(InputError, match=r"sums in float32 or float64 were asked; found torch\.bfloat16"):
        Projection(8).add(torch.zeros(2, 8, dtype=torch.bfloat16), "w", torch.zeros(2, 5))
