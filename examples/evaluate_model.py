"""Measure ``examples/model`` on the example pool, which its training left out.

    OMP_NUM_THREADS=2 python examples/evaluate_model.py --data 'DATA/pool/*.parquet'

``--data`` names the rows the model was trained on; they are read again to fit the n-gram baselines on the same tokens.
The report goes to ``metrics.json`` in the model's directory, under ``held_out``.

Answer loss
    Over all tokens that an assistant wrote, end tokens included: nats per token, perplexity (``exp`` of that) and bits
    per UTF-8 byte of the answers.  Beside it a unigram model, an interpolated Kneser-Ney trigram model (discounts
    chosen on a slice of the training rows), and that trigram mixed with a cache of the tokens that came before in the
    conversation.  Each is fitted on all training tokens or on the answers alone, whichever suits the slice better.

Prompt reading
    Is an answer likelier under its own prompt than under another's?  The prompt is what stands before the first
    assistant turn; every row borrows that of another row of its source (a derangement drawn from the seed).  The rest
    of the conversation stays as it is, and the mean log-probability of its answer tokens is compared.  A pair is not
    counted if the two prompts or the two rows' answers are the same up to case and punctuation.  ``share`` is the share
    of rows whose own prompt wins (a tie is no win); ``auc`` the chance that some row's own score beats some row's
    borrowed score, so that the spread between rows counts against it.  For conversations of several answers
    ``last_answer`` gives the share when all that stands before the last answer is borrowed, on the first 150 of them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from train_model import Encoded, bare_prompt, encode_rows, normalise, read_training_rows, rng_for
from transformers import AutoModelForCausalLM, AutoTokenizer

Scorer = Callable[[list["Sequence"]], list[NDArray]]
"""Takes sequences, returns for each the log-probabilities (nats) of the tokens that are marked."""


@dataclass(frozen=True)
class Sequence:
    """Token ids, and which of them are to be scored."""

    ids: NDArray[np.int64]
    marked: NDArray[np.bool_]


# --- scorers ----------------------------------------------------------------------------------------------------------


def model_scorer(model: torch.nn.Module, tokens_per_batch: int = 8192) -> Scorer:
    """Scores by the language model, in float32, in right-padded batches of similar length."""

    def score(sequences: list[Sequence]) -> list[NDArray]:
        out: list[NDArray] = [np.empty(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].ids))
        while order:
            longest = len(sequences[order[0]].ids)
            count = max(1, tokens_per_batch // longest)
            some, order = order[:count], order[count:]
            ids = torch.zeros(len(some), longest, dtype=torch.long)
            for j, i in enumerate(some):
                ids[j, : len(sequences[i].ids)] = torch.from_numpy(sequences[i].ids)
            with torch.inference_mode():
                hidden = model.model(ids).last_hidden_state
            for j, i in enumerate(some):
                at = torch.from_numpy(np.flatnonzero(sequences[i].marked))
                logits = model.lm_head(hidden[j, at - 1]).float()
                out[i] = -F.cross_entropy(logits, ids[j, at], reduction="none").detach().numpy().astype(np.float64)
        return out

    return score


class Counts:
    """Counts of whole numbers; a number never seen counts 0."""

    def __init__(self, keys: NDArray[np.int64], weights: NDArray | None = None):
        self.keys, inverse = np.unique(keys, return_inverse=True)
        self.values = np.bincount(inverse, weights=weights, minlength=len(self.keys)).astype(np.float64)

    def __getitem__(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.values[at], 0.0)


class KneserNey:
    """Interpolated Kneser-Ney trigram (Chen and Goodman 1998, section 2.7), absolute discounts.

    P(c | a b) = max(n(abc) - D3, 0) / n(ab) + D3 N(ab.) / n(ab) P(c | b)
    P(c | b)   = max(N(.bc) - D2, 0) / N(.b.) + D2 N(b.) / N(.b.) P(c)
    P(c)       = max(N(.c) - D1, 0) / N(..) + D1 (number of c seen) / N(..) / V, with D1 = 1/2

    n counts occurrences and N distinct contexts; where a context was never seen, the next shorter one is used.
    """

    def __init__(self, rows: list[Encoded], vocab: int, *, answers_only: bool):
        a, b, c = trigrams(rows, answers_only=answers_only)
        self.vocab = vocab
        self.unigrams = np.bincount(c, minlength=vocab) + 1.0  # add one
        self.unigrams /= self.unigrams.sum()
        ab, bc, abc = a * vocab + b, b * vocab + c, (a * vocab + b) * vocab + c
        self.n_abc, self.n_ab = Counts(abc), Counts(ab)
        distinct = self.n_abc.keys
        self.kinds_ab = Counts(distinct // vocab)
        self.left_bc, self.left_b = Counts(distinct % vocab**2), Counts(distinct % vocab**2 // vocab)
        pairs = Counts(bc).keys
        self.kinds_b = Counts(pairs // vocab)
        self.left_c = Counts(pairs % vocab)
        self.pair_count = len(pairs)
        self.d2 = self.d3 = 0.75

    def probabilities(self, a: NDArray, b: NDArray, c: NDArray) -> NDArray[np.float64]:
        v = self.vocab
        seen = len(self.left_c.keys)
        p = np.maximum(self.left_c[c] - 0.5, 0) / self.pair_count + 0.5 * seen / self.pair_count / v
        for d, joint, context, kinds, low, high in (
            (self.d2, self.left_bc, self.left_b, self.kinds_b, b, b * v + c),
            (self.d3, self.n_abc, self.n_ab, self.kinds_ab, a * v + b, (a * v + b) * v + c),
        ):
            total = context[low]
            safe = np.maximum(total, 1)
            q = np.maximum(joint[high] - d, 0) / safe + d * kinds[low] / safe * p
            p = np.where(total > 0, q, p)
        return p


def trigrams(rows: list, *, answers_only: bool) -> tuple[NDArray, NDArray, NDArray]:
    """(a, b, c) for every token c but the first, or for those an assistant wrote."""
    a = np.concatenate([np.r_[r.ids[:1], r.ids[:-2]] for r in rows])
    b = np.concatenate([r.ids[:-1] for r in rows])
    c = np.concatenate([r.ids[1:] for r in rows])
    if not answers_only:
        return a, b, c
    marked = np.concatenate([r.spoken[1:] for r in rows])
    return a[marked], b[marked], c[marked]


def cache_probabilities(sequence: Sequence) -> NDArray[np.float64]:
    """For each marked token, its share of the tokens before it."""
    seen: Counter[int] = Counter()
    out = []
    for n, (token, marked) in enumerate(zip(sequence.ids.tolist(), sequence.marked.tolist(), strict=True)):
        if marked:
            out.append(seen[token] / n)
        seen[token] += 1
    return np.array(out)


def ngram_scorers(rows: list[Encoded], vocab: int, seed: int) -> tuple[dict[str, Scorer], dict]:
    """Unigram, trigram, and trigram with cache, and what was chosen for them on a slice of the rows."""
    order = rng_for(seed, "n-gram slice").permutation(len(rows))
    cut = len(rows) // 20
    slice_rows, fit_rows = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
    held = trigrams(slice_rows, answers_only=True)

    chosen: dict = {}
    best_unigram = best_trigram = math.inf
    for answers_only in (False, True):
        tried = KneserNey(fit_rows, vocab, answers_only=answers_only)
        loss = -np.log(tried.unigrams[held[2]]).mean()
        if loss < best_unigram:
            best_unigram, chosen["unigram_on_answers_only"] = loss, answers_only
        for tried.d2 in (0.6, 0.75, 0.9):
            for tried.d3 in (0.5, 0.6, 0.7, 0.8, 0.9):
                loss = -np.log(tried.probabilities(*held)).mean()
                if loss < best_trigram:
                    best_trigram, base = loss, tried.probabilities(*held)
                    chosen |= {"trigram_on_answers_only": answers_only, "d2": tried.d2, "d3": tried.d3}
    cache = np.concatenate([cache_probabilities(Sequence(r.ids, r.spoken)) for r in slice_rows])
    shares = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
    losses = [-np.log((1 - s) * base + s * cache).mean() for s in shares]
    chosen["cache_share"] = shares[int(np.argmin(losses))]
    chosen["nats_on_slice"] = {"unigram": best_unigram, "trigram": best_trigram, "trigram_with_cache": min(losses)}

    final = {only: KneserNey(rows, vocab, answers_only=only) for only in (False, True)}
    unigrams = final[chosen["unigram_on_answers_only"]].unigrams
    trigram = final[chosen["trigram_on_answers_only"]]
    trigram.d2, trigram.d3 = chosen["d2"], chosen["d3"]

    def trigram_probabilities(s: Sequence) -> NDArray[np.float64]:
        at = np.flatnonzero(s.marked)
        return trigram.probabilities(s.ids[np.maximum(at - 2, 0)], s.ids[at - 1], s.ids[at])

    def mixed(s: Sequence) -> NDArray[np.float64]:
        share = chosen["cache_share"]
        return (1 - share) * trigram_probabilities(s) + share * cache_probabilities(s)

    scorers: dict[str, Scorer] = {
        "unigram": lambda sequences: [np.log(unigrams[s.ids[s.marked]]) for s in sequences],
        "trigram": lambda sequences: [np.log(trigram_probabilities(s)) for s in sequences],
        "trigram_with_cache": lambda sequences: [np.log(mixed(s)) for s in sequences],
    }
    return scorers, chosen


# --- measures ---------------------------------------------------------------------------------------------------------


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """UTF-8 bytes of each token; special tokens have none.  In byte-level BPE a token's name has a letter to a byte."""
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    size = tokenizer.get_vocab_size()
    return np.array([0 if i in special else len(tokenizer.id_to_token(i)) for i in range(size)])


def loss_report(scores: list[NDArray], sequences: list[Sequence], byte_counts: NDArray) -> dict[str, float]:
    nats = -sum(float(s.sum()) for s in scores)
    tokens = sum(len(s) for s in scores)
    size = sum(int(byte_counts[s.ids[s.marked]].sum()) for s in sequences)
    return {
        "nats_per_token": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / size,
    }


def derangements(sources: list[str], seed: int) -> NDArray[np.int64]:
    """For each row another row of its source; within a source each row is borrowed from once."""
    other = np.arange(len(sources))
    for source in sorted(set(sources)):
        some = np.flatnonzero(np.array(sources) == source)
        drawn = rng_for(seed, "borrowed prompts", source).permutation(some)
        other[drawn] = np.roll(drawn, 1)
    return other


def auc(own: NDArray, borrowed: NDArray) -> float:
    """Chance that a random own score is above a random borrowed one; ties count half."""
    ordered = np.sort(borrowed)
    below, up_to = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
    return float((below + up_to).mean() / 2 / len(borrowed))


def cut_at(row: Encoded, *, last: bool) -> int:
    """Index of the first token of the first (or last) answer."""
    starts = np.flatnonzero(row.spoken & ~np.r_[False, row.spoken[:-1]])
    return int(starts[-1 if last else 0])


def spliced(row: Encoded, other: Encoded, context: int, *, last: bool) -> Sequence:
    """The row's conversation from its first (or last) answer on, behind the other row's prompt."""
    cut, other_cut = cut_at(row, last=last), cut_at(other, last=last)
    ids = np.concatenate([other.ids[:other_cut], row.ids[cut:]])
    marked = np.concatenate([np.zeros(other_cut, bool), row.spoken[cut:]])
    return Sequence(ids[:context], marked[:context])


def reading_report(own: NDArray, borrowed: NDArray, counted: NDArray, sources: NDArray) -> dict[str, dict]:
    report = {}
    for source in ["overall", *sorted(set(sources.tolist()))]:
        some = counted & ((sources == source) | (source == "overall"))
        if some.any():
            report[source] = {
                "rows": int(some.sum()),
                "share": float((own > borrowed)[some].mean()),
                "ties": int((own == borrowed)[some].sum()),
                "auc": auc(own[some], borrowed[some]),
            }
    return report


def check_template(rows: list[dict], encoded: list[Encoded], tokenizer) -> int:
    """The template gives training's tokens and marks, and short conversations are prefixes of long ones."""
    for row, expected in zip(rows, encoded, strict=True):
        got = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        same = got["input_ids"] == expected.ids.tolist()
        if not same or [bool(m) for m in got["assistant_masks"]] != expected.spoken.tolist():
            raise RuntimeError(f"row {row['id']}: the chat template and the training encoding differ")
        texts = [
            tokenizer.apply_chat_template(row["messages"][:k], tokenize=False) for k in range(1, len(row["messages"]))
        ]
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        if not all(longer.startswith(text) for text, longer in zip(texts, [*texts[1:], whole], strict=True)):
            raise RuntimeError(f"row {row['id']}: the chat template is not prefix-stable")
    return len(rows)


def evaluate(args: argparse.Namespace) -> dict:
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    context = model.config.max_position_embeddings
    rows = pl.read_parquet(str(args.pool / "*.parquet")).to_dicts()[: args.rows]
    backend = tokenizer.backend_tokenizer
    encoded = encode_rows(rows, backend)
    checked = check_template(rows[:300], encoded[:300], tokenizer)

    training_rows, _ = read_training_rows(args.data, args.pool, args.overlap)
    baselines, chosen = ngram_scorers(encode_rows(training_rows, backend), len(backend.get_vocab()), args.seed)
    scorers = {"model": model_scorer(model), **baselines}

    usable = [i for i, r in enumerate(encoded) if r.spoken[:context].any()]
    rows, encoded = [rows[i] for i in usable], [encoded[i] for i in usable]
    sources = np.array([r.source for r in encoded])
    whole = [Sequence(r.ids[:context], r.spoken[:context]) for r in encoded]

    # Prompt reading.  A borrowed longer prompt can push the tail of a long conversation out of the context: both sides
    # are then compared on the answer tokens that fit in either.
    other = derangements(sources.tolist(), args.seed)
    prompts = [normalise(bare_prompt(r)) for r in rows]
    answers = [normalise("".join(m["content"] for m in r["messages"] if m["role"] == "assistant")) for r in rows]
    borrowed_sequences = [spliced(encoded[i], encoded[other[i]], context, last=False) for i in range(len(rows))]
    counted = np.array(
        [
            prompts[i] != prompts[j] and answers[i] != answers[j] and borrowed_sequences[i].marked.any()
            for i, j in enumerate(other)
        ]
    )
    several = np.array([int((np.diff(r.spoken.astype(int)) == 1).sum()) > 1 for r in encoded])
    both = [i for i, j in enumerate(other) if several[i] and several[j] and counted[i]][: args.last_answer_rows]
    last_own = [spliced(encoded[i], encoded[i], context, last=True) for i in both]
    last_borrowed = [spliced(encoded[i], encoded[other[i]], context, last=True) for i in both]
    fits = np.array([o.marked.any() and b.marked.any() for o, b in zip(last_own, last_borrowed, strict=True)], bool)

    losses: dict[str, dict] = {}
    reading: dict[str, dict] = {}
    for name, score in scorers.items():
        own = score(whole)
        losses[name] = {}
        for source in ["overall", *sorted(set(sources.tolist()))]:
            some = np.flatnonzero((sources == source) | (source == "overall"))
            report = loss_report([own[i] for i in some], [whole[i] for i in some], token_bytes(backend))
            losses[name][source] = {"rows": len(some), "tokens": sum(len(own[i]) for i in some), **report}
        borrowed = score(borrowed_sequences)
        lengths = [min(len(o), len(b)) for o, b in zip(own, borrowed, strict=True)]
        own_means = np.array([o[:n].mean() if n else 0.0 for o, n in zip(own, lengths, strict=True)])
        borrowed_means = np.array([b[:n].mean() if n else 0.0 for b, n in zip(borrowed, lengths, strict=True)])
        reading[name] = reading_report(own_means, borrowed_means, counted, sources)
        if fits.any() and name == "model":
            means = [np.array([s.mean() if len(s) else 0.0 for s in score(side)]) for side in (last_own, last_borrowed)]
            reading[name]["last_answer"] = reading_report(*means, fits, sources[both])
        print(
            f"{name}: {losses[name]['overall']} {reading[name]['overall']} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )

    return {
        "rows": len(rows),
        "rows_cut_at_context": sum(len(r.ids) > context for r in encoded),
        "context": context,
        "seed": args.seed,
        "dtype": "bfloat16 weights, float32 arithmetic",
        "sources_never_trained_on": ["dolly", "sgd"],
        "template_checked_on_rows": checked,
        "ngram_choices": chosen,
        "answer_loss": losses,
        "prompt_reading": {"pairs_not_counted": int((~counted).sum()), **reading},
    }


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="glob of Parquet files with the training rows")
    parser.add_argument("--pool", type=Path, default=here / "pool")
    parser.add_argument("--model", type=Path, default=here / "model")
    parser.add_argument("--out", type=Path, help="metrics file; default: metrics.json beside the model")
    parser.add_argument("--overlap", type=float, default=0.6, help="as given to train_model.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last-answer-rows", type=int, default=150, help="conversations in the last-answer test")
    parser.add_argument("--rows", type=int, help="only the first so many pool rows")
    args = parser.parse_args()

    path = args.out or args.model / "metrics.json"
    report = evaluate(args)
    metrics = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**metrics, "held_out": report}, indent=2) + "\n")

    print(f"{'source':<22}{'rows':>6}{'nats':>8}{'bpb':>7}{'trigram':>9}{'unigram':>9}{'reads':>8}{'auc':>7}")
    for source, row in report["answer_loss"]["model"].items():
        read = report["prompt_reading"]["model"].get(source, {"share": math.nan, "auc": math.nan})
        trigram, unigram = (report["answer_loss"][n][source]["nats_per_token"] for n in ("trigram", "unigram"))
        print(
            f"{source:<22}{row['rows']:>6}{row['nats_per_token']:>8.3f}{row['bits_per_byte']:>7.3f}"
            f"{trigram:>9.3f}{unigram:>9.3f}{read['share']:>8.1%}{read['auc']:>7.3f}"
        )


if __name__ == "__main__":
    main()
