"""What transformers and torch make of the answers of `on_policy.py`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from alignctl.on_policy.samples import Samples
from tests.parallel import on_policy, reference


def write(policy: Path, reward: Path) -> None:
    """Writes logprobs.pt and ppo.json beside a policy, values.pt and value.json beside its
    reward model, of which each has hf/."""
    samples = on_policy.episode()
    model = reference.load(policy / "hf")
    logprobs, entropies = _logprobs(model, samples)
    torch.save(logprobs.detach().double(), policy / "logprobs.pt")
    (policy / "ppo.json").write_text(json.dumps(_ppo(model, logprobs, entropies)))
    scorer = AutoModelForSequenceClassification.from_pretrained(
        reward / "hf", dtype=torch.float32
    ).eval()
    values = _values(scorer, samples)
    torch.save(values.detach().double(), reward / "values.pt")
    (reward / "value.json").write_text(json.dumps(_value_step(scorer, values)))


def _inputs(samples: Samples) -> list[tuple[Tensor, slice, Tensor]]:
    """Of each sample: inputs `[1, L]`, the positions that predict its answer, and that `[R]`."""
    found = []
    for sample in range(len(samples)):
        document = samples.document(sample)
        tokens = torch.from_numpy(document.tokens).long()
        start = len(samples.questions[sample])
        found.append((tokens[None, :-1], slice(start - 1, len(tokens) - 1), tokens[start:]))
    return found


def _logprobs(model: Any, samples: Samples) -> tuple[Tensor, Tensor]:
    logprobs, entropies = [], []
    for tokens, where, answer in _inputs(samples):
        logits = model(tokens).logits[0, where] / on_policy.TEMPERATURE
        all_logprobs = logits.log_softmax(-1)
        logprobs.append(all_logprobs.gather(1, answer[:, None])[:, 0])
        entropies.append(-(all_logprobs.exp() * all_logprobs).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def _values(scorer: Any, samples: Samples) -> Tensor:
    body = getattr(scorer, scorer.base_model_prefix)
    return torch.cat(
        [
            scorer.score(body(tokens).last_hidden_state[0, where])[:, 0]
            for tokens, where, _ in _inputs(samples)
        ]
    )


def _ppo(model: Any, logprobs: Tensor, entropies: Tensor) -> dict[str, float]:
    """The mean over tokens of the clipped loss, the KL by k3 with the gradient of k2, the bonus."""
    old = logprobs.detach() + on_policy.noise(3, 0.2)
    distance = logprobs - (logprobs.detach() + on_policy.noise(4, 0.3))
    advantages, ratio = on_policy.noise(5), (logprobs - old).exp()
    bounded = ratio.clamp(1 - on_policy.CLIP, 1 + on_policy.CLIP)
    kl = distance**2 / 2
    kl = kl - kl.detach() + ((-distance).exp() - 1 + distance).detach()
    losses = -torch.minimum(ratio * advantages, bounded * advantages)
    losses = losses + on_policy.KL_COEF * kl - on_policy.ENTROPY_COEF * entropies
    metrics = {"entropy": entropies.mean().item(), "ratio": ratio.mean().item()}
    return metrics | _step(model, losses.mean())


def _value_step(scorer: Any, values: Tensor) -> dict[str, float]:
    old, returns = values.detach() + on_policy.noise(1, 0.2), on_policy.noise(2)
    bounded = old + (values - old).clamp(-on_policy.VALUE_CLIP, on_policy.VALUE_CLIP)
    losses = torch.maximum((values - returns) ** 2, (bounded - returns) ** 2) / 2
    return _step(scorer, losses.mean())


def _step(model: Any, loss: Tensor) -> dict[str, float]:
    model.zero_grad()
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {"loss": loss.item(), "grad_norm": torch.cat(gradients).norm().item()}
