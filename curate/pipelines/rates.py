"""Rows per second and worker that scorers showed on this machine: what later plans are estimated from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from curate.fingerprint import fingerprint

if TYPE_CHECKING:
    from curate.base import Scorer


def _rates_file() -> Path:
    base = os.environ.get("CURATE_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "curate" / "rates.json"


def rate_key(scorer: Scorer) -> str:
    return f"{scorer.name}-{fingerprint(scorer.identity())}"


def known_rates() -> dict[str, float]:
    try:
        return json.loads(_rates_file().read_text())
    except (OSError, ValueError):
        return {}


def remember_rate(key: str, rows: int, seconds: float) -> None:
    """Keep rows per second and worker for later plans; a convenience, so a failure to write is no failure."""
    if rows < 64 or seconds <= 0:
        return
    try:
        path = _rates_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        rates = {**known_rates(), key: round(rows / seconds, 3)}
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(dict(list(rates.items())[-500:]), indent=1))
        os.replace(aside, path)
    except OSError:
        pass
