"""`prepare tokenize` beside the loop of Megatron-LM's preprocessing, and the library's own limit.

    python benchmarks/tokenization.py                      # 40 MB of text, a byte-level BPE
    python benchmarks/tokenization.py --tokenizer models/bloom-7b --data wiki.jsonl

The loop parses a line, calls transformers' fast tokenizer with its one document, and gives the
tensor to Megatron-Core's IndexedDatasetBuilder: what preprocess_data.py does with one worker. The
limit is `tokenizers.encode_batch_fast` on texts that are in memory already, with one and two
threads: no JSON, no files, no tokens in Python. Text: made of words as frequent as in text, in
documents of 50 to 1,000 words; the tokenizer is trained on it. All write the same bytes, which is
compared; nothing else is asserted. Contenders take turns; the fastest turn counts.
Processor seconds are beside the clock, for a machine that others use.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignctl.corpus.manifest import name_beside, read_manifest  # noqa: E402
from alignctl.corpus.tokenization import Options, tokenize  # noqa: E402
from alignctl.data.tokenizer import load_tokenizer  # noqa: E402

VOCABULARY = 8192
WORDS = 30_000


def main() -> None:
    """Measure all contenders in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data", type=Path, help="JSON lines with the key text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-") as scratch:
        folder = Path(scratch)
        data = arguments.data or write_text(folder / "train.jsonl", arguments.megabytes)
        tokenizer = arguments.tokenizer or train_tokenizer(folder / "tokenizer", data)
        compare(folder, data, tokenizer, arguments.repeats)


def compare(folder: Path, data: Path, tokenizer: Path, repeats: int) -> None:
    """Run every contender so often and print its fastest turn."""
    texts = [text for text in texts_of(data) if text]
    size = sum(len(text.encode()) for text in texts) / 1e6
    contenders: dict[str, Callable[[Path], None]] = {
        "Megatron-LM's loop, 1 process": lambda out: megatron_loop(data, tokenizer, out),
        "alignctl, 1 worker": lambda out: ours(data, tokenizer, out, 1),
        "alignctl, 2 workers": lambda out: ours(data, tokenizer, out, 2),
        "the library's limit, 1 thread": lambda _: limit(texts, tokenizer, 1),
        "the library's limit, 2 threads": lambda _: limit(texts, tokenizer, 2),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    # Not at the top: workers import this module, too, and would import these. Not timed either.
    for library in ("megatron.core.datasets.indexed_dataset", "transformers"):
        import_module(library)
    for turn in range(repeats):
        for number, (name, contender) in enumerate(contenders.items()):
            started, used = time.perf_counter(), processor_seconds()
            contender(folder / f"out-{turn}-{number}")
            taken = time.perf_counter() - started
            seconds[name].append((taken, processor_seconds() - used))
    for suffix in (".bin", ".idx"):
        contents = [name_beside(folder / f"out-0-{n}", suffix).read_bytes() for n in range(3)]
        assert contents[0] == contents[1] == contents[2], f"the {suffix} files differ"
    tokens = read_manifest(folder / "out-0-1").tokens
    loop = min(seconds["Megatron-LM's loop, 1 process"])
    print(f"{size:.1f} MB of text, {len(texts):,} documents, {tokens:,} tokens\n")
    print(f"{'':<32}{'s':>8}{'MB/s':>8}{'tokens/s':>12}{'ratio':>8}{'core s':>8}{'ratio':>8}")
    for name, turns in seconds.items():
        best, used = min(turns)
        by_clock = f"{best:>8.1f}{size / best:>8.2f}{tokens / best:>12,.0f}{loop[0] / best:>8.2f}"
        print(f"{name:<32}{by_clock}{used:>8.1f}{loop[1] / used:>8.2f}")


def processor_seconds() -> float:
    """Measure the processor time of this process and its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def megatron_loop(data: Path, tokenizer: Path, out: Path) -> None:
    """Call the tokenizer once per document, and feed Megatron-Core's builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    dtype = DType.optimal_dtype(len(fast))
    builder = IndexedDatasetBuilder(str(name_beside(out, ".bin")), dtype)
    for text in texts_of(data):
        ids = fast(text)["input_ids"]
        if ids:
            ids.append(fast.eos_token_id)
            builder.add_document(torch.IntTensor(ids), [len(ids)])
    builder.finalize(str(name_beside(out, ".idx")))


def ours(data: Path, tokenizer: Path, out: Path, workers: int) -> None:
    """Run the whole command but the start of Python: checksums and syncs too."""
    tokenize(Options((data,), out, tokenizer, append_eod=True, workers=workers))


def limit(texts: list[str], tokenizer: Path, threads: int) -> None:
    """Run the library alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    backend = load_tokenizer(tokenizer).backend
    for start in range(0, len(texts), 1000):
        backend.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)


def texts_of(data: Path) -> Iterator[str]:
    """Yield the text of each line."""
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def write_text(file: Path, megabytes: int) -> Path:
    """Write words of 2 to 12 letters, the n-th most frequent with a frequency of about 1/n."""
    random = np.random.default_rng(1)
    letters = np.asarray(list("etaoinshrdlucmfwypvbgkjqxz"))
    odds = 1.0 / np.arange(1, len(letters) + 1)
    words = [
        "".join(random.choice(letters, random.integers(2, 13), p=odds / odds.sum()))
        for _ in range(WORDS)
    ]
    weights = 1.0 / np.arange(1, WORDS + 1)
    weights /= weights.sum()
    with file.open("w", encoding="utf-8") as stream:
        while stream.tell() < megabytes * 1e6:
            count = int(random.integers(50, 1000))
            chosen = random.choice(WORDS, count, p=weights)
            stream.write(json.dumps({"text": " ".join(words[n] for n in chosen)}) + "\n")
    return file


def train_tokenizer(folder: Path, data: Path) -> Path:
    """Train a byte-level BPE, as Bloom's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(islice(texts_of(data), 2000), trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return folder


if __name__ == "__main__":
    main()
