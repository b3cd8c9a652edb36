"""Models and tokenizers small enough to build in a test: random weights, real architectures, real templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]

TEXTS = [
    "What is the capital of France? The capital of France is Paris.",
    "Write a function that adds two numbers.\n\ndef add(a, b):\n    return a + b\n",
    "How many apples are left? There are 12 apples, so 12 - 5 = 7 apples are left.",
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
    "naïve café, 你好, 😀 and 👩‍🚀",
] * 3

_TOOLS = "{%- if tools -%}{{- '<|system|>' + tools | tojson + eos_token -}}{%- endif -%}"
_CALLS = "{%- for call in message.tool_calls or [] -%}{{- '<tool_call>' + call | tojson -}}{%- endfor -%}"


def _template(start: str, inner_end: str, outer_end: str) -> str:
    """Return a template whose assistant turns are: start, content, calls, inner end, outer end."""
    return (
        "{{- bos_token -}}"
        + _TOOLS
        + "{%- for message in messages -%}{{- '<|' + message.role + '|>' -}}"
        + "{%- if message.role == 'assistant' -%}"
        + f"{start}{{{{- message.content -}}}}{_CALLS}{inner_end}{outer_end}"
        + "{%- else -%}{{- message.content + eos_token -}}{%- endif -%}{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    )


_EOS = "{{- eos_token -}}"
GENERATION = _template("{%- generation -%}", _EOS + "{%- endgeneration -%}", "")
"""Marks what the model writes, end token included."""
GENERATION_WITHOUT_END = _template("{%- generation -%}", "{%- endgeneration -%}", _EOS)
"""Leaves the end token outside of the block, as some published templates do."""
UNMARKED = _template("", _EOS, "")
"""The same text without the blocks."""

CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML: a line break after the end token, no BOS, no tools."""

FORGETFUL = (
    "{%- for message in messages -%}{{- '<|' + message.role + '|>' -}}"
    "{%- if loop.last and message.thinking is defined -%}{{- message.thinking + '\\n' -}}{%- endif -%}"
    "{{- message.content + eos_token -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""Drops the thinking of all turns but the last: not prefix-stable."""

EMPTY_THINKING = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.role == 'assistant' and loop.last -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{{- message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""Puts an empty thinking into the last turn only, as Qwen 3's does."""

RETURNS = (
    "{%- for message in messages -%}{{- '<|' + message.role + '|>' + message.content -}}"
    "{{- '<|end|>' if loop.last and message.role == 'assistant' else '<|im_end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""Ends the last turn by another token than the turns before it, as gpt-oss's does."""


def tiny_tokenizer(
    chat_template: str | None = GENERATION, *, trim_offsets: bool = False, adds_bos: bool = False
) -> Any:
    """Return a byte-level BPE of 512 ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL, "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]))
    tokenizer.post_processor = processors.Sequence(steps)
    out = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )
    out.chat_template = chat_template
    return out


def save_tiny_model(folder: Path, config: Any = None, *, tokenizer: Any = None, dtype: Any = None) -> Path:
    """Save a model of random weights (seed 0) with its tokenizer; a Llama unless ``config`` says otherwise."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if config is None:
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # as saved, logits are all alike: make wrong ones show
            parameter.data.mul_(4) if parameter.ndim > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder
