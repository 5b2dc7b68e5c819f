"""What the models of the tests are asked, and the process that asks several of them."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from alignctl.config.generation import Generation
from alignctl.data.rows.messages import Message
from alignctl.data.rows.prompt_schemas import chat
from alignctl.evaluation.generation import Answer, Generator

LIMIT = 40
"""Tokens of a prompt; the last ones below are longer."""

PENALTIES = (1.0, 1.3)
GREEDY = (
    *((model, penalty) for model in ("llama-gqa", "bloom") for penalty in PENALTIES),
    *((model, 1.0) for model in ("llama3", "mistral", "qwen2", "qwen3")),
)
"""Models that are asked, and with which penalty of repetitions."""
LENGTH = 24
EOS = 2

QUESTIONS = ["so and " * (number // 4) + f"{number} + {3 * number % 7}" for number in range(24)]
"""Texts of one token per byte, and of 20 bytes more in the HH form."""


def questions() -> list[Any]:
    return [chat([Message("user", text)], f"question {n}") for n, text in enumerate(QUESTIONS)]


def settings(**changes: Any) -> Generation:
    knobs: dict[str, Any] = {
        "max_prompt_length": LIMIT,
        "max_new_tokens": LENGTH,
        "kv_cache_gib": 0.05,
        "batch": 8,
    }
    return Generation(**knobs | changes)


def asked(model: Path, wanted: Generation) -> tuple[list[list[int]], list[list[Answer]]]:
    """Prompts of a model, and its answers."""
    with Generator(model, wanted) as generator:
        prompts = generator.prompts(questions())
        answers = list(generator.generate(prompts))
    return [prompt.tokens.tolist() for prompt in prompts], answers


def write_with_second_end(folder: Path, token: int) -> None:
    """Writes llama-ends: llama-gqa, whose generation_config.json has a second end token."""
    shutil.copytree(folder / "llama-gqa", folder / "llama-ends")
    file = folder / "llama-ends" / "generation_config.json"
    content = json.loads(file.read_text()) | {"eos_token_id": [EOS, token]}
    file.write_text(json.dumps(content))


def main(folder: Path, results: Path) -> None:
    import torch

    from alignctl.checkpoints.conversion import Target, convert
    from alignctl.checkpoints.find import find

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for model, penalty in GREEDY:
        prompts, answers = asked(folder / model, settings(repetition_penalty=penalty))
        found[f"{model} {penalty}"] = [[*each[0].tokens] for each in answers]
        found[f"{model} prompts"] = prompts
    for target in (Target("mcore", tp=2), Target("legacy", tp=2, pp=2)):
        written = folder / target.format
        written.mkdir()
        convert(find(folder / "llama-gqa"), written, target)
        _, answers = asked(written, settings())
        found[target.format] = [[*each[0].tokens] for each in answers]
    ends = folder / "mcore-ends"
    ends.mkdir()
    write_with_second_end(
        folder,
        Counter(token for row in found["llama-gqa 1.0"] for token in row).most_common(1)[0][0],
    )
    convert(find(folder / "llama-ends"), ends, Target("mcore", tp=2))
    _, answers = asked(ends, settings())
    found["ends"] = [[*each[0].tokens] for each in answers]
    found["ends finish"] = [each[0].finish for each in answers]
    found["ends text"] = [each[0].text for each in answers]
    drawn = settings(temperature=1.0, top_k=50, top_p=0.95, samples=2, seed=7)
    with Generator(folder / "llama-gqa", drawn) as generator:
        every = generator.prompts(questions())
        for name, chosen in {"drawn": every, "last drawn": every[20:]}.items():
            found[name] = [[each.text for each in row] for row in generator.generate(chosen)]
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
