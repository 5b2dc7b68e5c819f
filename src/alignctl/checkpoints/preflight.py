"""What can be known about a run's model and checkpoint before a process is started for it."""

import importlib.util
from pathlib import Path

from alignctl.checkpoints import manifest
from alignctl.checkpoints.extension import extend_vocabulary
from alignctl.checkpoints.find import find
from alignctl.checkpoints.source import Source
from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Role
from alignctl.data.tokenizer import check_fits, load_tokenizer
from alignctl.errors import UserError
from alignctl.models.families import differences
from alignctl.run_folder import RunFolder


def open_model(config: TrainingConfig) -> Source:
    """Open the model that a run starts from, as the launcher and the ranks see it."""
    return _grown(_found(config), config)


def _found(config: TrainingConfig) -> Source:
    assert config.load is not None
    return find(config.load, vocab_divisor=config.model.vocab_divisor, expected=config.model)


def _grown(source: Source, config: TrainingConfig) -> Source:
    """Add the rows by which the run extends the vocabulary."""
    return source if config.extra_rows is None else extend_vocabulary(source, config.extra_rows)


def newest_model(config: TrainingConfig, checkpoint: Path | None) -> Source:
    """Open the model of the checkpoint that a run goes on from, or the one it starts from.

    The model that a run started from is not looked for where a checkpoint has all: it may be gone.
    """
    return open_model(config) if checkpoint is None else find(checkpoint)


def check_model(
    config: TrainingConfig,
    *,
    roles: tuple[Role, ...] = ("policy",),
    checkpoint: Path | None = None,
) -> Source:
    """Check the model and the tokenizer as the ranks will, without loading a weight.

    Args:
        config: The run.
        roles: What the stage can start from: a policy, or also a reward model.
        checkpoint: Where a run goes on that needs nothing else; None for what it starts from.

    Raises:
        UserError: The folder is no model, one of another role, or another model than the preset
            says; tensors are missing or misshapen; the tokenizer has more tokens than the
            embedding has rows.
    """
    source = _found(config) if checkpoint is None else find(checkpoint)
    expected = config.model if checkpoint is None else config.architecture
    if source.role not in roles:
        raise UserError(
            f"{source.path}: this is a reward model, and alignctl {config.stage} trains a policy",
            "give --load the policy that it was made from",
        )
    if found := differences(expected, source.model):
        raise UserError(
            f"preset {config.preset} and {source.path} describe different models:\n  "
            + "\n  ".join(found),
            "choose the preset of this model, or override the keys above: model.KEY=VALUE",
        )
    tokenizer = load_tokenizer(source.tokenizer_folder(config.tokenizer))
    if config.extra_rows is None:
        check_fits(tokenizer, config.model.vocab_size)
    else:
        needed = tokenizer.vocab_size - config.model.vocab_size
        hint = f"grow the model's vocabulary to it: extra_vocab_size={needed}"
        check_fits(tokenizer, config.architecture.vocab_size, hint)
    return _grown(source, config) if checkpoint is None else source


def check_resumable(config: TrainingConfig, folder: RunFolder) -> None:
    """Check the checkpoint that a run is to go on from, if it has one, and the value model's.

    Raises:
        UserError: One is damaged or missing, or was saved at another layout than this run's.
    """
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None or folder.result.exists():
        return
    manifest.check_layout(checkpoint, manifest.read(checkpoint), config.training_layout)
    if not is_on_policy(config) or "value" not in config.models:
        return
    beside = folder.value.checkpoints / checkpoint.name
    if not beside.is_dir():
        raise UserError(
            f"{beside}: the value model that belongs to {checkpoint} is missing",
            "put the folder back, or start a new run from the policy: --load RUN --output NEW",
        )
    layout = config.layout_to_resume(config.models["value"].parallel)
    key = config.layout_key("value")
    manifest.check_layout(beside, manifest.read(beside), layout, key=key)


def check_engine(config: TrainingConfig) -> None:
    """Check that the libraries that are to train are installed.

    Raises:
        UserError: One is not installed.
    """
    needed = {"deepspeed": "DeepSpeed"} | ({"peft": "PEFT"} if config.lora else {})
    for module, name in needed.items() if config.engine == "deepspeed" else ():
        if importlib.util.find_spec(module) is None:
            what = "engine deepspeed" if module == "deepspeed" else "lora with engine deepspeed"
            raise UserError(f"{what}: {name} is not installed", "pip install -e '.[deepspeed]'")


def _check_attention(attention: str, num_gpus: int) -> None:
    installed = importlib.util.find_spec("transformer_engine") is not None
    if attention == "transformer_engine" and not installed:
        problem = "it is not installed"
    elif attention in ("flex", "transformer_engine") and not num_gpus:
        problem = "it learns on a GPU alone, and none can be seen here"
    else:
        return
    raise UserError(f"kernels.attention {attention}: {problem}", "leave it out, or set it to auto")


def check_devices(config: TrainingConfig, num_gpus: int) -> None:
    """Check that every process of this node gets a GPU of its own, where there are any.

    Args:
        config: The run.
        num_gpus: GPUs that can be seen on this node; 0 where the CPU does the work.

    Raises:
        UserError: There are fewer GPUs than processes, or the kernels that are asked for need one.
    """
    num_processes = config.launch.nproc_per_node
    _check_attention(config.kernels.attention, num_gpus)
    if 0 < num_gpus < num_processes:
        raise UserError(
            f"launch.nproc_per_node {num_processes}: only {num_gpus} GPUs can be seen on this "
            "node, and each process needs one",
            f"give --nproc {num_gpus}, or see whether CUDA_VISIBLE_DEVICES hides some",
        )
