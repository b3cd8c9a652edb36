"""Fixtures shared by all tests: tiny pools written on the spot, the shipped example pool and model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

settings.register_profile("curate", deadline=None)  # a busy machine is no failure
settings.load_profile("curate")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache of rates."""
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def example_pool() -> Path:
    return ROOT / "examples" / "pool"


@pytest.fixture(scope="session")
def example_model() -> str:
    return str(ROOT / "examples" / "model")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights (40k parameters), its tokenizer and its chat template; 2 s."""
    from tests.models.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A small Hub that ``huggingface_hub`` talks to, logged in as "user"; waits are skipped and noted in ``hub.waits``."""
    import huggingface_hub.constants as constants
    import huggingface_hub.utils._http as http

    import curate.connectors.hub as ours
    from tests.hub_server import TOKEN, Hub, User

    class Clock:
        sleep = staticmethod(lambda seconds: server.waits.append(seconds))

    with Hub() as server:
        server.users[TOKEN] = User("user", orgs=("lab",))
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(http, "time", Clock)
        monkeypatch.setattr(ours, "_sleep", Clock.sleep)
        yield server
        http.close_session()


def conversation(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def rows_of(n: int, *, sources: Sequence[str] = ("a", "b", "c")) -> list[dict[str, Any]]:
    """Return ``n`` different rows of unequal length over a few sources and groups."""
    return [
        {
            "messages": conversation(
                f"Question {i}: what is {i} times {i % 13}?",
                "It is " + " and ".join(str(i * j) for j in range(1 + i % 17)),
            ),
            "source": sources[i % len(sources)],
            "group": "odd" if i % 2 else "even",
            "rating": (i * 37 % 101) / 10,
        }
        for i in range(n)
    ]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.fixture
def pool_of(tmp_path: Path) -> Callable[..., Path]:
    """Write ``rows`` over ``shards`` Parquet files, in order; return their folder."""

    def make(rows: Sequence[dict[str, Any]], shards: int = 1, name: str = "pool") -> Path:
        folder = tmp_path / name
        for i in range(shards):
            piece = rows[len(rows) * i // shards : len(rows) * (i + 1) // shards]
            if piece:
                write_parquet(folder / f"train-{i:05d}-of-{shards:05d}.parquet", piece)
        return folder

    return make
