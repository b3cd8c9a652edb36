"""Made-up rows of about 1 kB with planted near-duplicates, whose Jaccard similarity is computed, not estimated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS, SHINGLE, FILES = 170, 5, 16


def jaccard(a: list[int], b: list[int]) -> float:
    """Jaccard similarity of the shingles of two rows of words."""
    one, two = ({tuple(w[i : i + SHINGLE]) for i in range(len(w) - SHINGLE + 1)} for w in (a, b))
    return len(one & two) / len(one | two)


def write(folder: Path, n: int, copies: float = 0.05) -> None:
    """Write n rows as 16 Parquet files (text, messages), and planted.json: [copy, original, similarity], by row."""
    if (folder / "planted.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    vocabulary = [f"{''.join(rng.choice(letters, rng.integers(1, 8)))}{i % 10}" for i in range(50_000)]
    planted: list[tuple[int, int, float]] = []
    recent: list[tuple[int, list[int]]] = []
    row = 0
    for number in range(FILES):
        texts = []
        for _ in range(n // FILES):
            if rng.random() < copies and recent:
                original, words = recent.pop(int(rng.integers(len(recent))))  # one copy each
                changed = list(words)
                for at in rng.choice(len(changed), int(rng.integers(0, 9)), replace=False).tolist():
                    changed[at] = int(rng.integers(50_000))
                planted.append((row, original, jaccard(words, changed)))
                words = changed
            else:
                words = (rng.zipf(1.2, int(rng.integers(WORDS - 40, WORDS + 41))) % 50_000).tolist()
                if rng.random() < 0.3:
                    recent.append((row, words))
            texts.append(" ".join(map(vocabulary.__getitem__, words)))
            row += 1
            recent = recent[-2_000:]
        messages = []
        for text in texts:
            head, _, tail = text[:200].rpartition(" ")
            messages.append([{"role": "user", "content": head}, {"role": "assistant", "content": tail + text[200:]}])
        ids = [str(i) for i in range(row - len(texts), row)]
        table = pa.table({"id": ids, "text": texts, "messages": messages})
        pq.write_table(table, folder / f"{number:02}.parquet", row_group_size=2_000)
    (folder / "planted.json").write_text(json.dumps(planted))


def quality(dropped: set[int], planted: list[tuple[int, int, float]], threshold: float) -> dict[str, float]:
    """Return the share of planted pairs of which one was dropped, and what else was dropped."""
    out: dict[str, float] = {}
    for name, low, high in (
        ("recall, similarity from the threshold on", threshold, 2.0),
        ("recall, at least 0.05 above it", threshold + 0.05, 2.0),
        ("dropped, at least 0.05 below it", 0.0, threshold - 0.05),
    ):
        some = [(a, b) for a, b, s in planted if low <= s < high]
        out[name] = round(sum(a in dropped or b in dropped for a, b in some) / max(len(some), 1), 5)
    similar = {row for a, b, s in planted if s >= threshold for row in (a, b)}
    out["precision"] = round(len(dropped & similar) / max(len(dropped), 1), 5)
    out["dropped"] = len(dropped)
    return out
