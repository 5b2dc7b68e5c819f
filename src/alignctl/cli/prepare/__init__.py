"""Clean text, tokenise it, turn downloads into training rows, and look at the result."""

from alignctl.cli.flags import example
from alignctl.cli.lazy import make_group

app = make_group(
    "prepare",
    __doc__,
    example(
        "alignctl prepare clean raw/ --output data/clean",
        "alignctl prepare tokenize data/clean --tokenizer models/bloom-7b --append-eod "
        "--output data/wiki",
        "alignctl prepare inspect data/wiki --tokenizer models/bloom-7b",
    ),
    {
        "Rows": {
            name: f"alignctl.cli.prepare.{name}"
            for name in ("hh", "gsm8k", "math", "alpaca", "sharegpt", "check")
        },
        "Text": {
            name: f"alignctl.cli.prepare.{name}"
            for name in ("clean", "shard", "tokenize", "inspect")
        },
    },
)
