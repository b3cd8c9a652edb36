"""An S3 server for the tests that want one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from curate.pipelines import lock

if TYPE_CHECKING:
    from tests.pipelines.s3server import S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    from tests.pipelines.s3server import S3Server

    with S3Server() as made:
        yield made


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket; the environment has the login, as a user's would."""
    server.fault, server.delay = None, 0.0
    for name, value in {**server.environment, "CURATE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(lock, "CHECK", 0.0)
    fsspec.filesystem("s3").clear_instance_cache()
    name = f"pool-{abs(hash(str(tmp_path))):x}"
    fsspec.filesystem("s3").mkdir(name)
    server.seen.clear()
    return name
