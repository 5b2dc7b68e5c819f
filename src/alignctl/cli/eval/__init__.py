"""Measure models: several of them make one table."""

from alignctl.cli.flags import example
from alignctl.cli.lazy import make_group

app = make_group(
    "eval",
    __doc__,
    example(
        "alignctl eval math runs/sft runs/grpo --data data/gsm8k/math/dev.jsonl --output runs/math",
    ),
    {
        "Measures": {
            "math": "alignctl.cli.eval.math",
            "preference": "alignctl.cli.eval.preference",
            "lm-eval": "alignctl.cli.eval.lm_eval",
            "mt-bench": "alignctl.cli.eval.mt_bench",
        }
    },
)
