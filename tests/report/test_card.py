from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.report.card import (
    CardFacts,
    Config,
    SourceFacts,
    card,
    language_code,
    licence,
    licence_metadata,
    metadata,
    plain,
    size_category,
    total,
)
from tests.hub_server import card_errors

DATA = Config("default", "train", "data/train-*.parquet", "the conversations")
SCORES = Config("scores", "train", "scores/train-*.parquet", "every row")
FACTS = CardFacts(
    name="tutor",
    rows=30,
    curate="1.2",
    split="train",
    columns={"messages": "list of {role, content}"},
    stages=[("read", 100, ""), ("rejected", 10, "unreadable"), ("dropped by 1-top-k", 60, "top-k"), ("kept", 30, "")],
    sources=[
        SourceFacts("forum", 60, 20, {"MIT": 20}, {"en": 20}),
        SourceFacts("wiki", 30, 10, {"CC BY-SA 4.0": 7, "": 3}, {"en": 6, "fr-FR": 4}),
        SourceFacts("gone", 10, 0),
    ],
    rejected={"role-order": 10},
    methods=[("quality (scorer)", "likelihood", "Zhang et al. 2025 (arXiv:2502.04194)"), ("1-top-k", "top-k", None)],
)


def head_of(text: str) -> dict[str, object]:
    assert card_errors(text) == []
    return DatasetCard(text).data.to_dict()


def test_a_card_by_hand() -> None:
    text = card(FACTS, [DATA, SCORES], "user/tutor")
    assert head_of(text) == {
        "pretty_name": "tutor",
        "license": "other",
        "license_name": "mixed",
        "language": ["en", "fr"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["curate"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": DATA.path}], "default": True},
            {"config_name": "scores", "data_files": [{"split": "train", "path": SCORES.path}]},
        ],
    }
    for line in (
        "30 conversations for supervised fine-tuning, chosen from 100 rows.",
        'scores = load_dataset("user/tutor", "scores", split="train")',
        "| dropped by 1-top-k | 60 | top-k |",
        "Rejected because: role-order 10.",
        "| forum | 60 | 20 | mit |",
        "| wiki | 30 | 10 | cc-by-sa-4.0 (7 rows), not stated (3 rows) |",
        "| gone | 10 | 0 | – |",
        "For 3 rows **none is stated**",
        "Within one and the same source the rows disagree in: wiki.",
        "| mit | 20 | forum |",
        "en (26 rows), fr-FR (4 rows)",
        "[arXiv:2502.04194](https://arxiv.org/abs/2502.04194)",
    ):
        assert line.replace("(7 rows)", "(7 rows)") in text, line
    assert "## Evaluation" not in text


def test_what_is_not_known_is_not_said() -> None:
    bare = replace(FACTS, sources=[SourceFacts("a", 3, 3, {"": 3}, {"": 3})], methods=[], rejected={})
    text = card(bare, [DATA])
    head = head_of(text)
    assert head["license"] == "unknown" and not {"language", "license_name", "source_datasets"} & set(head)
    assert "**Unknown**: neither the rows nor the recipe state one" in text
    assert "## Languages" not in text and "## Methods" not in text
    assert "configs" in head and "default" not in head["configs"][0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("Apache 2.0", "apache-2.0"),
        ("apache_2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("The MIT licence", "mit"),
        (" CC-BY-SA 4.0 ", "cc-by-sa-4.0"),
        ("The Unlicense", "unlicense"),
        ("cc", "cc"),
        ("CC BY", "CC BY"),  # of which version, nobody says
        ("Apache-2.0 (repository)", "Apache-2.0 (repository)"),
        ("N/A", ""),
        ("unknown", ""),
        ("other", ""),
        ("\u202e", "⟨U+202E⟩"),
    ],
)
def test_a_licence_is_spelt_as_the_hub_does_and_never_guessed(stated: str, known: str) -> None:
    assert licence(stated) == known
    assert licence(known) == known


def test_one_licence_several_and_none() -> None:
    assert licence_metadata({"mit": 3}) == {"license": "mit"}
    assert licence_metadata({"mit": 3, "isc": 0}) == {"license": "mit"}
    assert licence_metadata({"House rules, v2!": 1}) == {"license": "other", "license_name": "house-rules-v2"}
    assert licence_metadata({"規約": 1}) == {"license": "other", "license_name": "custom"}
    assert licence_metadata({"mit": 3, "isc": 1}) == {"license": "other", "license_name": "mixed"}
    assert licence_metadata({"mit": 3, "": 1}) == {"license": "other", "license_name": "mixed"}
    assert licence_metadata({"": 3}) == licence_metadata({}) == {"license": "unknown"}


def test_spellings_of_one_licence_do_not_disagree() -> None:
    one = replace(FACTS, sources=[SourceFacts("a", 9, 9, {"MIT": 4, "mit": 3, "MIT License": 2})])
    assert metadata(one, [DATA])["license"] == "mit"
    text = card(one, [DATA])
    assert "All rows are stated to be under mit." in text and "disagree" not in text and "| a | 9 | 9 | mit |" in text


def test_sizes_and_languages() -> None:
    edges = {0: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 10**5 - 1: "10K<n<100K", 10**6: "1M<n<10M", 10**12: "n>1T"}
    assert {n: size_category(n) for n in edges} == edges
    codes = {
        "en": "en",
        "EN": "en",
        "en-US": "en",
        "zh_Hans_CN": "zh",
        "deu": "deu",
        "English": None,
        "": None,
        "e": None,
    }
    assert {word: language_code(word) for word in codes} == codes


def test_an_evaluation_is_shown_as_it_was_given() -> None:
    results = [{"benchmark": "a|b", "ours": 0.51234, "random": 0.4}, {"benchmark": "c", "ours": None, "note": "<b>"}]
    text = card(replace(FACTS, evaluation=results), [DATA])
    assert (
        "| benchmark | ours | random | note |\n|---|---|---|---|\n| a\\|b | 0.5123 | 0.4 | – |\n| c | – | – | &lt;b&gt; |"
        in text
    )


def test_long_tables_end_with_what_they_leave_out() -> None:
    many = [SourceFacts(f"s{i:04d}", 2, 1, {f"house-{i % 150}": 1}) for i in range(1000)]
    text = card(replace(FACTS, sources=many), [DATA])
    assert "| 900 more sources | 1,800 | 900 | see below |" in text
    assert re.search(r"\| 50 more \| 3\d\d \|  \|", text)
    assert len(text) < 40_000


_HOSTILE = [*"ab |`\n\r\t#-*_[]()<>!&\\~$:'\"{}%@?,\u202e\u2028\x00\x85é規😀", "---", "\n---\n", "](http://x)", "<b>"]
HOSTILE = st.lists(st.sampled_from(_HOSTILE), max_size=20).map("".join)


@settings(max_examples=80, deadline=None)
@given(name=HOSTILE, word=HOSTILE, tongue=HOSTILE, reason=HOSTILE, step=HOSTILE)
def test_no_text_from_data_becomes_anything_but_text(name: str, word: str, tongue: str, reason: str, step: str) -> None:
    hostile = replace(
        FACTS,
        sources=[SourceFacts(name, 5, 5, {word: 4, "mit": 1}, {tongue: 5})],
        rejected={reason: 1},
        stages=[("read", 5, ""), (f"dropped by {step}", 0, step), ("kept", 5, "")],
        evaluation=[{f"k{word}": name}],
        columns={name: word},
    )
    text = card(hostile, [DATA])
    assert card_errors(text) == []
    assert text.count("\n---\n") == 1  # the metadata end once
    assert yaml.safe_load(text[4 : text.index("\n---\n")])["pretty_name"] == "tutor"
    body = text[text.index("\n---\n") + 5 :]
    heads = re.findall(r"^#+ (.*)$", body, re.MULTILINE)
    known = {"tutor", "Load it", "Rows, stage by stage", "Sources", "Licences", "Languages", "Methods", "Evaluation"}
    assert set(heads) <= known | {"How to make it again"}
    body = re.sub(r"(?<![`\\])`[^`\n]*`(?!`)", "code", body)  # inline code shows everything as it is
    assert not re.search(r"<[a-zA-Z/!]", body)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x85\u2028\u202e]", body)
    row = next(line for line in body.splitlines() if line.endswith("| 5 | 5 | " + line.rpartition("| 5 | 5 | ")[2]))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert not re.search(r"(?<!\\)\[[^\]]*(?<!\\)\]\((?!https://arxiv)", body)


def test_addresses_in_data_are_no_links_and_secrets_no_secrets() -> None:
    shown = plain("see https://evil.example and www.evil.example, hf_abcdefghijklmnopqrstuvwxyz")
    assert not re.search(r"https?:|www\.", shown) and "hf_abc" not in shown
    assert len(plain("x" * 10_000)) < 300


def test_totals_add_up() -> None:
    assert total(FACTS, "licences") == {"mit": 20, "cc-by-sa-4.0": 7, "": 3}
    assert sum(total(FACTS, "languages").values()) == FACTS.rows
