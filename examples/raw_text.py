"""Raw text, a tiny model, and what it says: the parts of pretrain_bloom.sh that are no stage.

    python examples/raw_text.py text FOLDER      raw text as a crawler leaves it, JSON and plain
    python examples/raw_text.py model FOLDER     a tiny Bloom with random weights, and its tokenizer
    python examples/raw_text.py perplexity RUN   of held-out text, before and after
    python examples/raw_text.py continue MODEL   what transformers makes of the beginning of a text

All of it follows from a seed; nothing is downloaded.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 1234
NUM_DOCUMENTS = 1200
BEGINNING = "The old king"

NOUNS = ("king", "miller", "fox", "river", "tower", "raven", "baker", "forest", "ship", "well")
ADJECTIVES = ("old", "quiet", "red", "clever", "tall", "hungry", "grey", "lost")
VERBS = ("saw", "followed", "remembered", "feared", "found", "left", "loved", "painted")
PLACES = ("near the sea", "in the valley", "before the winter", "under a bridge", "at night")


def documents() -> Iterator[str]:
    """Yield stories of a few sentences; some have links in them, and some are told twice."""
    rng = random.Random(SEED)
    told: list[str] = []
    for number in range(NUM_DOCUMENTS):
        sentences = [_sentence(rng) for _ in range(rng.randint(3, 9))]
        if number % 7 == 0:
            sentences.insert(1, f"See https://example.org/stories/{number}.html for more.")
        text = told[rng.randrange(number)] if number % 20 == 19 else "  ".join(sentences)
        told.append(text)
        yield text


def _sentence(rng: random.Random) -> str:
    first, second = rng.sample(NOUNS, 2)
    one, other = rng.sample(ADJECTIVES, 2)
    verb, place = rng.choice(VERBS), rng.choice(PLACES)
    return f"The {one} {first} {verb} the {other} {second} {place}."


def write_text(folder: Path) -> None:
    """Write half as a JSON list of objects, as WuDao's files are, half as JSON lines."""
    texts = list(documents())
    half = len(texts) // 2
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"title": f"story {number}", "content": text} for number, text in enumerate(texts)]
    (folder / "part-1.json").write_text(json.dumps(rows[:half]), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows[half:])
    (folder / "part-2.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(texts)} documents in {folder}")


def write_tiny_model(folder: Path) -> None:
    """Write a model as the preset tiny-bloom describes it, and a tokenizer of the same texts."""
    from tiny_models import train_tokenizer, write_model

    from alignctl.config.presets.load import load_preset

    model = load_preset("tiny-bloom").model
    tokenizer = train_tokenizer(documents(), vocab_size=model.vocab_size)
    count = write_model(folder, model, tokenizer, seed=SEED)
    print(f"{count / 1e6:.2f}M random weights, {len(tokenizer)} tokens in {folder}")


def show_perplexity(run: Path) -> None:
    """Print the first and the last validation of a run.

    Raises:
        SystemExit: It did not fall.
    """
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "validation"]
    before, after = rows[0]["perplexity"], rows[-1]["perplexity"]
    print(f"perplexity of held-out text: {before:.1f} before, {after:.2f} after")
    if after >= before:
        raise SystemExit("it did not fall")


def continue_text(folder: Path) -> None:
    """Continue the beginning of a text by the likeliest tokens."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer(BEGINNING, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))


if __name__ == "__main__":
    what = {
        "text": write_text,
        "model": write_tiny_model,
        "perplexity": show_perplexity,
        "continue": continue_text,
    }
    if len(sys.argv) != 3 or sys.argv[1] not in what:
        raise SystemExit(__doc__)
    what[sys.argv[1]](Path(sys.argv[2]))
