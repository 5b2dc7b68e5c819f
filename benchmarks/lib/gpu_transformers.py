"""Plain transformers on the rows of gpu.py: padded batches, torch's AdamW, bf16 by autocast."""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

from alignctl.config.sections import Model
from alignctl.models.families import FAMILIES
from benchmarks.lib import gpu_rows
from benchmarks.lib.gpu_rows import Scale


def build(model: Model, attention: str) -> Any:
    """Build the model with random weights in float32, on the device."""
    config = dict(FAMILIES[model.family].to_hf(model))
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(
            made, attn_implementation=attention, dtype=torch.float32
        )


def kinds(model: Model) -> list[str]:
    """List the attention that transformers has here for a model; its Bloom has its own alone."""
    if model.family == "bloom":
        return ["eager"]
    has_flash = importlib.util.find_spec("flash_attn") is not None
    return ["sdpa", *(["flash_attention_2"] if has_flash else [])]


def measure(model: Model, scale: Scale, *, precision: str) -> dict[str, Any]:
    """Time each method with each kind of attention."""
    found: dict[str, Any] = {}
    for attention in kinds(model):
        for method in gpu_rows.METHODS:
            found[f"{method} {attention}"] = gpu_rows.attempt(
                lambda m=method, a=attention: _time(model, scale, m, precision, a)
            )
            torch.cuda.empty_cache()
    return found


def _time(model: Model, scale: Scale, method: str, precision: str, attention: str) -> Any:
    made = build(model, attention).train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    groups = gpu_rows.make_groups(method, scale, model.vocab_size)
    rows = [row for group in groups for row in group]
    parts = list(gpu_rows.chunked(rows, scale.micro_batch))

    def step() -> None:
        for part in parts:
            with torch.autocast(made.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logprobs, mask = _logprobs(made, part)
            (_loss(method, logprobs, mask) / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return gpu_rows.run_steps(step, scale, tokens=gpu_rows.count_tokens(groups))


def _logprobs(model: Any, rows: list[tuple[list[int], ...]]) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of each token `[B, T-1]`, and which belong to answers."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    attended, learned = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for number, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        tokens[number, :length] = torch.tensor(prompt + answer)
        attended[number, :length] = 1
        learned[number, len(prompt) : length] = True
    tokens, attended, learned = (each.to(model.device) for each in (tokens, attended, learned))
    logits = model(input_ids=tokens, attention_mask=attended, use_cache=False).logits[:, :-1]
    picked = logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return picked, learned[:, 1:]


def _loss(method: str, logprobs: Tensor, mask: Tensor) -> Tensor:
    """Compute the loss; every other answer is the better one, as for the other contenders."""
    values = logprobs * mask
    if method == "sft":
        return -values.sum() / mask.sum()
    if method == "dpo":
        sums = values.sum(1)
        return -logsigmoid(0.1 * (sums[0::2] - sums[1::2])).mean()
    signs = torch.where(torch.arange(len(mask), device=mask.device) % 2 == 0, 1.0, -1.0)
    ratios = (logprobs - logprobs.detach()).exp() * mask
    return -(ratios * signs[:, None]).sum() / mask.sum()
