"""The inputs that stages read, with the flags that name them."""

from dataclasses import replace

from alignctl.config.inputs import Input, always

LOAD = Input(
    "load",
    ("--load",),
    "Model to start from: Hugging Face, Megatron or a run.",
    meaning="a model folder to start from",
    is_needed=always,
)
TOKENIZER = Input("tokenizer", ("--tokenizer",), "Tokenizer; default: beside the model.")
DATA = Input(
    "data.train",
    ("--data",),
    "Training data: a file or a folder.",
    "PATH",
    meaning="a file or folder of training rows",
    is_needed=always,
)
VALIDATION_DATA = Input(
    "data.validation", ("--validation-data",), "Validation data: a file or a folder.", "PATH"
)
ROWS = (LOAD, DATA, VALIDATION_DATA, TOKENIZER)
"""Of a stage that learns from rows."""

REWARD = Input(
    "reward_load",
    ("--reward-load",),
    "Reward model: Hugging Face, Megatron or a run.",
    meaning="score.source {config.score.source} needs a reward model, such as a run of alignctl "
    "reward; score.source=sparse_only scores by the rules that rows name, without one",
    is_needed=lambda config: config.needs_reward_model,
)
REWARD_ITERATION = Input(
    "reward_load_iteration",
    ("--reward-load-iteration",),
    "Which of its checkpoints; default: the newest.",
    "N",
)
PROMPTS = (
    replace(
        LOAD,
        flags=("--load", "--policy-load"),
        help="Policy to start from: Hugging Face, Megatron or a run.",
    ),
    REWARD,
    REWARD_ITERATION,
    replace(DATA, help="Prompts: a file or a folder."),
    replace(VALIDATION_DATA, help="Held-out prompts: a file or a folder."),
    TOKENIZER,
)
"""Of a stage whose policy writes the answers itself."""
