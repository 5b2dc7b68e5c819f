"""What the torchrun jobs compute, as values: tests and the layout benchmark share this list."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignctl.config.precision import Precision
from alignctl.config.sections import Parallel

MODELS = ("llama-mha", "llama-gqa", "bloom", "llama-tied")
TRAINED = ("llama-gqa", "bloom", "llama-tied")
"""Grouped queries contain everything that multi-head attention has."""
POLICIES = ("llama-gqa", "bloom")
"""Of these there are reward models too: NAME-reward."""
FAMILY_MODELS = (
    "llama3",
    "llama3-tied",
    "mistral",
    "qwen2",
    "qwen2-tied",
    "qwen3",
    "qwen3-tied",
)
"""Llama-likes with what only they have; documents are longer than the original length of Llama 3,
heads of Mistral and Qwen 3 are of a width of their own."""


class Case(BaseModel):
    """One computation of one model at one layout; `kind` is the function in jobs.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    model: str = "llama-gqa"
    world: Literal[1, 2, 4]
    parallel: Parallel = Parallel()
    load: Literal["hf", "mcore", "legacy"] = "hf"
    grouping: Literal["1", "2", "4", "packed"] = "1"
    """Documents in one micro batch; "packed" are bins that hold 1 to 4 of them."""
    precision: Precision = "fp32"
    lora: bool = False

    @property
    def data_parallel_size(self) -> int:
        return self.world // (self.parallel.tp * self.parallel.pp)

    @property
    def layout(self) -> str:
        """Such as `dp2-tp2-sp`; what is 1 or off is left out, but for `one-rank`."""
        sizes = {
            "dp": self.data_parallel_size,
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
        }
        parts = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        parts += ["sp"] if self.parallel.sequence_parallel else []
        parts += ["distopt"] if self.parallel.distributed_optimizer else []
        parts += ["overlap"] if self.parallel.overlap_grad_reduce else []
        return "-".join(parts) or "one-rank"

    @property
    def variation(self) -> str:
        """The layout and what else differs from the baseline."""
        recompute = self.parallel.recompute
        parts = [
            f"recompute-{recompute}" if recompute != "none" else "",
            {"1": "", "packed": "packed"}.get(self.grouping, f"micro{self.grouping}"),
            self.precision if self.precision != "fp32" else "",
            "lora" if self.lora else "",
            f"chunks{self.parallel.logits_chunk_size}" if self.parallel.logits_chunk_size else "",
        ]
        return "-".join([self.layout, *filter(None, parts)])

    @property
    def name(self) -> str:
        """Unique among the cases; also the test's id."""
        source = [self.load] if self.load != "hf" else []
        return "-".join([self.kind, self.model, self.variation, *source])


def _parallel(tp: int = 1, pp: int = 1, **switches: object) -> Parallel:
    return Parallel.model_validate({"tp": tp, "pp": pp, **switches})


LOGITS = tuple(
    Case(kind="logits", model=model, world=tp * pp, parallel=_parallel(tp, pp), load=load)
    for model in MODELS
    for load in ("hf", "mcore", "legacy")
    for tp, pp in ((1, 1), (2, 1), (1, 2), (2, 2))
) + tuple(
    Case(
        kind="logits",
        model=model,
        world=2,
        parallel=_parallel(2, sequence_parallel=True),
    )
    for model in MODELS
)

_VARIATIONS: tuple[tuple[int, Parallel, str], ...] = (
    (1, _parallel(), "2"),
    (1, _parallel(), "4"),
    (1, _parallel(), "packed"),
    (1, _parallel(recompute="selective"), "1"),
    (1, _parallel(recompute="full"), "2"),
    (1, _parallel(distributed_optimizer=True), "1"),
    (2, _parallel(), "1"),
    (2, _parallel(), "packed"),
    (2, _parallel(distributed_optimizer=True), "2"),
    (2, _parallel(2), "1"),
    (2, _parallel(2, sequence_parallel=True), "1"),
    (2, _parallel(2, sequence_parallel=True, recompute="full"), "packed"),
    (2, _parallel(2, recompute="selective"), "2"),
    (2, _parallel(1, 2), "1"),
    (2, _parallel(1, 2), "4"),
    (2, _parallel(1, 2, recompute="full"), "packed"),
    (4, _parallel(2, 2), "1"),
    (4, _parallel(2, 2, sequence_parallel=True), "packed"),
    (4, _parallel(2, sequence_parallel=True, distributed_optimizer=True), "1"),
    (4, _parallel(1, 2, distributed_optimizer=True), "2"),
)

_TIED_VARIATIONS = tuple(
    (world, parallel, grouping)
    for world, parallel, grouping in _VARIATIONS
    if parallel.pp > 1 or parallel.sequence_parallel
)
"""Where a second copy of the embedding, or a second gradient of it, could go wrong."""

BASELINES = tuple(Case(kind="train", model=model, world=1) for model in TRAINED)
TRAINING = tuple(
    Case(kind="train", model=model, world=world, parallel=parallel, grouping=grouping)
    for model in TRAINED
    for world, parallel, grouping in (_TIED_VARIATIONS if model == "llama-tied" else _VARIATIONS)
)

BF16 = tuple(
    Case(
        kind="train",
        model=model,
        world=world,
        parallel=parallel,
        grouping=grouping,
        precision="bf16",
    )
    for model in ("llama-gqa", "bloom")
    for world, parallel, grouping in (
        (1, _parallel(), "1"),
        (2, _parallel(2, sequence_parallel=True), "packed"),
        (2, _parallel(1, 2), "2"),
        (2, _parallel(distributed_optimizer=True), "1"),
    )
)

FLOAT16 = tuple(case.model_copy(update={"kind": "float16", "precision": "fp16"}) for case in BF16)
OVERFLOW, OVERFLOW_APART = (
    tuple(
        Case(kind=kind, world=world, parallel=parallel, grouping="1", precision="fp16")
        for world, parallel in layouts
    )
    for kind, layouts in (
        (
            "overflow",
            (
                (1, _parallel()),
                (2, _parallel(2, sequence_parallel=True)),
                (2, _parallel(1, 2)),
                (2, _parallel(distributed_optimizer=True)),
                (4, _parallel(1, 2, distributed_optimizer=True)),
            ),
        ),
        (
            "apart",
            (
                (2, _parallel()),
                (2, _parallel(distributed_optimizer=True)),
                (2, _parallel(2)),
                (2, _parallel(1, 2)),
                (4, _parallel(2, 2)),
            ),
        ),
    )
)
"""Gradients that float16 does not hold: of all ranks, and of one alone."""

FOLLOWING = tuple(
    Case(kind="follow", model=model, world=2, parallel=parallel, grouping=grouping)
    for model in TRAINED
    for parallel, grouping in ((_parallel(2), "4"), (_parallel(1, 2), "1"))
)

PRETRAINING = tuple(
    Case(kind=kind, model=model, world=world, parallel=parallel, grouping=grouping)
    for model in TRAINED
    for kind, world, parallel, grouping in (
        ("pretrain", 1, _parallel(), "4"),
        ("pretrain", 2, _parallel(), "2"),
        ("pretrain", 2, _parallel(2, sequence_parallel=True), "1"),
        ("pretrain", 2, _parallel(1, 2), "2"),
        ("pretrain", 4, _parallel(2, 2, sequence_parallel=True), "1"),
        ("pretrain_apart", 1, _parallel(), "2"),
        ("pretrain_apart", 2, _parallel(2, sequence_parallel=True), "4"),
        ("pretrain_apart", 4, _parallel(1, 2, distributed_optimizer=True), "1"),
    )
    if model != "llama-tied" or parallel.pp > 1
)
"""Twenty steps over a blend; `apart`: no attention from one document to another."""

EVALUATION = tuple(
    Case(kind="evaluate", model=model, world=world, parallel=parallel, grouping=grouping)
    for model in ("llama-gqa", "bloom")
    for world, parallel, grouping in (
        (1, _parallel(), "1"),
        (1, _parallel(), "4"),
        (2, _parallel(), "4"),
        (2, _parallel(2, sequence_parallel=True), "2"),
        (2, _parallel(1, 2), "packed"),
        (4, _parallel(2), "2"),
        (4, _parallel(1, 2), "4"),
    )
)

MASTER_WEIGHTS = tuple(
    Case(kind="master_weights", world=2, parallel=parallel, grouping="4", precision="bf16")
    for parallel in (_parallel(2), _parallel(distributed_optimizer=True))
)
VOCAB_PARALLEL = Case(kind="vocab_parallel", world=2, parallel=_parallel(2))
SPOILT_STEPS = tuple(
    Case(kind="spoilt_steps", world=2, parallel=parallel)
    for parallel in (_parallel(2), _parallel(1, 2))
)
STOP = Case(kind="stop", world=2, parallel=_parallel(1, 2))
RESHARD = tuple(
    Case(kind="reshard", model=model, world=4, parallel=_parallel(2, 2)) for model in MODELS
)
PLAIN_MEGATRON = tuple(
    Case(kind="plain_megatron", model=model, world=1, load="mcore")
    for model in ("llama-mha", "llama-gqa", "llama-tied")
)

DPO_BASELINE = Case(kind="dpo", world=1)
DPO = tuple(
    Case(kind="dpo", world=world, parallel=parallel, grouping=grouping)
    for world, parallel, grouping in (
        (1, _parallel(), "2"),
        (1, _parallel(), "4"),
        (2, _parallel(), "1"),
        (2, _parallel(), "4"),
        (2, _parallel(2), "2"),
        (2, _parallel(2, sequence_parallel=True), "1"),
        (2, _parallel(1, 2), "2"),
        (4, _parallel(2, 2, sequence_parallel=True), "1"),
        (4, _parallel(1, 2, distributed_optimizer=True), "2"),
    )
)

_PREFERENCE_LAYOUTS: tuple[tuple[int, Parallel, str], ...] = (
    (1, _parallel(), "4"),
    (1, _parallel(recompute="full"), "2"),
    (2, _parallel(), "1"),
    (2, _parallel(), "4"),
    (2, _parallel(distributed_optimizer=True), "2"),
    (2, _parallel(2), "2"),
    (2, _parallel(2, sequence_parallel=True), "1"),
    (2, _parallel(2, sequence_parallel=True, recompute="selective"), "4"),
    (2, _parallel(1, 2), "1"),
    (4, _parallel(2, 2, sequence_parallel=True), "1"),
    (4, _parallel(2, sequence_parallel=True, distributed_optimizer=True), "2"),
    (4, _parallel(1, 2, distributed_optimizer=True), "2"),
)
REWARD_BASELINES = tuple(Case(kind="reward", model=f"{name}-reward", world=1) for name in POLICIES)
REWARD = tuple(
    Case(kind="reward", model=each.model, world=world, parallel=parallel, grouping=grouping)
    for each in REWARD_BASELINES
    for world, parallel, grouping in _PREFERENCE_LAYOUTS
)
REWARD_BF16 = tuple(
    Case(
        kind="reward",
        model=each.model,
        world=2,
        parallel=parallel,
        grouping=grouping,
        precision="bf16",
    )
    for each in REWARD_BASELINES
    for parallel, grouping in (
        (_parallel(), "1"),
        (_parallel(2, sequence_parallel=True), "4"),
        (_parallel(1, 2), "2"),
        (_parallel(distributed_optimizer=True), "2"),
    )
)
NEW_HEAD_BASELINE = Case(kind="new_head", world=1)
NEW_HEAD = tuple(
    Case(kind="new_head", world=world, parallel=parallel, grouping=grouping)
    for world, parallel, grouping in _PREFERENCE_LAYOUTS
    if world == 4
)
DPO_START = tuple(
    Case(kind="dpo_start", model=name, world=world, parallel=parallel, grouping=grouping)
    for name in POLICIES
    for world, parallel, grouping in (
        (1, _parallel(), "4"),
        (2, _parallel(), "1"),
        (2, _parallel(2, sequence_parallel=True), "2"),
        (4, _parallel(2, 2), "2"),
    )
)
REWARD_FOLLOW = Case(
    kind="reward_follow",
    model="llama-gqa-reward",
    world=2,
    parallel=_parallel(2, sequence_parallel=True),
    grouping="2",
)
DPO_FOLLOW = Case(kind="dpo_follow", world=2, parallel=_parallel(1, 2), grouping="1")

_LORA_LAYOUTS: tuple[tuple[int, Parallel, str], ...] = (
    (1, _parallel(), "1"),
    (1, _parallel(), "packed"),
    (1, _parallel(recompute="full"), "2"),
    (2, _parallel(), "1"),
    (2, _parallel(distributed_optimizer=True), "2"),
    (2, _parallel(2), "2"),
    (2, _parallel(2, sequence_parallel=True), "1"),
    (2, _parallel(2, sequence_parallel=True, recompute="selective"), "packed"),
    (2, _parallel(1, 2, recompute="full"), "1"),
    (4, _parallel(2, 2, sequence_parallel=True), "2"),
    (4, _parallel(2, sequence_parallel=True, recompute="full"), "1"),
    (4, _parallel(1, 2, distributed_optimizer=True), "1"),
)
LORA_CASES = tuple(
    Case(kind="lora", model=name, world=world, parallel=parallel, grouping=grouping)
    for name in POLICIES
    for world, parallel, grouping in _LORA_LAYOUTS
)
LORA_BF16 = tuple(
    Case(
        kind="lora",
        model=name,
        world=2,
        parallel=_parallel(2, sequence_parallel=True),
        grouping="2",
        precision="bf16",
    )
    for name in POLICIES
)
LORA_DROPOUT_BASELINES = tuple(Case(kind="lora_dropout", model=name, world=1) for name in POLICIES)
LORA_DROPOUT = tuple(
    Case(kind="lora_dropout", world=world, parallel=parallel)
    for world, parallel in (
        (1, _parallel(recompute="full")),
        (2, _parallel(2)),
        (2, _parallel(2, recompute="full")),
        (2, _parallel(2, sequence_parallel=True)),
        (2, _parallel(2, sequence_parallel=True, recompute="full")),
        (2, _parallel(1, 2)),
        (2, _parallel(1, 2, recompute="full")),
    )
)
LORA_BASELINES = tuple(Case(kind=kind, world=1) for kind in ("lora_reward", "lora_dpo"))
LORA_REWARD, LORA_DPO = (
    tuple(
        Case(kind=each.kind, world=world, parallel=parallel, grouping=grouping)
        for world, parallel, grouping in _PREFERENCE_LAYOUTS
        if world == 4
    )
    for each in LORA_BASELINES
)

VALUE_BASELINES = tuple(Case(kind="value", model=f"{name}-reward", world=1) for name in POLICIES)
POLICY_BASELINES = tuple(Case(kind="policy", model=name, world=1) for name in POLICIES)
VALUE, POLICY = (
    tuple(
        Case(kind=each.kind, model=each.model, world=world, parallel=parallel, grouping=grouping)
        for each in baselines
        for world, parallel, grouping in _PREFERENCE_LAYOUTS
    )
    for baselines in (VALUE_BASELINES, POLICY_BASELINES)
)
VALUE_BF16, POLICY_BF16 = (
    tuple(
        Case(
            kind=each.kind,
            model=each.model,
            world=2,
            parallel=parallel,
            grouping="2",
            precision="bf16",
        )
        for each in baselines
        for parallel in (_parallel(2, sequence_parallel=True), _parallel(1, 2))
    )
    for baselines in (VALUE_BASELINES, POLICY_BASELINES)
)
OFFLOAD = tuple(
    Case(
        kind="offload",
        model=model,
        world=2,
        parallel=parallel,
        grouping="2",
        precision=precision,
        lora=lora,
    )
    for model, parallel, precision, lora in (
        ("llama-gqa", _parallel(), "fp32", False),
        ("llama-gqa", _parallel(2, sequence_parallel=True), "bf16", False),
        ("llama-gqa", _parallel(distributed_optimizer=True), "fp32", False),
        ("llama-gqa", _parallel(distributed_optimizer=True), "bf16", False),
        ("llama-gqa", _parallel(distributed_optimizer=True), "bf16", True),
        ("llama-tied", _parallel(1, 2), "fp32", False),
        ("bloom", _parallel(1, 2), "fp32", True),
    )
)

_SHARED_LAYOUTS: tuple[tuple[int, Parallel, str], ...] = (
    (1, _parallel(), "2"),
    (1, _parallel(recompute="selective"), "2"),
    (1, _parallel(recompute="full"), "4"),
    (2, _parallel(2), "2"),
    (2, _parallel(2, sequence_parallel=True, recompute="full"), "4"),
    (2, _parallel(1, 2), "2"),
    (2, _parallel(), "2"),
    (4, _parallel(2, 2, sequence_parallel=True), "4"),
)
_SHARED_MODELS = (*POLICIES, *(f"{name}-reward" for name in POLICIES))
SHARED = tuple(
    Case(kind="shared", model=name, world=world, parallel=parallel, grouping=grouping)
    for name in _SHARED_MODELS
    for world, parallel, grouping in _SHARED_LAYOUTS
) + tuple(
    Case(kind="shared", model=name, world=world, parallel=parallel, grouping="2", lora=True)
    for name in _SHARED_MODELS
    for world, parallel in ((1, _parallel()), (2, _parallel(2, sequence_parallel=True)))
)
"""Prompts computed once and for each answer, at each of these layouts."""
SHARED_BF16 = tuple(
    case.model_copy(update={"precision": "bf16"})
    for case in SHARED
    if case.world == 2 and not case.lora and case.parallel.recompute == "none"
)

FLEX = tuple(
    case.model_copy(update={"kind": "flex"})
    for case in SHARED
    if not case.lora
    and case.data_parallel_size == 1
    and case.world <= (1 if case.parallel.recompute == "selective" else 2)
    and (case.model in POLICIES or case.world == 2)
)
FLEX_BF16 = tuple(
    Case(kind="flex", model=model, world=2, parallel=parallel, grouping="2", precision="bf16")
    for model, parallel in (("llama-gqa", _parallel(1, 2)), ("bloom", _parallel(2)))
)
"""FlexAttention and plain attention: policies, and models that score where there are two ranks."""

FUSED = tuple(
    Case(
        kind="fused",
        model=model,
        world=world,
        parallel=parallel,
        grouping="2",
        precision=precision,
        lora=lora,
    )
    for model in POLICIES
    for world, parallel, precision, lora in (
        (1, _parallel(recompute="full"), "fp32", False),
        (2, _parallel(2, sequence_parallel=True), "fp32", False),
        (2, _parallel(1, 2), "fp32", True),
        (2, _parallel(2), "bf16", False),
    )
)
"""Activations by one function, and by torch's operators."""

_OVERLAPPING = {"overlap_grad_reduce": True}
_GATHERING = {"distributed_optimizer": True, "overlap_param_gather": True, **_OVERLAPPING}
OVERLAP = tuple(
    Case(
        kind="overlap",
        model=model,
        world=4 if parallel.tp * parallel.pp > 1 else 2,
        parallel=parallel,
        grouping=grouping,
    )
    for model, parallel, grouping in (
        ("llama-gqa", _parallel(**_OVERLAPPING), "2"),
        ("llama-tied", _parallel(**_GATHERING), "4"),
        ("bloom", _parallel(**_GATHERING), "1"),
        ("llama-gqa", _parallel(**_GATHERING, logits_chunk_size=7, recompute="full"), "2"),
        ("llama-gqa", _parallel(2, sequence_parallel=True, **_GATHERING), "2"),
        ("bloom", _parallel(1, 2, **_GATHERING), "1"),
    )
)
WHOLE_LOGITS = (
    *(
        Case(kind="train", model=model, world=world, parallel=parallel, grouping=grouping)
        for model in TRAINED
        for world, parallel, grouping in (
            (1, _parallel(), "4"),
            (2, _parallel(2), "packed"),
            (2, _parallel(2, sequence_parallel=True), "4"),
            (2, _parallel(1, 2), "4"),
            (2, _parallel(distributed_optimizer=True), "2"),
        )
    ),
    *(
        Case(kind=kind, model=model, world=2, parallel=parallel, grouping="2")
        for model in POLICIES
        for kind, parallel in (
            ("policy", _parallel(2)),
            ("policy", _parallel(1, 2)),
            ("lora_dpo", _parallel(2, sequence_parallel=True)),
        )
    ),
    *(
        Case(kind="train", model=model, world=2, parallel=parallel, grouping="4", precision="bf16")
        for model in ("llama-gqa", "llama-tied")
        for parallel in (_parallel(2), _parallel(distributed_optimizer=True))
    ),
)
CHUNKED_LOGITS = tuple(
    case.model_copy(update={"parallel": case.parallel.model_copy(update={"logits_chunk_size": 7})})
    for case in WHOLE_LOGITS
)
"""The same, seven learned tokens at a time: most micro batches have more, and not a multiple."""

FAMILY_LOGITS = tuple(
    Case(kind="logits", model=model, world=tp * pp, parallel=_parallel(tp, pp), load=load)
    for model in FAMILY_MODELS
    for load, tp, pp in (
        ("hf", 1, 1),
        ("hf", 2, 1),
        ("hf", 1, 2),
        ("hf", 2, 2),
        ("mcore", 2, 2),
        *((("legacy", 2, 1),) if model in ("mistral", "qwen2", "qwen2-tied") else ()),
    )
)
_FAMILY_LAYOUTS: tuple[tuple[int, Parallel, str], ...] = (
    (1, _parallel(), "2"),
    (1, _parallel(recompute="full"), "packed"),
    (2, _parallel(2), "2"),
    (2, _parallel(2, sequence_parallel=True), "1"),
    (2, _parallel(1, 2), "2"),
    (4, _parallel(2, 2, sequence_parallel=True), "packed"),
    (4, _parallel(2, sequence_parallel=True, distributed_optimizer=True), "1"),
)
FAMILY_GRADIENTS = tuple(
    Case(kind="gradients", model=model, world=world, parallel=parallel, grouping=grouping)
    for model in FAMILY_MODELS
    for world, parallel, grouping in _FAMILY_LAYOUTS
    if not parallel.distributed_optimizer
)
FAMILY_FOLLOWING = tuple(
    Case(kind="follow", model=model, world=world, parallel=parallel, grouping=grouping)
    for model in FAMILY_MODELS
    for world, parallel, grouping in _FAMILY_LAYOUTS
    if world == 4
)
FAMILY_LORA = tuple(
    Case(kind="lora", model=model, world=world, parallel=parallel, grouping=grouping)
    for model in ("llama3", "mistral", "qwen2", "qwen3")
    for world, parallel, grouping in (_FAMILY_LAYOUTS[0], *_FAMILY_LAYOUTS[3:6])
)
FAMILY_PLAIN_MEGATRON = tuple(
    Case(kind="plain_megatron", model=model, world=1, load="mcore")
    for model in ("mistral", "qwen2-tied", "qwen3")
)
FAMILIES = (
    *FAMILY_LOGITS,
    *FAMILY_GRADIENTS,
    *FAMILY_FOLLOWING,
    *FAMILY_LORA,
    *FAMILY_PLAIN_MEGATRON,
)

_LISTED = (
    *LOGITS,
    *BASELINES,
    *TRAINING,
    *BF16,
    *FLOAT16,
    *OVERFLOW,
    *OVERFLOW_APART,
    *FOLLOWING,
    *PRETRAINING,
    *EVALUATION,
    *MASTER_WEIGHTS,
    VOCAB_PARALLEL,
    *SPOILT_STEPS,
    STOP,
    *RESHARD,
    *PLAIN_MEGATRON,
    DPO_BASELINE,
    *DPO,
    *REWARD_BASELINES,
    *REWARD,
    *REWARD_BF16,
    NEW_HEAD_BASELINE,
    *NEW_HEAD,
    *DPO_START,
    REWARD_FOLLOW,
    DPO_FOLLOW,
    *LORA_CASES,
    *LORA_BF16,
    *LORA_DROPOUT_BASELINES,
    *LORA_DROPOUT,
    *LORA_BASELINES,
    *LORA_REWARD,
    *LORA_DPO,
    *VALUE_BASELINES,
    *VALUE,
    *VALUE_BF16,
    *POLICY_BASELINES,
    *POLICY,
    *POLICY_BF16,
    *OFFLOAD,
    *SHARED,
    *SHARED_BF16,
    *OVERLAP,
    *FLEX,
    *FLEX_BF16,
    *FUSED,
)
ALL = (*_LISTED, *(case for case in WHOLE_LOGITS if case not in _LISTED), *CHUNKED_LOGITS)
"""Everything, each case under a name of its own."""
assert len({case.name for case in ALL}) == len(ALL)

SUITES = {"all": ALL, "families": FAMILIES}
"""The cases of one job for each world size."""
