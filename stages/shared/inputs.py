"""The inputs that stages read, with the flags that name them."""

from dataclasses import replace

from alignctl.config.inputs import Input, always

LOAD = Input(
    "load",
    ("--load",),
    "Model to start from: Hugging Face, Megatron or a run.",
    meaning="a model folder to start from",
    is_needed=always,
    places=("models/{preset}-mg", "models/{preset}"),
    maker="alignctl convert-hf2mg --preset {preset} --load DIR",
)
TUNED = replace(LOAD, places=("runs/{preset}-sft",), maker="alignctl sft --preset {preset}")
"""Of a stage that goes on from fine-tuning."""

TOKENIZER = Input("tokenizer", ("--tokenizer",), "Tokenizer; default: beside the model.")
DATA = Input(
    "data.train",
    ("--data",),
    "Training data: a file, a folder, or ORG/NAME on the Hugging Face hub.",
    "PATH",
    meaning="a file or folder of training rows (or data.blend)",
    is_needed=lambda config: config.data.blend is None,
)
BLEND = Input("data.blend", ("data.blend",))
VALIDATION_DATA = Input(
    "data.validation", ("--validation-data",), "Validation data: a file or a folder.", "PATH"
)


def prepared(data: Input, kind: str) -> Input:
    """Say of rows that they are those of one kind, as `alignctl prepare` writes them."""
    patterns = (f"data/{kind}", f"data/*/{kind}")
    return replace(data, places=patterns, maker="alignctl prepare")


def rows(load: Input, kind: str) -> tuple[Input, ...]:
    """List the inputs of a stage that learns from rows.

    Args:
        load: The model that it starts from.
        kind: Its rows: sft, reward or alignment.
    """
    return (load, prepared(DATA, kind), BLEND, VALIDATION_DATA, TOKENIZER)


REWARD = Input(
    "reward_load",
    ("--reward-load",),
    "Reward model: Hugging Face, Megatron or a run.",
    meaning="score.source {config.score.source} needs a reward model, such as a run of alignctl "
    "reward; score.source=sparse_only scores by the rules that rows name, without one",
    is_needed=lambda config: config.needs_reward_model,
    places=("runs/{preset}-reward",),
    maker="alignctl reward --preset {preset}",
)
REWARD_ITERATION = Input(
    "reward_load_iteration",
    ("--reward-load-iteration",),
    "Which of its checkpoints; default: the newest.",
    "N",
)


def prompts(kind: str) -> tuple[Input, ...]:
    """List the inputs of a stage whose policy writes the answers itself.

    Args:
        kind: Its prompts: alignment, or math where a rule scores.
    """
    return (
        replace(
            TUNED,
            flags=("--load", "--policy-load"),
            help="Policy to start from: Hugging Face, Megatron or a run.",
        ),
        REWARD,
        REWARD_ITERATION,
        prepared(replace(DATA, help="Prompts: a file or a folder."), kind),
        BLEND,
        replace(VALIDATION_DATA, help="Held-out prompts: a file or a folder."),
        TOKENIZER,
    )
