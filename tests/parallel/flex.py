"""The job of FlexAttention: every number twice, by plain attention and by it."""

from pathlib import Path
from typing import Any
from unittest import mock

from tests.parallel import documents, shared
from tests.parallel.cases import Case


def flex(case: Case, folder: Path) -> dict[str, Any]:
    """Losses, norms and outputs of both; prompts are shared, and then they are not.

    torch refuses a backward pass on the CPU by the device alone, which is replaced.
    """
    with mock.patch("torch.nn.attention.flex_attention._validate_device"):
        return {attention: _measure(case, folder, attention) for attention in ("plain", "flex")}


def _measure(case: Case, folder: Path, attention: str) -> list[dict[str, Any]]:
    from alignctl.config.kernels import Kernels
    from tests.parallel.jobs import engine_of

    kinds: dict[str, Any] = {"kernels": Kernels.model_validate({"attention": attention})}
    is_reward = case.model.endswith("-reward")
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, **kinds)
    loss = shared.reward_loss() if is_reward else shared.dpo_loss()
    found = [
        shared.measure(
            engine, shared.preferences(case.grouping, engine, share_prompts=is_shared), loss
        )
        for is_shared in (True, False)
    ]
    if is_reward:
        kinds["is_value"], loss = True, shared.value_loss()
    else:
        kinds["with_entropy"], loss = True, shared.policy_loss()
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, **kinds)
    batches = shared.episode_batches(case.grouping, engine, share_prompts=True)
    return [*found, shared.measure(engine, batches, loss, shared.episode())]
