"""A model that does as it is told by the test: what it would answer is a function of the prompt's turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from curate.models.base import CausalLM, Forward, Generation, Quantity, Row, Sampling
from curate.models.template import load_tokenizer

Turn = tuple[str, str]
ROLES = ("system", "user", "assistant", "tool")


class Scripted(CausalLM):
    """Reads turns where the token ids have the role's special token, and nowhere else.

    Parameters
    ----------
    model : folder of the tokenizer (the tests' own, or the shipped one: <|role|>content<|end|>).
    chooses : turns → probability of each option's text; what it leaves out has 0.
    writes : turns, number of the draw → text.
    """

    def __init__(
        self,
        model: str,
        chooses: Callable[[list[Turn]], Mapping[str, float]] = lambda turns: {},
        writes: Callable[[list[Turn], int], str] = lambda turns, k: "",
        context: int | None = None,
    ) -> None:
        self.tokenizer = load_tokenizer(model)
        self.vocab_size = len(self.tokenizer)
        self.context, self.device, self.dtype = context, "cpu", "float32"
        self.chooses, self.writes = chooses, writes
        self.asked: list[list[Turn]] = []

    def turns(self, ids: Sequence[int]) -> list[Turn]:
        """Return (role, content) of each turn; the last is the one that it is to write, empty."""
        roles = {self.tokenizer.convert_tokens_to_ids(f"<|{role}|>"): role for role in ROLES}
        end = self.tokenizer.eos_token_id
        out: list[tuple[str, list[int]]] = []
        for token in map(int, ids):
            if token in roles:
                out.append((roles[token], []))
            elif token != end and out:
                out[-1][1].append(token)
        return [(role, self.tokenizer.decode(part, clean_up_tokenization_spaces=False)) for role, part in out]

    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:
        raise NotImplementedError

    def option_logprobs(
        self, prompts: Sequence[NDArray[np.integer]], options: Sequence[Sequence[NDArray[np.integer]]]
    ) -> list[NDArray[np.float64] | None]:
        out: list[NDArray[np.float64] | None] = []
        for prompt, its in zip(prompts, options, strict=True):
            self.asked.append(self.turns(prompt))
            found = self.chooses(self.asked[-1])
            with np.errstate(divide="ignore"):
                out.append(np.log([found.get(self.tokenizer.decode(o).strip(), 0.0) for o in its]))
        return out

    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        for prompt in prompts:
            self.asked.append(self.turns(prompt))
        return [
            [Generation(self.writes(turns, k), 3, True) for k in range(sampling.n)]
            for turns in self.asked[len(self.asked) - len(prompts) :]
        ]

    def close(self) -> None:
        pass


def outside_of_fences(text: str) -> str:
    """Return what stands outside of the fences, by CommonMark's rule: closed by as many backticks, or more."""
    out, fence = [], 0
    for line in text.split("\n"):
        ticks = re.match(r" {0,3}(`{3,})", line)
        if fence:
            if ticks and len(ticks[1]) >= fence and not line.strip().strip("`"):
                fence = 0
        elif ticks and "`" not in line.strip()[len(ticks[1]) :]:
            fence = len(ticks[1])
        else:
            out.append(line)
    return "\n".join(out)


def fenced(text: str) -> dict[str, str]:
    """Return the fenced parts by their names."""
    return {m[2]: m[3] for m in re.finditer(r"^(`{3,})(\w+)\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)}


def obedient(material: Callable[[dict[str, str]], str]) -> Callable[[list[Turn]], Mapping[str, float]]:
    """Return a reader that does what it is told outside of fences ("SAY 5"), and else goes by the material in them."""

    def chooses(turns: list[Turn]) -> Mapping[str, float]:
        told = [order for _, text in turns for order in re.findall(r"SAY ([A-D1-5])", outside_of_fences(text))]
        choice = told[-1] if told else material(fenced("\n".join(text for _, text in turns)))
        return {option: 0.6 if option == choice else 0.02 for option in "ABCD12345"}

    return chooses
