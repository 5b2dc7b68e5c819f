"""The answers of each episode, to be read: a file of JSON lines, and a few on the console."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.data.prompt_store import PromptData
from alignctl.data.tokenizer import Tokenizer
from alignctl.on_policy.sampling import Experience
from alignctl.on_policy.scoring import REASONS
from alignctl.run_folder import RunFolder


def write(
    folder: RunFolder,
    step: int,
    experience: Experience,
    kl: NDArray[np.float64] | None,
    data: PromptData,
    tokenizer: Tokenizer,
) -> None:
    """Write `samples/episode_NNNNNNN.jsonl`: prompt, answer, scores and KL of each answer.

    Args:
        folder: The run folder.
        step: The episode, counted from 1.
        experience: Its answers.
        kl: KL to the reference of each answer `[S]`, nats, if it is known.
        data: The prompts.
        tokenizer: Of the policy.
    """
    if dist.get_rank() != 0:
        return
    lines = []
    for sample in range(len(experience.samples)):
        row = _row(experience, sample, data, tokenizer)
        if kl is not None:
            row["kl"] = float(kl[sample])
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    file = folder.path / "samples" / f"episode_{step:07d}.jsonl"
    file.parent.mkdir(exist_ok=True)
    atomic.write_text(file, "".join(lines))


def shown(
    experience: Experience, data: PromptData, tokenizer: Tokenizer, number: int
) -> Iterator[str]:
    """Yield the first answers of an episode as text."""
    for sample in range(min(number, len(experience.samples))):
        row = _row(experience, sample, data, tokenizer)
        yield f"  score {row['score']:.3g}  {row['prompt']!r} -> {row['answer']!r}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _row(
    experience: Experience, sample: int, data: PromptData, tokenizer: Tokenizer
) -> dict[str, Any]:
    samples, scored = experience.samples, experience.scored
    prompt = int(samples.prompts[sample])
    row: dict[str, Any] = {
        "where": data.where(prompt),
        "prompt": tokenizer.decode(samples.questions[sample].tolist()),
        "answer": tokenizer.decode(samples.answers[sample].tolist()),
        "is_finished": bool(samples.is_finished[sample]),
        "score": float(scored.scores[sample]),
    }
    if scored.extra[sample]:
        row["penalty"] = float(scored.extra[sample])
    if scored.model is not None:
        row["model_score"] = float(scored.model[sample])
    if scored.parts:
        row["rewards"] = {part.label: _known(part.values[sample]) for part in scored.parts}
        failed = {part.label: part.failures[sample] for part in scored.parts}
        if why := {label: text for label, text in failed.items() if text is not None}:
            row["failures"] = why
    if scored.reasons[sample] >= 0:
        row["rule"] = REASONS[scored.reasons[sample]]
        row["expected"] = data.answers[prompt]
    return row
