"""Trainer's and rollout's layouts that are tried together."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

MODELS = ("llama-mha", "llama-gqa", "llama-tied", "bloom", "llama3", "mistral", "qwen2", "qwen3")


class Case(BaseModel):
    """A model in the trainer at one layout and in vLLM at another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal[
        "llama-mha", "llama-gqa", "llama-tied", "bloom", "llama3", "mistral", "qwen2", "qwen3"
    ]
    world: Literal[1, 2, 4] = 1
    tp: int = 1
    pp: int = 1
    rollout_tp: int = 1
    has_lora: bool = False

    @property
    def name(self) -> str:
        lora = "-lora" if self.has_lora else ""
        return f"{self.model}-world{self.world}-tp{self.tp}-pp{self.pp}-to-{self.rollout_tp}{lora}"


FAST = (
    Case(model="llama-gqa"),
    Case(model="bloom"),
    Case(model="llama-mha", world=2, tp=2),
    Case(model="llama-gqa", world=2, tp=2, has_lora=True),
    Case(model="llama-tied", world=2, pp=2, rollout_tp=2),
    Case(model="bloom", world=2, pp=2, rollout_tp=2),
    Case(model="llama3"),
    Case(model="qwen2", world=2, tp=2, rollout_tp=2, has_lora=True),
    Case(model="qwen3", world=2, tp=2, rollout_tp=2),
)
SLOW = tuple(
    case
    for case in (
        *(Case(model=model) for model in MODELS),
        *(
            Case(model=model, world=2, tp=tp, pp=pp, rollout_tp=rollout_tp)
            for model in MODELS
            for tp, pp in ((1, 1), (2, 1), (1, 2))
            for rollout_tp in (1, 2)
        ),
        *(Case(model=model, world=4, tp=2, pp=2, rollout_tp=2) for model in MODELS),
    )
    if case not in FAST
)
