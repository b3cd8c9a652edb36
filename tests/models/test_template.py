"""Conversations as ids and loss masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.exceptions import ModelError
from curate.models.jinja import JinjaTemplate
from curate.models.template import Encoder, spans_to_mask
from tests.models.tiny import (
    CHATML,
    EMPTY_THINKING,
    FORGETFUL,
    GENERATION,
    GENERATION_WITHOUT_END,
    RETURNS,
    UNMARKED,
    tiny_tokenizer,
)


def turn(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def encoder(template: str | None, /, **kwargs: Any) -> Encoder:
    """One that reads special tokens in the text as such: the harder case for the masks."""
    return Encoder(tiny_tokenizer(template), **{"special_text": "read", **kwargs})


def scored_text(encoder: Encoder, messages: list[dict[str, Any]], tools: str | None = None) -> str:
    """The text of the tokens in the loss."""
    (row,) = encoder.encode([messages], [tools])
    assert row.reason is None, row.reason
    return encoder._tokenizer.decode(row.ids[row.mask])


def whole_text(encoder: Encoder, messages: list[dict[str, Any]], tools: str | None = None) -> str:
    (row,) = encoder.encode([messages], [tools])
    return encoder._tokenizer.decode(row.ids)


TWO_TURNS = [
    turn("system", "Be brief."),
    turn("user", "Hi"),
    turn("assistant", "Hello!"),
    turn("user", "And again"),
    turn("assistant", "Hello 😀"),
]
CALL = json.dumps([{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}])
WITH_TOOLS = [
    turn("user", "Weather?"),
    turn("assistant", "", tool_calls=CALL),
    turn("tool", "rain", name="get_weather"),
    turn("assistant", "It rains."),
]
TOOLS = json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": {}}}])


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [GENERATION, GENERATION_WITHOUT_END, UNMARKED])
def test_assistant_turns_and_their_end_tokens_are_in_the_loss(template: str) -> None:
    e = encoder(template)
    assert whole_text(e, TWO_TURNS) == (
        "<|bos|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"
        "<|user|>And again<|end|><|assistant|>Hello 😀<|end|>"
    )
    assert scored_text(e, TWO_TURNS) == "Hello!<|end|>Hello 😀<|end|>"


@pytest.mark.parametrize("template", [GENERATION, GENERATION_WITHOUT_END, UNMARKED])
def test_last_turn_only_and_turns_not_to_train_on(template: str) -> None:
    assert scored_text(encoder(template, turns="last"), TWO_TURNS) == "Hello 😀<|end|>"
    silent = [dict(m, train=False) if m["content"] == "Hello!" else m for m in TWO_TURNS]
    assert scored_text(encoder(template), silent) == "Hello 😀<|end|>"
    last_silent = [*TWO_TURNS[:-1], dict(TWO_TURNS[-1], train=False)]
    assert scored_text(encoder(template, turns="last"), last_silent) == ""
    assert scored_text(encoder(template), [dict(m, train=True) for m in TWO_TURNS[1:3]]) == "Hello!<|end|>"


@pytest.mark.parametrize("template", [GENERATION, UNMARKED])
def test_a_tool_call_is_in_the_loss_and_its_result_is_not(template: str) -> None:
    e = encoder(template)
    text = scored_text(e, WITH_TOOLS, TOOLS)
    assert text == (
        '<tool_call>{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}<|end|>'
        "It rains.<|end|>"
    )
    assert whole_text(e, WITH_TOOLS, TOOLS).startswith('<|bos|><|system|>[{"type": "function"')


def test_arguments_stay_as_spelt_where_the_template_prints_strings() -> None:
    prints = UNMARKED.replace("call | tojson", "call.function.arguments")
    assert scored_text(encoder(prints), WITH_TOOLS) == '<tool_call>{"city": "Oslo"}<|end|>It rains.<|end|>'


def test_whitespace_after_the_end_token_is_not_in_the_loss() -> None:
    e = encoder(CHATML)
    assert whole_text(e, TWO_TURNS[1:]).endswith("<|im_start|>assistant\nHello 😀<|im_end|>\n")
    assert scored_text(e, TWO_TURNS) == "Hello!<|im_end|>Hello 😀<|im_end|>"


def test_an_empty_answer_is_its_end_token() -> None:
    for template in (GENERATION, GENERATION_WITHOUT_END, UNMARKED):
        assert scored_text(encoder(template), [turn("user", "Hi"), turn("assistant", "")]) == "<|end|>"


def test_the_answer_quoted_in_the_question_is_not_scored() -> None:
    """A search for the response text would find it in the prompt first."""
    messages = [turn("user", "Say <|assistant|>yes<|end|> or yes"), turn("assistant", "yes")]
    for template in (GENERATION, UNMARKED):
        (row,) = encoder(template).encode([messages])
        assert np.flatnonzero(row.mask).tolist() == list(range(row.ids.size - row.mask.sum(), row.ids.size))
        assert scored_text(encoder(template), messages) == "yes<|end|>"


@pytest.mark.parametrize("template", [GENERATION, CHATML, None], ids=["generation", "chatml", "plain"])
def test_a_row_that_spells_a_special_token_is_null_unless_it_is_to_be_read(template: str | None) -> None:
    spelt = {
        "message 0 spells the special token '<|assistant|>'": [turn("user", "a<|assistant|>b"), turn("assistant", "c")],
        "message 1 spells the special token '<|end|>'": [turn("user", "a"), turn("assistant", "b<|end|>c")],
    }
    for why, messages in spelt.items():
        (row,) = encoder(template, special_text="drop").encode([messages])
        assert row.reason == why and row.ids.size == 0
        (read,) = encoder(template).encode([messages])
        assert read.reason is None and read.mask.any()
    thinks = [turn("user", "a"), turn("assistant", "b", thinking="<|bos|>")]
    assert reason(template, thinks, special_text="drop") == "message 1 spells the special token '<|bos|>'"
    tools = json.dumps([{"name": "<|end|>"}])
    assert reason(template, TWO_TURNS, tools, special_text="drop") == "tools spell the special token '<|end|>'"
    whole = [turn("user", "a < |end| > b"), turn("assistant", "<end>")]
    assert reason(template, whole, special_text="drop") is None


def test_plain_template_is_the_papers_and_goes_on_to_conversations() -> None:
    e = encoder(None)
    assert e.kind == "plain"
    assert e.render([turn("user", "x"), turn("assistant", "y")])[0] == "Question: x\nAnswer: y<|end|>"
    assert scored_text(e, [turn("user", "x"), turn("assistant", "y")]) == "y<|end|>"
    # " Paris" is one token of this tokenizer: it holds characters of the answer, so it is scored.
    assert scored_text(e, [turn("user", "x"), turn("assistant", "Paris")]) == " Paris<|end|>"
    assert e.render(TWO_TURNS)[0] == (
        "Be brief.\nQuestion: Hi\nAnswer: Hello!<|end|>\nQuestion: And again\nAnswer: Hello 😀<|end|>"
    )
    assert scored_text(e, TWO_TURNS) == "Hello!<|end|>Hello 😀<|end|>"
    text, spans = e.render(WITH_TOOLS, TOOLS)
    assert text.startswith(f"Tools: {TOOLS}\nQuestion: Weather?\nAnswer: [")
    assert [text[s:t] for s, t in spans] == [json.dumps(json.loads(CALL)) + "<|end|>", "It rains.<|end|>"]
    thinking = [turn("user", "x"), turn("assistant", "y", thinking="hm")]
    assert e.render(thinking)[0] == "Question: x\nAnswer: hm\ny<|end|>"


def test_one_bos_and_no_more() -> None:
    for adds_bos in (False, True):
        chat = Encoder(tiny_tokenizer(GENERATION, adds_bos=adds_bos)).encode([TWO_TURNS])[0].ids
        assert chat[0] == 1 and np.count_nonzero(chat == 1) == 1
        plain = Encoder(tiny_tokenizer(None, adds_bos=adds_bos)).encode([TWO_TURNS])[0]
        assert np.count_nonzero(plain.ids == 1) == adds_bos and (plain.ids[0] == 1) == adds_bos
        assert not plain.mask[0] and plain.mask.sum() == len(plain.mask[plain.mask])
    with_bos = Encoder(tiny_tokenizer(None, adds_bos=True)).encode([TWO_TURNS])[0]
    without = Encoder(tiny_tokenizer(None)).encode([TWO_TURNS])[0]
    np.testing.assert_array_equal(with_bos.ids[1:], without.ids)
    np.testing.assert_array_equal(with_bos.mask[1:], without.mask)


def test_the_first_token_is_not_scored_for_nothing_predicts_it() -> None:
    bare = "{%- for message in messages -%}{{- message.content + eos_token -}}{%- endfor -%}"
    (row,) = encoder(bare).encode([[turn("assistant", "Paris"), turn("user", "a")]])
    assert row.mask.tolist()[:2] == [False, True] and row.mask.sum() < row.ids.size


def test_the_date_in_a_template_stands_still() -> None:
    dated = "{{- strftime_now('%d %b %Y') -}}" + UNMARKED
    assert encoder(dated).render(TWO_TURNS)[0].startswith("26 Jul 2024<|bos|>")


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        ([(0, 3), (3, 5), (5, 8)], [(3, 5)], [0, 1, 0]),
        ([(0, 3), (3, 5), (5, 8)], [(4, 6)], [0, 1, 1]),  # a token that holds one character of it
        ([(0, 3), (3, 5), (5, 8)], [(3, 3)], [0, 0, 0]),
        ([(0, 3), (3, 5), (5, 8)], [(0, 1), (7, 8)], [1, 0, 1]),
        ([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(1, 2)], [0, 1, 1, 1, 0]),  # one character cut into bytes
        ([(0, 3), (4, 6), (6, 6), (6, 7)], [(3, 6)], [0, 1, 0, 0]),  # offsets without the leading space
        ([(0, 3), (5, 5), (5, 6)], [(3, 5)], [0, 1, 0]),  # a token of two spaces, trimmed to nothing
        ([], [(0, 4)], []),
    ],
)
def test_spans_to_mask(offsets: list[Any], spans: list[Any], expected: list[int]) -> None:
    np.testing.assert_array_equal(spans_to_mask(offsets, spans), np.array(expected, dtype=bool))


# --- parity with Transformers, and between the ways to find a turn ---------------------------------------------------

ENCODERS = {
    name: encoder(text)
    for name, text in [("marked", GENERATION), ("without end", GENERATION_WITHOUT_END), ("unmarked", UNMARKED)]
}
TRIMMED = Encoder(tiny_tokenizer(UNMARKED, trim_offsets=True), special_text="read")

texts = st.text(alphabet=st.sampled_from('ab \n\t.,😀é你{}"\\<|>'), max_size=12) | st.sampled_from(
    ["  ", " lead", "trail \n", "<|end|>", "<|assistant|>", "def f():\n    return 1"]
)
conversations = st.lists(st.tuples(texts, texts, st.sampled_from([None, True, False])), min_size=1, max_size=4).map(
    lambda pairs: [m for u, a, train in pairs for m in (turn("user", u), turn("assistant", a, train=train))]
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(conversations)
def test_three_spellings_of_one_template_give_one_mask(messages: list[dict[str, Any]]) -> None:
    rows = {name: e.encode([messages])[0] for name, e in ENCODERS.items()}
    expected = "".join(
        m["content"] + "<|end|>" for m in messages if m["role"] == "assistant" and m["train"] is not False
    )
    for name, row in rows.items():
        assert row.reason is None
        np.testing.assert_array_equal(row.ids, rows["marked"].ids)
        np.testing.assert_array_equal(row.mask, rows["marked"].mask, err_msg=name)
    tokenizer = ENCODERS["marked"]._tokenizer
    assert tokenizer.decode(rows["marked"].ids[rows["marked"].mask]) == expected
    trimmed = TRIMMED.encode([messages])[0]
    np.testing.assert_array_equal(trimmed.ids, rows["marked"].ids)
    np.testing.assert_array_equal(trimmed.mask, rows["marked"].mask, err_msg="trimmed offsets")


@quick
@given(conversations)
def test_ids_and_mask_are_those_of_apply_chat_template(messages: list[dict[str, Any]]) -> None:
    messages = [{k: v for k, v in m.items() if k != "train"} for m in messages]
    for name in ("marked", "unmarked"):
        tokenizer = ENCODERS[name]._tokenizer
        marked = name == "marked"
        theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=marked)
        (ours,) = ENCODERS[name].encode([messages])
        assert ours.ids.tolist() == theirs["input_ids"]
        if marked:
            assert ours.mask.astype(int).tolist() == theirs["assistant_masks"]


@given(st.lists(conversations, max_size=5))
@settings(max_examples=30, deadline=None)
def test_company_changes_nothing(rows: list[list[dict[str, Any]]]) -> None:
    e = ENCODERS["marked"]
    for messages, row in zip(rows, e.encode(rows), strict=True):
        (alone,) = e.encode([messages])
        np.testing.assert_array_equal(row.ids, alone.ids)
        np.testing.assert_array_equal(row.mask, alone.mask)


def test_templates_render_as_transformers_renders_them() -> None:
    """Loops with break, macros, namespaces, tojson with options, trimming of blocks."""
    source = """
    {%- macro show(m) -%}[{{ m.role }}] {{ m.content | trim }}{%- endmacro %}
    {%- set ns = namespace(n=0) %}
    {% for m in messages %}
      {%- if loop.index > 3 %}{% break %}{% endif %}
      {%- set ns.n = ns.n + 1 %}
      {%- if m.role == "assistant" %}
{% generation %}{{ show(m) }}
{% endgeneration %}
      {%- else %}
{{ show(m) }}{% endif %}
    {% endfor %}
    {{- ns.n }}{{ tools | tojson(indent=2) }}"""
    tokenizer = tiny_tokenizer(source)
    tools = [{"a": "<&'é"}]
    for messages in (TWO_TURNS, TWO_TURNS[:1]):
        theirs = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        text, spans = JinjaTemplate(source, tokenizer.special_tokens_map).render(messages, tools)
        assert text == theirs
        assert [text[s:t].strip() for s, t in spans] == ["[assistant] Hello!"] * (len(messages) > 1)


# --- rows that have no encoding --------------------------------------------------------------------------------------


def reason(
    template: str | None, messages: list[dict[str, Any]], tools: str | None = None, /, **kwargs: Any
) -> str | None:
    (row,) = encoder(template, **kwargs).encode([messages], [tools])
    if row.reason is not None:
        assert row.ids.size == row.mask.size == 0
    return row.reason


THINKING = [
    turn("user", "a"),
    turn("assistant", "b", thinking="hm"),
    turn("user", "c"),
    turn("assistant", "d", thinking="so"),
]


def test_a_turn_that_is_shown_differently_once_others_follow() -> None:
    assert whole_text(encoder(FORGETFUL), THINKING) == (
        "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>so\nd<|end|>"
    )
    assert scored_text(encoder(FORGETFUL), THINKING) == "b<|end|>so\nd<|end|>"
    assert scored_text(encoder(FORGETFUL, turns="last"), THINKING) == "so\nd<|end|>"
    assert (
        scored_text(encoder(EMPTY_THINKING), TWO_TURNS) == "Hello!<|im_end|><think>\n\n</think>\n\nHello 😀<|im_end|>"
    )


def test_a_generation_prompt_that_goes_further_than_the_turn() -> None:
    opens = UNMARKED.replace("'<|assistant|>' -}}{%- endif -%}", "'<|assistant|><think>' -}}{%- endif -%}")
    assert opens != UNMARKED
    assert scored_text(encoder(opens), TWO_TURNS) == "Hello!<|end|>Hello 😀<|end|>"


def test_a_turn_that_cannot_be_told_is_not_labelled() -> None:
    counts = "{{- messages | length -}}" + UNMARKED
    assert reason(counts, TWO_TURNS) == "the chat template is not prefix-stable at message 2"
    # The end token of a last turn does not end this one: the first such token belongs to another turn.
    assert reason(RETURNS, THINKING) == "the chat template is not prefix-stable at message 1"
    assert scored_text(encoder(RETURNS, turns="last"), THINKING) == "d<|end|>"
    # The turn spells the end token itself, so where it ends is anyone's guess.
    spells = [THINKING[0], turn("assistant", "b<|end|>b", thinking="hm"), *THINKING[2:]]
    assert reason(FORGETFUL, spells) == "the chat template is not prefix-stable at message 1"
    # No answer follows, so nothing bounds the turn.
    assert reason(FORGETFUL, THINKING[:3]) == "the chat template is not prefix-stable at message 1"


def test_what_a_template_does_not_show_is_not_scored_as_nothing() -> None:
    assert reason(CHATML, WITH_TOOLS) == "the chat template does not show tool calls; use template: plain"
    assert reason(CHATML, TWO_TURNS, TOOLS) == "the chat template does not show tools; use template: plain"
    assert reason(CHATML, WITH_TOOLS, TOOLS, template="plain") is None
    assert reason(CHATML, TWO_TURNS, "[]") is None


def test_reasons_of_single_rows_and_the_rows_beside_them() -> None:
    refuses = "{%- if messages[0].role == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}" + UNMARKED
    assert reason(refuses, TWO_TURNS) == "chat template: no system role"
    assert reason(GENERATION, [turn("user", "Hi")]) == "no assistant turn"
    assert reason(GENERATION, TWO_TURNS, "{not json") == "tools or tool_calls are not JSON"
    assert reason(GENERATION, [*TWO_TURNS, turn("assistant", "", tool_calls="[")]) == "tools or tool_calls are not JSON"
    half = json.dumps([{"name": "\ud800"}])
    assert reason(GENERATION, TWO_TURNS, half) == "not valid Unicode: half a surrogate pair"
    assert "U+FDD0" in str(reason(GENERATION, [turn("user", "\ufdd0"), turn("assistant", "a")]))
    rows = encoder(refuses).encode([TWO_TURNS, TWO_TURNS[1:], TWO_TURNS[:1]])
    assert [row.reason is None for row in rows] == [False, True, False]
    assert encoder(GENERATION).encode([]) == []


def test_blocks_that_do_not_fit_the_turns_are_not_guessed() -> None:
    twice = GENERATION.replace("{%- generation -%}", "{%- generation -%}({%- endgeneration -%}{%- generation -%}")
    assert (
        scored_text(encoder(twice), TWO_TURNS[1:3]) == "(Hello!<|end|>"
    )  # all turns wanted: no need to tell them apart
    assert reason(twice, TWO_TURNS, turns="last") == "the chat template marks 4 generation blocks in 2 assistant turns"


def test_a_template_that_is_missing_or_broken() -> None:
    with pytest.raises(ModelError, match=r"'chat' was asked, but the tokenizer .* no chat template; ask for 'plain'"):
        encoder(None, template="chat")
    with pytest.raises(ModelError, match="not valid Jinja: line 1"):
        encoder("{% for %}")


def test_identity_follows_the_templates_text() -> None:
    identity = encoder(GENERATION).identity()
    assert identity["template"] == "chat" and identity == encoder(GENERATION).identity()
    assert encoder(UNMARKED).identity() != identity
    assert encoder(GENERATION, template="plain").identity() == encoder(None).identity()
    assert encoder(None).identity()["template"] == "plain"


def test_a_tokenizer_file_that_truncates_does_not() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding()
    lengths = [row.ids.size for row in Encoder(tokenizer).encode([TWO_TURNS, TWO_TURNS[1:3]])]
    assert lengths == [row.ids.size for m in (TWO_TURNS, TWO_TURNS[1:3]) for row in encoder(GENERATION).encode([m])]
