"""A models whose sampler and reward model say what a test wrote down; all else is real.

vLLM and Megatron are run by `tests/rollouts`, `tests/parallel` and `tests/stages`; here it counts
what is made of their answers, of failures too, which they cannot be told to have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl.config.on_policy_run import GRPOConfig
from alignctl.data.batch import TokenBatch
from alignctl.data.prompt_store import PromptData, PromptSummary, TokenLists
from alignctl.data.tokenizer import Tokenizer, load_tokenizer
from alignctl.on_policy.models import Models
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.scoring import REASONS, Scored
from alignctl.rollouts.samples import Completion, Generated, Request, Sampling
from tests import tiny

EOS = 2

Say = Callable[[Request, int], str | None]
"""The answer to a request, by its place among its group's; None where it fails. One that ends with
a dot has ended, any other was cut."""


@dataclass(eq=False)
class ScriptedSampler:
    """A rollout that says what it is told to."""

    say: Say
    tokenizer: Tokenizer
    calls: list[tuple[list[Request], Sampling]] = field(default_factory=list)
    has_weights: bool = True

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Generated:
        self.calls.append((list(requests), sampling))
        met: dict[int, int] = {}
        completions: list[Completion | None] = []
        for request in requests:
            place = met[request.group] = met.get(request.group, -1) + 1
            text = self.say(request, place)
            completions.append(None if text is None else self._completion(text))
        failed = completions.count(None)
        return Generated(completions, num_retried=failed, num_failed=failed, version=1)

    def _completion(self, text: str) -> Completion:
        ids = [*tokens_of(self.tokenizer, text), *([EOS] if text.endswith(".") else [])]
        tokens = np.asarray(ids, np.int32)
        finish: Any = "stop" if text.endswith(".") else "length"
        return Completion(tokens, np.full(len(tokens), -0.5, np.float32), finish)


@dataclass(eq=False)
class ScriptedReward:
    """A reward model whose score is a function of the tokens of question and answer."""

    score: Callable[[list[int]], float]
    num_scored: int = 0
    data_parallel_rank = 0
    data_parallel_size = 1

    def onload(self) -> None: ...

    def document_outputs(
        self, batches: Sequence[TokenBatch], num_documents: int
    ) -> NDArray[np.float64]:
        found = np.full(num_documents, np.nan)
        for batch in batches:
            ends = np.cumsum(batch.pieces.document_lengths)
            documents = np.split(batch.tokens[batch.pieces.places], ends[:-1])
            for row, end, tokens in zip(batch.rows, batch.pieces.ends, documents, strict=True):
                # The rounding of a batched kernel: it depends on what stands before.
                found[row] = self.score(tokens.tolist()) + 1e-7 * (end + 1 - len(tokens))
                self.num_scored += 1
        return found


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend.encode(text, add_special_tokens=False).ids
    return ids


def tokenizer_in(folder: Path) -> Tokenizer:
    return load_tokenizer(tiny.write_tokenizer(folder))


def config(folder: Path, **sections: Any) -> GRPOConfig:
    """A run of one process; four prompts of two answers, two answers an update."""
    grpo = {
        "batch": {"micro_batch_size": 1, "global_batch_size": 2, "seq_length": 64},
        "launch": {"nproc_per_node": 1},
        "parallel": {"tp": 1, "pp": 1},
        "data": {"max_prompt_length": 32},
        "rollout": {"max_new_tokens": 16},
        "experience": {"prompts": 4, "samples": 2, "score_batch_size": 3},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 3},
        "checkpoint": {"save_interval": 1},
        "score": {"source": "sparse_only"},
        "precision": "fp32",
    }
    if "reward_load" not in sections and sections.get("score", {}).get("source") in (
        "dense_only",
        "merge",
    ):
        sections["reward_load"] = folder / "reward"
    for name, changes in sections.items():
        whole = grpo.get(name)
        grpo[name] = {**whole, **changes} if isinstance(whole, dict) else changes
    run = {"preset": "tiny.yaml", "output": folder / "run", "model": tiny.preset()["model"]}
    return GRPOConfig.model_validate(run | grpo)


def prompts(tokenizer: Tokenizer, *, count: int = 8, rule: str | None = "math_rule") -> PromptData:
    """Questions `0+1=`, `1+1=` ... with their sums; the last two are held out."""
    questions = [tokens_of(tokenizer, f"{n}+1=") for n in range(count)]
    offsets = np.cumsum([0, *map(len, questions)])
    train = count - 2
    return PromptData(
        folder=Path("unused"),
        summary=PromptSummary(
            rows=count,
            dropped=0,
            cut=0,
            with_answer=count if rule else 0,
            max_prompt_length=32,
            eval_funcs=(rule,) if rule else (),
            files=("sums.jsonl",),
            train=train,
            train_tokens=int(offsets[train]),
            validation=2,
        ),
        prompts=TokenLists(np.concatenate(questions).astype(np.int32), offsets),
        answers=[str(n + 1) if rule else None for n in range(count)],
        eval_funcs=[rule] * count,
        train=np.arange(train),
        validation=np.arange(train, count),
        file_numbers=np.zeros(count, np.int32),
        lines=np.arange(1, count + 1),
    )


def models(settings: GRPOConfig, sampler: Any = None, reward: Any = None) -> Models:
    """Models whose sampler has the weights already."""
    unused: Any = None
    return Models(
        settings, unused, sampler, (EOS,), reward=reward, score_offset=0.0, is_stale=False
    )


def samples(tokenizer: Tokenizer, *answers: tuple[int, int, str]) -> Samples:
    """Answers as (group, prompt, text); a text that ends with a dot has ended."""
    ids = [
        [*tokens_of(tokenizer, text), *([EOS] if text.endswith(".") else [])]
        for _, _, text in answers
    ]
    return Samples(
        prompts=np.asarray([prompt for _, prompt, _ in answers]),
        groups=np.asarray([group for group, _, _ in answers]),
        questions=[
            np.asarray(tokens_of(tokenizer, f"{prompt}+1="), np.int32) for _, prompt, _ in answers
        ],
        answers=[np.asarray(each, np.int32) for each in ids],
        logprobs=-0.25 * np.arange(1, sum(map(len, ids)) + 1, dtype=np.float64),
        is_finished=np.asarray([text.endswith(".") for _, _, text in answers]),
    )


def scored(*scores: float, reasons: Sequence[str] = ()) -> Scored:
    count = len(scores)
    found = [REASONS.index(each) if each else -1 for each in reasons] or [-1] * count
    return Scored(np.asarray(scores), None, np.asarray(found), np.zeros(count))
