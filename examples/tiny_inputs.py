"""What a chain on a CPU starts from: a tiny model with random weights, and additions to learn from.

    python examples/tiny_inputs.py FOLDER --preset tiny-llama

Writes FOLDER/model (a Hugging Face folder), FOLDER/sft (demonstrations, half of them with the usual
mistake, so that something is left to be learned), FOLDER/pairs (right answers and wrong ones) and
FOLDER/prompts (with the right sums, for a rule). A folder that exists is complete and is kept.
"""

import argparse
import sys
from pathlib import Path

from arithmetic import asked, question_pairs, questions, small, split, wordings, write_rows
from demo import NUM_HELD_OUT, NUM_PAIRS, NUM_TOKENIZED, NUM_VALIDATED, SEED, WRONG_SHARE
from tiny_models import train_tokenizer, write_model

from alignctl import atomic
from alignctl.config.presets.load import load_preset


def main() -> int:
    """Write the folder; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="tiny-llama", help="the model: tiny-llama, tiny-bloom")
    parser.add_argument("--heads", type=int, help="attention heads; default: the preset's")
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists():
        print(f"{folder} is there already", file=sys.stderr)
        return 0
    model = load_preset(options.preset).model
    if options.heads is not None:
        heads = {"num_attention_heads": options.heads, "num_query_groups": options.heads}
        model = model.model_copy(update=heads)
    train, held_out = split(held_out=NUM_HELD_OUT, seed=SEED)
    tokenizer = train_tokenizer(wordings(train[:NUM_TOKENIZED]), vocab_size=model.vocab_size)
    with atomic.new_folder(folder) as partial:
        write_model(partial / "model", model, tokenizer, seed=SEED)
        for role, sums in (("train", train), ("validation", held_out)):
            some = sums[:NUM_VALIDATED] if role == "validation" else sums
            demonstrations = questions(some, seed=SEED, wrong_share=WRONG_SHARE)
            write_rows(partial / "sft" / f"{role}.jsonl", demonstrations)
            pairs = question_pairs(some[:NUM_PAIRS], seed=SEED)
            write_rows(partial / "pairs" / f"{role}.jsonl", pairs)
            write_rows(partial / "prompts" / f"{role}.jsonl", asked(small(sums), seed=SEED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
