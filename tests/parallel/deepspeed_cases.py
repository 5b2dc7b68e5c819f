"""What the jobs of the DeepSpeed engine compute, and what Megatron computes for comparison."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignctl.config.precision import LossScale, Precision
from alignctl.config.sections import DeepSpeed, Parallel

Recompute = Literal["none", "selective", "full"]


class DeepSpeedCase(BaseModel):
    """One computation; `kind` is the function in deepspeed_jobs.py.

    A world of 0 is one process with the Megatron engine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal[
        "train", "spoilt", "resume", "document_outputs", "stop", "checkpoint", "overflow", "shared"
    ] = "train"
    loss: Literal["sft", "dpo", "reward"] = "sft"
    model: Literal[
        "llama-gqa", "bloom", "llama-tied", "llama3-tied", "mistral", "qwen2-tied", "qwen3"
    ] = "llama-gqa"
    head: Literal["linear", "pooler"] = "linear"
    """Of a reward model."""
    world: Literal[0, 1, 2] = 1
    stage: Literal[1, 2, 3] = 2
    grouping: Literal["1", "2", "4", "packed"] = "1"
    """Documents, or prompts, in one micro batch."""
    precision: Precision = "fp32"
    recompute: Recompute = "none"
    offload: bool = False
    lora: bool = False

    @property
    def zero(self) -> DeepSpeed:
        return DeepSpeed(zero_stage=self.stage, offload_optimizer=self.offload)

    @property
    def loss_scale(self) -> LossScale:
        """One that fits, or one that does not."""
        is_too_large = self.kind == "overflow"
        return LossScale(initial=2.0 ** (20 if is_too_large else 10), growth_interval=3)

    @property
    def parallel(self) -> Parallel:
        return Parallel(recompute=self.recompute)

    @property
    def reference(self) -> "DeepSpeedCase":
        """The same on Megatron."""
        same = {"kind": self.kind, "precision": self.precision} if self.kind == "overflow" else {}
        return DeepSpeedCase(
            loss=self.loss, model=self.model, head=self.head, lora=self.lora, world=0, **same
        )

    @property
    def name(self) -> str:
        """Unique among the cases; also the test's id."""
        layout = f"dp{self.world}-zero{self.stage}" if self.world else "megatron"
        parts = [
            self.kind,
            self.loss,
            self.model,
            self.head if self.head != "linear" else "",
            layout,
            {"1": "", "packed": "packed"}.get(self.grouping, f"micro{self.grouping}"),
            self.precision if self.precision != "fp32" else "",
            f"recompute-{self.recompute}" if self.recompute != "none" else "",
            "offload" if self.offload else "",
            "lora" if self.lora else "",
        ]
        return "-".join(filter(None, parts))


_LAYOUTS: tuple[tuple[Literal[1, 2], Literal[1, 2, 3]], ...] = (
    (1, 1),
    (1, 2),
    (1, 3),
    (2, 1),
    (2, 2),
    (2, 3),
)
_MODELS: tuple[Literal["llama-gqa", "bloom"], ...] = ("llama-gqa", "bloom")
_GROUPINGS: tuple[Literal["1", "2", "4"], ...] = ("1", "2", "4")
_RECOMPUTED: tuple[tuple[Literal[2, 3], Literal["2", "4"]], ...] = ((2, "2"), (3, "4"))
_RECOMPUTE: tuple[Recompute, ...] = ("full", "selective")

SFT = (
    *(
        DeepSpeedCase(model=model, world=world, stage=stage, grouping=grouping)
        for model in _MODELS
        for number, (world, stage) in enumerate(_LAYOUTS)
        for grouping in (_GROUPINGS if model == "llama-gqa" else (_GROUPINGS[number % 3],))
    ),
    DeepSpeedCase(world=2, grouping="packed"),
    DeepSpeedCase(model="bloom", world=2, stage=3, grouping="packed"),
    DeepSpeedCase(model="llama-tied", world=2, stage=1),
    DeepSpeedCase(model="llama-tied", world=2, stage=2),
    DeepSpeedCase(model="llama-tied", world=2, stage=3, grouping="2"),
    *(
        DeepSpeedCase(model=model, world=2, stage=stage, recompute=recompute, grouping=grouping)
        for model in _MODELS
        for stage, grouping in _RECOMPUTED
        for recompute in _RECOMPUTE
    ),
    *(DeepSpeedCase(world=2, stage=stage, offload=True, grouping="2") for stage in (1, 2, 3)),
)
FAMILIES = (
    DeepSpeedCase(model="llama3-tied", world=2, stage=2, grouping="2"),
    DeepSpeedCase(model="mistral", world=2, stage=1, grouping="packed"),
    DeepSpeedCase(model="qwen2-tied", world=2, stage=3, grouping="2"),
    DeepSpeedCase(model="qwen3", world=2, stage=3, recompute="full"),
    DeepSpeedCase(model="qwen2-tied", world=2, stage=2, lora=True),
    DeepSpeedCase(model="qwen3", world=2, stage=2, lora=True, grouping="packed"),
)
"""transformers' own layers of each family."""
PREFERENCES = (
    *(
        DeepSpeedCase(loss=loss, model=model, world=world, stage=stage, grouping=grouping)
        for loss in ("dpo", "reward")
        for model in _MODELS
        for world, stage, grouping in (
            (1, 2, "4"),
            (1, 3, "1"),
            (2, 1, "1"),
            (2, 2, "2"),
            (2, 3, "4"),
        )
    ),
    DeepSpeedCase(loss="reward", head="pooler", world=2, stage=2),
    DeepSpeedCase(loss="reward", head="pooler", world=2, stage=3, grouping="2"),
    DeepSpeedCase(loss="reward", model="llama-tied", world=2, stage=3),
)
BF16 = tuple(
    DeepSpeedCase(
        model=model, world=world, stage=stage, precision="bf16", grouping="2", offload=offload
    )
    for model in _MODELS
    for world, stage, offload in (
        (1, 1, False),
        (1, 2, False),
        (1, 3, False),
        (2, 1, False),
        (2, 2, False),
        (2, 3, False),
        (2, 1, True),
        (2, 2, True),
        (2, 3, True),
    )
)
SPOILT = tuple(
    DeepSpeedCase(kind="spoilt", world=2, stage=stage, precision=precision, offload=offload)
    for stage in (1, 2, 3)
    for precision, offload in (("fp32", False), ("bf16", False), ("fp32", True))
)
RESUME = tuple(
    DeepSpeedCase(
        kind="resume", world=2, stage=stage, precision=precision, offload=offload, grouping="2"
    )
    for stage in (1, 2, 3)
    for precision, offload in (("fp32", False), ("bf16", False), ("bf16", True))
)
FP16 = tuple(
    DeepSpeedCase(model=model, world=2, stage=stage, precision="fp16", grouping="2", lora=lora)
    for model, stage, lora in (
        ("llama-gqa", 1, False),
        ("llama-gqa", 2, False),
        ("llama-gqa", 3, False),
        ("bloom", 2, False),
        ("llama-gqa", 2, True),
        ("llama-gqa", 3, True),
    )
)
OVERFLOW = tuple(
    DeepSpeedCase(
        kind="overflow", precision="fp16", world=world, stage=stage, offload=offload, lora=lora
    )
    for world, stage, offload, lora in (
        (1, 2, False, False),
        (2, 1, False, False),
        (2, 2, True, False),
        (2, 3, False, False),
        (2, 3, True, False),
        (2, 3, False, True),
    )
)
CHECKPOINT = tuple(
    DeepSpeedCase(kind="checkpoint", loss=loss, model=model, world=2, stage=stage)
    for loss in ("sft", "reward")
    for model in ("llama-gqa", "bloom", "llama-tied")
    for stage in (2, 3)
)
OUTPUTS = tuple(
    DeepSpeedCase(kind="document_outputs", loss=loss, model=model, world=2, stage=stage)
    for loss in ("sft", "reward")
    for model in _MODELS
    for stage in (2, 3)
)
SHARED = (
    DeepSpeedCase(kind="shared", loss="dpo", world=2, stage=1, grouping="2"),
    DeepSpeedCase(kind="shared", loss="dpo", model="bloom", world=2, stage=3, grouping="4"),
    DeepSpeedCase(kind="shared", loss="reward", world=2, stage=3, recompute="full", grouping="2"),
    DeepSpeedCase(
        kind="shared", loss="reward", model="bloom", world=2, stage=2, recompute="selective"
    ),
    DeepSpeedCase(kind="shared", loss="dpo", world=2, stage=2, lora=True, grouping="2"),
)
STOP = DeepSpeedCase(kind="stop", world=2, stage=2)

LORA = (
    DeepSpeedCase(world=2, stage=1, lora=True, grouping="packed"),
    DeepSpeedCase(world=2, stage=2, lora=True, recompute="full"),
    DeepSpeedCase(model="bloom", world=2, stage=3, lora=True, grouping="2"),
    DeepSpeedCase(loss="dpo", model="bloom", world=2, stage=1, lora=True),
    DeepSpeedCase(loss="dpo", world=2, stage=3, lora=True, grouping="4"),
    DeepSpeedCase(loss="reward", world=2, stage=2, lora=True),
    DeepSpeedCase(loss="reward", world=2, stage=3, lora=True),
    DeepSpeedCase(loss="reward", head="pooler", world=2, stage=3, lora=True),
)
LORA_BF16 = tuple(
    DeepSpeedCase(world=2, stage=stage, lora=True, precision="bf16") for stage in (1, 2, 3)
)
LORA_RESUME = (
    DeepSpeedCase(kind="resume", world=2, stage=1, lora=True, precision="bf16"),
    DeepSpeedCase(kind="resume", loss="reward", world=2, stage=2, lora=True),
    DeepSpeedCase(kind="resume", loss="dpo", model="bloom", world=2, stage=3, lora=True),
    DeepSpeedCase(kind="resume", head="pooler", loss="reward", world=2, stage=3, lora=True),
    DeepSpeedCase(kind="resume", world=2, stage=3, lora=True, offload=True, precision="bf16"),
)
LORA_CHECKPOINT = (
    DeepSpeedCase(kind="checkpoint", world=2, stage=2, lora=True),
    DeepSpeedCase(kind="checkpoint", loss="reward", world=2, stage=3, lora=True),
)

FAST = {
    # A layout of each ZeRO stage, and each of DeepSpeed's optimizer classes.
    DeepSpeedCase(world=2, stage=1),
    DeepSpeedCase(world=2, grouping="packed"),
    DeepSpeedCase(model="bloom", world=2, stage=3, grouping="packed"),
    DeepSpeedCase(world=2, stage=3, grouping="4"),
    DeepSpeedCase(world=2, stage=3, grouping="4", recompute="full"),
    DeepSpeedCase(loss="dpo", world=2, stage=3, grouping="4"),
    DeepSpeedCase(loss="dpo", model="bloom", world=2, stage=1),
    DeepSpeedCase(loss="reward", world=2, stage=2, grouping="2"),
    DeepSpeedCase(loss="reward", head="pooler", world=2, stage=3, grouping="2"),
    *(each for each in BF16 if each.world == 2 and each.model == "llama-gqa" and not each.offload),
    DeepSpeedCase(kind="spoilt", world=2, stage=1, precision="bf16"),
    DeepSpeedCase(kind="spoilt", world=2, stage=3),
    DeepSpeedCase(kind="resume", world=2, stage=1, grouping="2", precision="bf16"),
    DeepSpeedCase(kind="resume", world=2, stage=2, grouping="2"),
    DeepSpeedCase(kind="resume", world=2, stage=3, grouping="2", precision="bf16", offload=True),
    *FP16[1:3],
    *OVERFLOW[2:4],
    DeepSpeedCase(kind="checkpoint", world=2, stage=2),
    DeepSpeedCase(kind="checkpoint", loss="reward", model="bloom", world=2, stage=3),
    DeepSpeedCase(kind="document_outputs", world=2, stage=3),
    DeepSpeedCase(kind="document_outputs", loss="reward", world=2, stage=2),
    STOP,
    *FAMILIES[2:],
    *SHARED,
    *LORA[:3],
    *LORA[4:6],
    *LORA_RESUME[:3],
    *LORA_CHECKPOINT,
}
"""What runs without `slow` tests too."""

_DEEPSPEED = (
    *(*SFT, *FAMILIES, *PREFERENCES, *BF16, *SPOILT, *RESUME, *CHECKPOINT, *OUTPUTS, STOP),
    *(*LORA, *LORA_BF16, *LORA_RESUME, *LORA_CHECKPOINT),
    *(*FP16, *OVERFLOW, *SHARED),
)
assert set(_DEEPSPEED) >= FAST
_TRAINED = {each.reference for each in (*SFT, *FAMILIES, *PREFERENCES, *LORA)}
_SCORED = {each.reference.model_copy(update={"kind": "document_outputs"}) for each in OUTPUTS}
_MEGATRON = _TRAINED | _SCORED | {each.reference for each in OVERFLOW}
ALL = (*sorted(_MEGATRON, key=lambda case: case.name), *_DEEPSPEED)
"""Everything, each case under a name of its own."""
assert len({case.name for case in ALL}) == len(ALL)
