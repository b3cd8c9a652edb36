"""Write the results section of README.md from the saved JSON.

python benchmarks/pipeline/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- results: written by report.py -->", "<!-- end of results -->"


def load(name: str) -> Any:
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else None


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def on(machine: dict[str, Any]) -> str:
    packages = machine.get("packages", {})
    versions = ", ".join(f"{k} {v}" for k, v in packages.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, load before "
        f"{'/'.join(map(str, machine['load_before']))}; Python {machine['python']}, {versions}."
    )


def throughput(saved: dict[str, Any]) -> str:
    sizes = saved["sizes"]
    lines = [
        ("rows", "{rows:,}"),
        ("bytes a row, uncompressed", "{bytes_a_row:,}"),
        ("wall seconds", "{seconds}"),
        ("processor seconds, all processes", "{cpu_seconds}"),
        ("**rows per second**", "**{rows_per_second:,}**"),
        ("plain copy, one process, rows per second", "{copy_rows_per_second_one_process:,}"),
        ("plain copy, two processes, rows per second", "{copy_rows_per_second_two_processes:,}"),
        ("share of the speed of the copy by one process", "{share_of_copy_one_process:.0%}"),
        ("share of the speed of the copy by two", "{share_of_copy_two_processes:.0%}"),
        ("**peak memory, all processes (PSS), MiB**", "**{peak_tree_mib:,}**"),
        ("peak memory of the largest process (RSS), MiB", "{peak_one_process_mib:,}"),
    ]
    rows = [[name, *(form.format(**{**s, "rows": s["rows"]["input"]}) for s in sizes)] for name, form in lines]
    text = [on(saved["machine"]), "", table(["", *("" for _ in sizes)], rows)]
    if len(sizes) > 1:
        first, last = sizes[0], sizes[-1]
        more = last["rows"]["input"] - first["rows"]["input"]
        growth = (last["peak_tree_mib"] - first["peak_tree_mib"]) * 2**20 / more
        span = f"from {first['rows']['input']:,} to {last['rows']['input']:,} rows"
        text += ["", f"The peak grows by {growth:.0f} bytes a row {span}."]
        slope = more / (last["seconds"] - first["seconds"])
        text += [f"Without what starting costs (the difference of the runs): {slope:,.0f} rows per second."]
    text += ["", "Stages of the largest run:", "", *(f"    {line}" for line in sizes[-1]["stages"])]
    return "\n".join(text)


def killed(saved: dict[str, Any]) -> str:
    row, apart = saved["in_a_row"], saved["apart"]

    def during(words: list[str]) -> str:
        return ", ".join(f"{words.count(w)} × {w}" for w in dict.fromkeys(words))

    def line(name: str, words: list[str], verdicts: list[dict[str, Any]]) -> list[str]:
        again = sum(v["begun_again"] for v in verdicts)
        twice, off = (sum(len(v[k]) for v in verdicts) for k in ("finished_twice", "differing_files"))
        return [name, str(len(words)), during(words), str(again), str(twice), str(off)]

    rows = [line("apart", [a["during"] for a in apart], apart), line("in a row", row["killed_during"], [row])]
    scorers = "heuristics, features and likelihood" if saved["likelihood"] else "heuristics and features"
    return "\n".join(
        [
            on(saved["machine"]),
            "",
            f"{saved['rows']['input']:,} rows, {scorers}, {row['shards']} shards, {row['files']} result files; an "
            f"undisturbed run takes {saved['undisturbed_seconds']} s; all in {saved['seconds']:.0f} s.",
            "",
            table(["mode", "kills", "during", "shards begun again", "finished twice", "files that differ"], rows),
        ]
    )


def invariance(saved: dict[str, Any]) -> str:
    rows = []
    for v in saved["variants"]:
        off = {c: d for c, d in v["largest_differences"].items() if d > 0}
        told = ", ".join(f"{c} {d:.1e}" for c, d in off.items()) or "none"
        rows.append([v["variant"], "yes" if v["same_ids_in_the_same_order"] else "**no**", told])
    return "\n".join(
        [
            on(saved["machine"]),
            "",
            f"{saved['rows']:,} rows, {saved['kept']:,} kept; compared with {saved['base']}.",
            "",
            table(["changed", "same ids, same order", "largest differences of scores"], rows),
        ]
    )


def main() -> None:
    parts = []
    for title, name, write in (
        ("Rows per second and memory", "throughput.json", throughput),
        ("kill -9", "kill.json", killed),
        ("kill -9, with a language model", "kill-likelihood.json", killed),
        ("However the work is cut", "invariance.json", invariance),
    ):
        saved = load(name)
        if saved is not None:
            parts += [f"### {title}", "", f"From `{name}`. {write(saved)}", ""]
    readme = HERE / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = "\n".join(parts) or "Nothing is saved yet.\n"
    readme.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}")


if __name__ == "__main__":
    main()
