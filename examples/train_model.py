"""Train ``examples/model``: a small Llama language model that lets every scorer run on any machine.

    OMP_NUM_THREADS=2 python examples/train_model.py --data 'DATA/pool/*.parquet' --minutes 85

The script reads instruction rows whose licences allow use and redistribution, leaves out the example pool and every
near-copy of one of its rows, trains a byte-level BPE tokenizer, then a tied-embedding Llama by likelihood, and writes a
directory that ``transformers`` loads without further code.  The example pool is thereby held out;
``examples/evaluate_model.py`` measures on it.

Choices worth knowing
---------------------
- A sequence is a whole conversation, so an answer is always learned with its prompt in view.  A share of the rows is
  joined into long conversations (1,024 and 2,048 tokens), which trains the later positions.
- Loss per token: weight ``prompt_weight`` outside assistant spans; inside, ``(64 / span length) ** 0.5``, kept within
  [0.5, 4], so that one-word answers are not lost among long ones.  A batch's loss is the weighted mean.
- Muon (momentum, then five Newton-Schulz steps towards the nearest orthogonal matrix) moves the hidden matrices; AdamW
  moves the embedding and the norms.  The learning rate follows the share of ``--minutes`` that has passed, so the same
  command fits any machine; how many tokens are seen then depends on its speed.
- Products run in bfloat16 (autocast); weights, norms, softmax and loss in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

# (source, task or None for all) -> rows that may be used and passed on without share-alike or non-commercial terms.
TRAINING_SOURCES = [
    ("gpteacher", None),
    ("gpteacher_mirror", None),
    ("gsm8k", None),
    ("gsm8k_alpaca_format", None),
    ("text2sql", "sql_advising"),
    ("clinc150", None),
    ("mbpp", None),
    ("tata", None),
    ("lf_demo", "glaive_toolcall_en"),
    ("lf_demo", "reason_tool_use"),
    ("lf_demo", "dpo_en_chosen"),
    ("lf_demo", "identity"),
    ("self_instruct_seed", None),
]
TRAINING_LICENSES = {"MIT", "Apache-2.0", "Apache-2.0 (repository)", "CC BY 3.0", "CC BY 4.0"}

BOS, EOS, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL_TOKENS = [PAD, BOS, EOS] + [f"<|{role}|>" for role in ROLES]

# One system block for the tools, then each message as <|role|>content<|end|>; k messages render to a prefix of k + 1.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}
{{- '<|system|>You can call these functions:' -}}
{%- for tool in tools -%}
{{- '\\n' + (tool.function if tool.function is defined else tool) | tojson -}}
{%- endfor -%}
{{- eos_token -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role ' + message.role) -}}
{%- endif -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function is defined else call -%}
{{- '<tool_call>{"name": ' + function.name | tojson + ', "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{{- eos_token -}}
{%- endgeneration -%}
{%- else -%}
{{- (message.content or '') + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Shape of the Llama model."""

    vocab: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 8
    hidden: int = 704
    """Width inside the gated feed-forward block."""
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


# --- rows -------------------------------------------------------------------------------------------------------------


def rng_for(seed: int, *names: str | int) -> np.random.Generator:
    """A random stream named by its purpose."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=16).digest()
    key = tuple(np.frombuffer(digest, dtype="<u4").tolist())
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def normalise(text: str) -> str:
    """Lower-case letters and digits only."""
    return "".join(c for c in text.lower() if c.isalnum())


WRAPPERS = {  # source -> patterns that find the bare question inside a fixed wrapper
    "clinc150": [
        r'Utterance: "(.*)"\. Label:$',
        r"Request: (.*)$",
        r"intent name only\.\n(.*)$",
        r"^(.*)\n\nWhich intent is this\?",
    ],
    "text2sql": [r"Question: (.*)$", r"query for: (.*)$", r"advising database\.\n(.*)$", r"Q: (.*)\nSQL:$"],
    "gpteacher": [r"^toolformer: enabled.*\n(.*)$"],
}


def bare_prompt(row: dict) -> str:
    """The first user message without its wrapper."""
    text = next((m["content"] for m in row["messages"] if m["role"] == "user"), "")
    for pattern in WRAPPERS.get(row["source"], []):
        found = re.search(pattern, text.strip(), flags=re.DOTALL)
        if found:
            return found.group(1)
    return text


def word_triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def leave_out_near_copies(rows: list[dict], pool: list[dict], overlap: float) -> tuple[list[dict], dict[str, int]]:
    """The rows that no pool row resembles, and how many fell to each rule.

    A row falls if (1) its first user message, or that message without its wrapper, equals a pool row's up to case and
    punctuation; (2) its last answer, of more than 40 letters and digits, equals a pool row's; (3) the word triples of
    the two bare prompts have a Jaccard overlap of at least ``overlap``; (4) an earlier row has the same prompt and
    answer.
    """

    def prompts(row: dict) -> set[str]:
        first_user = next((m["content"] for m in row["messages"] if m["role"] == "user"), "")
        return {normalise(first_user), normalise(bare_prompt(row))}

    def answer(row: dict) -> str:
        return normalise(row["messages"][-1]["content"])

    pool_prompts = set().union(*(prompts(r) for r in pool))
    pool_answers = {answer(r) for r in pool if len(answer(r)) > 40}
    pool_triples = [word_triples(bare_prompt(r)) for r in pool]
    holders: dict[tuple[str, ...], list[int]] = {}
    for i, triples in enumerate(pool_triples):
        for triple in triples:
            holders.setdefault(triple, []).append(i)

    def resembles(triples: set[tuple[str, ...]]) -> bool:
        shared: dict[int, int] = {}
        for triple in triples:
            for i in holders.get(triple, ()):
                shared[i] = shared.get(i, 0) + 1
        return any(n >= overlap * (len(triples) + len(pool_triples[i]) - n) for i, n in shared.items())

    kept: list[dict] = []
    fell = {"same prompt": 0, "same answer": 0, "similar prompt": 0, "repeats a kept row": 0}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        identity = (normalise(row["messages"][0]["content"]), answer(row))
        if prompts(row) & pool_prompts:
            fell["same prompt"] += 1
        elif answer(row) in pool_answers:
            fell["same answer"] += 1
        elif resembles(word_triples(bare_prompt(row))):
            fell["similar prompt"] += 1
        elif identity in seen:
            fell["repeats a kept row"] += 1
        else:
            seen.add(identity)
            kept.append(row)
    return kept, fell


def read_training_rows(data: str, pool_dir: Path, overlap: float) -> tuple[list[dict], dict[str, int]]:
    """Permissive rows, in id order, less the example pool and its near-copies."""
    allowed = pl.lit(False)
    for source, task in TRAINING_SOURCES:
        same_task = pl.lit(True) if task is None else pl.col("task") == task
        allowed |= (pl.col("source") == source) & same_task
    rows = pl.read_parquet(data).filter(allowed).sort("id").to_dicts()
    unexpected = {(r["source"], r["license"]) for r in rows} - {
        (r["source"], r["license"]) for r in rows if r["license"] in TRAINING_LICENSES
    }
    if unexpected:
        raise ValueError(f"training rows under licences that are not on the list: {sorted(unexpected)}")
    pool = pl.read_parquet(str(pool_dir / "*.parquet")).to_dicts()
    return leave_out_near_copies(rows, pool, overlap)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE; each digit is a token of its own, so that numbers can be copied."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """One conversation: token ids, and which of them an assistant wrote (its end token included)."""

    ids: NDArray[np.int64]
    spoken: NDArray[np.bool_]
    source: str


def encode_rows(rows: list[dict], tokenizer: Tokenizer) -> list[Encoded]:
    """What the chat template renders, without going through it (a test in ``evaluate_model.py`` compares the two)."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    contents = [m["content"] for r in rows for m in r["messages"]]
    pieces = iter(tokenizer.encode_batch(contents, add_special_tokens=False))
    encoded = []
    for row in rows:
        ids, spoken = [bos], [False]
        for message in row["messages"]:
            body = [*next(pieces).ids, eos]
            ids += [tokenizer.token_to_id(f"<|{message['role']}|>"), *body]
            spoken += [False] + [message["role"] == "assistant"] * len(body)
        encoded.append(Encoded(np.array(ids), np.array(spoken), row["source"]))
    return encoded


# --- batches ----------------------------------------------------------------------------------------------------------


def token_weights(spoken: NDArray[np.bool_], prompt_weight: float) -> NDArray[np.float32]:
    """Loss weight of each token."""
    length = max(int(spoken.sum()), 1)
    answer_weight = min(max((64 / length) ** 0.5, 0.5), 4.0)
    return np.where(spoken, answer_weight, prompt_weight).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences; with causal attention the padding needs no mask."""

    ids: Tensor  # (b, t)
    weights: Tensor  # (b, t), 0 at padding and at the first token
    tokens: int  # padding not counted


def collate(sequences: list[tuple[NDArray, NDArray]], pad: int) -> Batch:
    width = -(-max(len(ids) for ids, _ in sequences) // 32) * 32 + 1  # inputs are [:-1]
    ids = np.full((len(sequences), width), pad)
    weights = np.zeros((len(sequences), width), dtype=np.float32)
    for i, (row, weight) in enumerate(sequences):
        ids[i, : len(row)] = row
        weights[i, 1 : len(row)] = weight[1:]
    return Batch(torch.from_numpy(ids), torch.from_numpy(weights), sum(len(r) for r, _ in sequences))


def epoch_batches(
    rows: list[Encoded],
    rng: np.random.Generator,
    *,
    batch_tokens: int,
    joined: float,
    context: int,
    prompt_weight: float,
    pad: int,
) -> Iterator[Batch]:
    """One pass over the rows, in batches of similar length and at most about ``batch_tokens`` tokens."""
    weighted = [(r.ids[:context], token_weights(r.spoken, prompt_weight)[:context]) for r in rows]
    order = rng.permutation(len(rows))
    cut = int(joined * len(rows))

    sequences = [weighted[i] for i in order[cut:]]
    # Join rows of one source into long conversations: sort what is left by source, then fill up to a drawn length.
    run: list[int] = []
    run_length, limit = 0, int(rng.choice([context // 2, context]))
    for i in sorted(order[:cut], key=lambda i: rows[i].source):
        if run and run_length + len(rows[i].ids) > limit:
            sequences.append(_join(run, weighted))
            run, run_length, limit = [], 0, int(rng.choice([context // 2, context]))
        run.append(i)
        run_length += len(rows[i].ids)
    if run:
        sequences.append(_join(run, weighted))

    jitter = rng.uniform(0.85, 1.15, size=len(sequences))
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) * jitter[i])
    batches: list[list[int]] = [[]]
    longest = 0
    for i in by_length:
        longest = max(longest, len(sequences[i][0]))
        if batches[-1] and longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = len(sequences[i][0])
        batches[-1].append(i)
    for b in rng.permutation(len(batches)):
        yield collate([sequences[i] for i in batches[b]], pad)


def _join(run: list[int], weighted: list[tuple[NDArray, NDArray]]) -> tuple[NDArray, NDArray]:
    """One conversation out of several: only the first keeps its beginning-of-text token."""
    ids = [weighted[run[0]][0]] + [weighted[i][0][1:] for i in run[1:]]
    weights = [weighted[run[0]][1]] + [weighted[i][1][1:] for i in run[1:]]
    return np.concatenate(ids), np.concatenate(weights)


# --- model ------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention and gated feed-forward, with ``transformers``' names for the weights."""

    def __init__(self, shape: ModelShape):
        super().__init__()
        d, self.heads, self.eps = shape.width, shape.heads, shape.norm_eps
        self.input_layernorm = nn.Parameter(torch.ones(d))
        self.post_attention_layernorm = nn.Parameter(torch.ones(d))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Parameter(torch.empty(d, d)))
        self.gate_proj = nn.Parameter(torch.empty(shape.hidden, d))
        self.up_proj = nn.Parameter(torch.empty(shape.hidden, d))
        self.down_proj = nn.Parameter(torch.empty(d, shape.hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, d = x.shape
        h = F.rms_norm(x, (d,), self.input_layernorm, self.eps)
        qkv = F.linear(h, torch.cat([self.q_proj, self.k_proj, self.v_proj]))
        q, k, v = qkv.view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(a.transpose(1, 2).reshape(b, t, d), self.o_proj)
        h = F.rms_norm(x, (d,), self.post_attention_layernorm, self.eps)
        gate, up = F.linear(h, torch.cat([self.gate_proj, self.up_proj])).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down_proj)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in ``transformers``' half-split layout.  x: (b, h, t, d), cos and sin: (t, d)."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


class TinyLlama(nn.Module):
    """A Llama forward pass without the options we do not need; equal to ``LlamaForCausalLM`` (checked on export)."""

    def __init__(self, shape: ModelShape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Parameter(torch.empty(shape.vocab, shape.width))
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        head = shape.width // shape.heads
        frequencies = shape.rope_theta ** (-torch.arange(0, head, 2).float() / head)
        angles = torch.arange(shape.context).float()[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def reset(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 if name == "embed_tokens" else 0.5 / math.sqrt(parameter.shape[1])
                if name.endswith(("o_proj", "down_proj")):
                    std *= 0.2
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.embed_tokens)
        t = ids.shape[1]
        cos, sin = self.cos[:t], self.sin[:t]
        if torch.is_autocast_enabled("cpu"):
            cos, sin = cos.bfloat16(), sin.bfloat16()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.shape.norm_eps), self.embed_tokens)

    def loss(self, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the token losses, and the sum of the weights."""
        logits = self(ids[:, :-1]).flatten(0, 1).float()
        losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        w = weights[:, 1:].flatten()
        return (losses * w).sum(), w.sum()

    def transformers_state(self) -> dict[str, Tensor]:
        """Weights under the names of ``LlamaForCausalLM``."""
        state = {}
        for name, value in self.state_dict().items():
            name = re.sub(r"\.([qkvo]_proj)$", r".self_attn.\1", name)
            name = re.sub(r"\.((gate|up|down)_proj)$", r".mlp.\1", name)
            state[f"model.{name}.weight"] = value
        return state


def transformers_model(shape: ModelShape, state: dict[str, Tensor], tokenizer: Tokenizer):
    """``LlamaForCausalLM`` holding these weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokens = {name: tokenizer.token_to_id(t) for name, t in [("bos", BOS), ("eos", EOS), ("pad", PAD)]}
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=True,
        bos_token_id=tokens["bos"],
        eos_token_id=tokens["eos"],
        pad_token_id=tokens["pad"],
    )
    model = LlamaForCausalLM(config)
    missing = model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"weights do not fit LlamaForCausalLM: {missing}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokens["bos"], eos_token_id=tokens["eos"], pad_token_id=tokens["pad"], max_new_tokens=256
    )
    return model.eval()


def save_model(model: TinyLlama, tokenizer: Tokenizer, out: Path) -> float:
    """Write the model directory in bfloat16; returns the largest logit difference to ``transformers``, in float32."""
    theirs = transformers_model(model.shape, model.transformers_state(), tokenizer)
    ids = torch.arange(2 * 300).view(2, 300) * 7919 % model.shape.vocab
    with torch.no_grad():
        difference = float((theirs(ids).logits - model(ids)).abs().max())
    if difference > 1e-4:
        raise RuntimeError(f"our forward pass and LlamaForCausalLM differ by {difference:.2g} in a logit")
    theirs.bfloat16().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    # By hand, in the form that transformers 4 and 5 both read: the class name and the template's place changed.
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [f"<|{role}|>" for role in ROLES],
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.shape.context,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    return difference


# --- optimiser --------------------------------------------------------------------------------------------------------


def orthogonalise(g: Tensor) -> Tensor:
    """Five quintic Newton-Schulz steps on a stack of matrices (n, r, c); singular values end within about [0.7, 1.2].

    Coefficients from Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if wide else x).float()


class Muon:
    """Nesterov momentum, orthogonalised, times ``sqrt(max(1, rows / cols))``; decoupled weight decay."""

    def __init__(self, parameters: list[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.0):
        self.momentum, self.weight_decay = momentum, weight_decay
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in parameters:
            by_shape.setdefault(p.shape, []).append(p)
        self.groups = [(ps, torch.zeros(len(ps), *shape)) for shape, ps in by_shape.items()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for parameters, buffer in self.groups:
            grads = torch.stack([p.grad for p in parameters])
            buffer.lerp_(grads, 1 - self.momentum)
            update = orthogonalise(grads.lerp(buffer, self.momentum))
            rows, cols = update.shape[-2:]
            scale = lr * max(1.0, rows / cols) ** 0.5
            for p, u in zip(parameters, update, strict=True):
                p.mul_(1 - lr * self.weight_decay).sub_(u, alpha=scale)


def schedule(done: float, *, warmup: float = 0.02, hold: float = 0.4) -> float:
    """Share of the full learning rate after the share ``done`` of the time: up, flat, then down to zero."""
    if done < warmup:
        return max(done / warmup, 0.05)
    if done < hold:
        return 1.0
    return max((1 - done) / (1 - hold), 0.0)


# --- training ---------------------------------------------------------------------------------------------------------


def peek(model: nn.Module, rows: list[Encoded], other: NDArray[np.int64], context: int) -> dict[str, float]:
    """Held-out nats per answer token, and the share of rows whose answer is likelier under its own prompt.

    Single-turn rows only: ``other[i]`` is the row whose prompt row i borrows.
    """

    def mean_losses(pairs: list[tuple[NDArray, NDArray]]) -> NDArray:
        out = np.zeros(len(pairs))
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        for lo in range(0, len(order), 16):
            some = order[lo : lo + 16]
            sequences = [(np.concatenate(pairs[i])[:context], None) for i in some]
            batch = collate([(s, np.zeros(len(s), np.float32)) for s, _ in sequences], 0)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.ids[:, :-1])
            flat = F.cross_entropy(logits.flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none")
            losses = flat.view(len(some), -1).numpy()
            for j, i in enumerate(some):
                start, stop = len(pairs[i][0]), len(sequences[j][0])
                out[i] = losses[j, start - 1 : stop - 1].mean()
        return out

    def prompt(i: int) -> NDArray:
        return rows[i].ids[: rows[i].spoken.argmax()]

    own = mean_losses([(prompt(i), r.ids[r.spoken]) for i, r in enumerate(rows)])
    borrowed = mean_losses([(prompt(other[i]), r.ids[r.spoken]) for i, r in enumerate(rows)])
    report = {"nats": float(own.mean()), "reads_prompt": float((own < borrowed).mean())}
    for source in sorted({r.source for r in rows}):
        some = np.array([r.source == source for r in rows])
        report[source] = float((own < borrowed)[some].mean())
    return report


def peek_rows(pool_dir: Path, tokenizer: Tokenizer, count: int, context: int, seed: int):
    """About ``count`` single-turn pool rows, and for each another row of its source."""
    rows = pl.read_parquet(str(pool_dir / "*.parquet")).to_dicts()
    rows = [r for r in rows if [m["role"] for m in r["messages"]] == ["user", "assistant"]]
    rng = rng_for(seed, "peek")
    rows = [rows[i] for i in rng.permutation(len(rows))]
    rows = [r for r in encode_rows(rows, tokenizer) if len(r.ids) < context // 2][:count]
    keep, other = [], []
    for i, row in enumerate(rows):
        partners = [
            j
            for j, r in enumerate(rows)
            if r.source == row.source and not np.array_equal(r.ids[r.spoken], row.ids[row.spoken])
        ]
        if partners:
            keep.append(i)
            other.append(int(rng.choice(partners)))
    index = {i: n for n, i in enumerate(keep)}
    return [rows[i] for i in keep], np.array([index[j] for j in other])


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    shape = ModelShape(vocab=args.vocab, width=args.width, layers=args.layers, heads=args.heads, hidden=args.hidden)
    args.scratch.mkdir(parents=True, exist_ok=True)

    rows, fell = read_training_rows(args.data, args.pool, args.overlap)
    tokenizer = train_tokenizer([m["content"] for r in rows for m in r["messages"]], shape.vocab)
    tokenizer.save(str(args.scratch / "tokenizer.json"))
    encoded = encode_rows(rows, tokenizer)
    per_source: dict[str, dict[str, int]] = {}
    for row in encoded:
        entry = per_source.setdefault(row.source, {"rows": 0, "tokens": 0, "answer_tokens": 0})
        entry["rows"] += 1
        entry["tokens"] += len(row.ids)
        entry["answer_tokens"] += int(row.spoken.sum())
    data_report = {"left_out": fell, "rows": len(rows), "per_source": per_source}
    data_report["tokens_per_epoch"] = sum(e["tokens"] for e in per_source.values())
    print(json.dumps(data_report), flush=True)
    (args.scratch / "training_ids.txt").write_text("\n".join(r["id"] for r in rows) + "\n")

    model = TinyLlama(shape)
    model.reset(torch.Generator().manual_seed(args.seed))
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "embed_tokens"]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or n == "embed_tokens"]
    muon = Muon(matrices, weight_decay=args.weight_decay)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    loss_of = torch.compile(model.loss, dynamic=True) if args.compile else model.loss
    peeked, borrowed = peek_rows(args.pool, tokenizer, args.peek_rows, shape.context, args.seed)
    print(f"{parameters:,} parameters; {len(peeked)} rows to peek at", flush=True)

    def batches() -> Iterator[tuple[int, Batch]]:
        for epoch in range(1_000_000):
            rng = rng_for(args.seed, "epoch", epoch)
            for batch in epoch_batches(
                encoded,
                rng,
                batch_tokens=args.batch_tokens,
                joined=args.joined,
                context=shape.context,
                prompt_weight=args.prompt_weight,
                pad=tokenizer.token_to_id(PAD),
            ):
                yield epoch, batch

    start = time.monotonic()
    done, step, tokens, running = 0.0, 0, 0, []
    next_peek, next_save = args.peek_minutes, args.save_minutes
    history: list[dict] = []
    stream = batches()
    while done < 1:
        lr = schedule(done)
        value = 0.0
        micro = [next(stream) for _ in range(args.accumulate)]
        weight = sum(float(b.weights.sum()) for _, b in micro)
        epoch = micro[-1][0]
        for _, batch in micro:
            with torch.autocast("cpu", torch.bfloat16):
                total, _ = loss_of(batch.ids, batch.weights)
            (total / weight).backward()
            value += float(total.detach()) / weight
            tokens += batch.tokens
        muon.step(args.muon_lr * lr)
        adam.param_groups[0]["lr"] = args.adam_lr * lr
        adam.step()
        model.zero_grad(set_to_none=True)
        step += 1
        running.append(value)
        minutes = (time.monotonic() - start) / 60
        done = minutes / args.minutes
        if step % 20 == 0:
            mean = float(np.mean(running[-20:]))
            rate = tokens / minutes / 60
            print(
                f"{minutes:6.1f} min  step {step}  epoch {epoch}  loss {mean:.4f}  lr x{lr:.2f}  {rate:,.0f} tokens/s",
                flush=True,
            )
        if minutes >= next_peek or done >= 1:
            next_peek += args.peek_minutes
            report = {
                "minutes": round(minutes, 1),
                "step": step,
                "epoch": epoch,
                "tokens": tokens,
                "loss": float(np.mean(running[-100:])),
                **peek(model, peeked, borrowed, shape.context),
            }
            history.append(report)
            print("peek " + json.dumps({k: round(v, 4) for k, v in report.items()}), flush=True)
        if minutes >= next_save or done >= 1:
            next_save += args.save_minutes
            difference = save_model(model, tokenizer, args.out)
            torch.save(model.state_dict(), args.scratch / "weights.pt")
            run = {
                "command": shlex.join([Path(sys.argv[0]).name, *args.shown]),
                "seed": args.seed,
                "parameters": parameters,
                "shape": asdict(shape),
                "finished": done >= 1,
                "minutes": round(minutes, 2),
                "steps": step,
                "epochs": epoch,
                "tokens_seen": tokens,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "largest_logit_difference_to_transformers": difference,
                "data": data_report,
                "peeks": history,
            }
            path = args.out / "metrics.json"
            metrics = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**metrics, "training": run}, indent=2) + "\n")
            print(f"saved after {minutes:.1f} min, {tokens:,} tokens; largest difference {difference:.1e}", flush=True)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="glob of Parquet files with the training rows")
    parser.add_argument("--pool", type=Path, default=here / "pool", help="directory of the held-out example pool")
    parser.add_argument("--out", type=Path, default=here / "model")
    parser.add_argument("--scratch", type=Path, default=Path("train_model_scratch"), help="float32 weights and lists")
    parser.add_argument("--minutes", type=float, default=85.0, help="wall-clock length of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=704)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of one batch, padding included")
    parser.add_argument("--accumulate", type=int, default=2, help="batches to an optimiser step")
    parser.add_argument("--joined", type=float, default=0.1, help="share of rows joined into long conversations")
    parser.add_argument("--prompt-weight", type=float, default=0.3, help="loss weight of tokens no assistant wrote")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--overlap", type=float, default=0.6, help="word-triple overlap from which a prompt is a copy")
    parser.add_argument("--compile", action="store_true", help="compile the training step (needs a C++ compiler)")
    parser.add_argument("--peek-rows", type=int, default=400)
    parser.add_argument("--peek-minutes", type=float, default=8.0)
    parser.add_argument("--save-minutes", type=float, default=10.0)
    args = parser.parse_args()
    args.shown = ["DATA" if sys.argv[i] == "--data" else a for i, a in enumerate(sys.argv[1:])]
    train(args)


if __name__ == "__main__":
    main()
