"""Which responses break off, by hand; each rule of ``curate.scorers._cut_off`` from both sides."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.scorers._cut_off import cut_off

PROSE = "The first point is the price. The second point is the time it takes. "

CUT = {
    "a sentence in a paragraph": PROSE + "The third point, which many people forget, is the",
    "after a comma": PROSE + "It is red, green, and also blue,",
    "an opening bracket": PROSE + "It has three colours that differ (",
    "a paragraph after paragraphs": "One thing is clear here.\n\nAnother thing is too.\n\nIt all ends well.\n\nAnd now we come to",
    "an item of a list": "- Wash the apples well.\n- Cut them into pieces.\n- Boil them for an hour.\n- Let the pot cool down and then",
    "numbered items": "1. Wash the apples well.\n2. Cut them into pieces.\n3. Boil them for long.\n4. Let the pot cool down and",
    "a code block": "Here it is:\n\n```python\ndef f(x):\n    return x +",
    "a second code block": "```\na\n```\nand then\n~~~\nb(",
    "a fence within a longer fence": "````md\n```\nand more of it that is",
    "a JSON object": '{"name": "Oslo", "population": 7',
    "a JSON string": '{"name": "Os',
    "a JSON list": '[{"a": 1}, {"b": 2},',
    "Chinese": "今天天气很好。我们去公园散步。我们看到了很多美丽的花朵和",
    "Hindi": "यह एक किताब है। वह एक पेड़ है। मैं आज बाज़ार जाकर सब्ज़ी",
    "before blanks": PROSE + "The third point, which many people forget, is the \n\n \t\n",
}
WHOLE = {
    "nothing": "",
    "blanks": " \n\t ",
    "a word": "Paris",
    "a number": "42",
    "a name": "Johann Wolfgang von Goethe",
    "a headline": "New Research Suggests That Drinking Coffee May Reduce Stroke Risk",
    "sentences": PROSE,
    "a question": PROSE + "Shall we begin with the first one?",
    "a quotation": PROSE + "He only said “let us go home now”",
    "a bracket": PROSE + "That is all there is (more or less)",
    "an emoji": PROSE + "I hope that you like it ☺️",
    "a number at the end": PROSE + "The answer to the whole question is 42",
    "one sentence before": "It is simple. You take the first of the two roads",
    "a short end": PROSE + "Yours sincerely, Anna",
    "a list without stops": "Buy the following things:\n1. Apples from the market\n2. Bread from the bakery\n3. Milk from the farm",
    "an inline list": "1. Head west on the road 2. Turn onto the highway 3. Go on until you see the sign",
    "initials": 'You are braver than you think. "It is so" - A. A. Milne, in his book',
    "titles": "I met Dr. Foster and then Mr. Smith on my way to the market",
    "a name below": "It is so in fact.\nIt is so in truth.\nIt is so in short.\nAnna Smith",
    "lines of which some have no stop": "It is so in fact.\nThis one goes on without\nIt is so in truth.\nIt is so in short.\nAnd so it goes on",
    "a poem": "The rose is red in May\nThe violet blue all day\nThe sugar sweet to say\nAnd so I go my way",
    "a signature": "Thank you for your time.\nI enjoyed our talk very much.\nI look forward to it.\n\nBest regards,\nThe Hotel Management Team",
    "a name and a title": "I am glad to hear it.\nWe should meet again soon.\nIt was good.\n\nSincerely,\n[Name]\nHead of the Sales Department",
    "a heading": "It is so in fact.\nIt is so in truth.\nIt is so in short.\n## What to read after this page",
    "a row of a table": "It is so in fact.\nIt is so in truth.\nIt is so in short.\n| a | b | c | d",
    "an address": PROSE + "More of it can be read at https://example.org/a/page",
    "hashtags": PROSE + "Come and see it with us #spring #flowers #walk",
    "code without a fence": "It is a queue.\nIt keeps the order.\nIt is fast.\n    return self.front is None",
    "a code block that is closed": "Here it is:\n```python\ndef f(x):\n    return x +\n```",
    "a closed block and a word": "```\na = [\n```\nDone",
    "code that began before the text": 'return ""\n```\n\nThis returns nothing. It is all there is.',
    "about fences": "Code blocks look like this:\n```\n```python\nprint(1)\n```\n```",
    "inline code": "```x = 1``` is how one sets a name to be",
    "JSON": '{"name": "Oslo", "population": 700000}',
    "JSON and a word": '{"name": "Oslo"} is what you asked for',
    "a brace that is no JSON": "{x for x in range(3)}",
    "broken JSON": '{"name": Oslo, "population": 7}',
    "Chinese": "今天天气很好。我们去公园散步。我们看到了很多花。",
    "Thai, which has no full stop": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "a formula": PROSE + "So the whole thing comes to $x = y$",
    "LaTeX": PROSE + "So we have found what we need:\n\\[ a = b \\]",
    "markdown": PROSE + "**The answer to the question is Paris**",
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_what_breaks_off(name: str) -> None:
    assert cut_off(CUT[name])


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole(name: str) -> None:
    assert cut_off(WHOLE[name]) is None


def test_the_reasons() -> None:
    assert cut_off(CUT["a code block"]) == "a code block is left open"
    assert cut_off(CUT["a JSON list"]) == "a JSON value is left open"
    assert cut_off(CUT["after a comma"]) == "the last sentence has no end, unlike those before it"


@given(st.recursive(st.integers() | st.text() | st.booleans(), lambda v: st.dictionaries(st.text(), v, min_size=1)))
def test_whole_json_is_whole_and_a_beginning_of_it_is_not(value: object) -> None:
    text = json.dumps({"value": value})
    assert cut_off(text) is None
    assert cut_off(text[:-1]) == "a JSON value is left open"


@given(st.text(alphabet=st.characters(codec="utf-8")), st.text())
def test_any_text_has_an_answer(text: str, more: str) -> None:
    """No text is too odd, and blanks around it change nothing (but those in front, which may be a line's own)."""
    assert cut_off(text) == cut_off(f"{text}\n \n")
    assert (
        cut_off(f"{text}. {more}.") is None or "```" in text + more or "~~~" in text + more or text.strip()[:1] in "{["
    )
    cut_off(text + more)
