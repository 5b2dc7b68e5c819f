"""TRL's SFTTrainer on the benchmark's workload: one rank of it, started by Python or torchrun."""

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.lib import trl_steps
from benchmarks.lib.race import json_lines


class _Counting(SFTTrainer):
    """The trainer, counting the real tokens it is given.

    A document's last token is not counted, as alignctl does not: nothing follows it.
    """

    real_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            self.real_tokens += int(mask.sum()) - len(mask)
        else:
            positions = inputs["position_ids"]
            self.real_tokens += positions.numel() - int((positions == 0).sum())
        return super().training_step(model, inputs, *args, **kwargs)


def main() -> None:
    """Train on `--input` and write `rank_N.jsonl` to `--output`."""
    parser = trl_steps.flags(__doc__)
    parser.add_argument("--packing", action="store_true")
    options = parser.parse_args()
    report = trl_steps.Report(options.output)
    trainer = _Counting(
        model=AutoModelForCausalLM.from_pretrained(options.input / "hf", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(options.input / "hf"),
        train_dataset=Dataset.from_list(json_lines(options.input / "tokens.jsonl")),
        callbacks=[report],
        args=SFTConfig(
            packing=options.packing, completion_only_loss=True, **trl_steps.settings(options)
        ),
    )
    trl_steps.train(trainer, report)


if __name__ == "__main__":
    main()
