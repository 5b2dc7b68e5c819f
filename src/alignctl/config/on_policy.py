"""The sections of stages that learn from what the policy writes itself."""

from typing import Annotated, Literal

from pydantic import Field

from alignctl.config.sections import Rows


class Prompts(Rows):
    """What the policy is asked."""

    max_prompt_length: Annotated[int, Field(ge=2)] = 512
    """Most tokens of a prompt, BOS included."""

    long_prompts: Literal["drop", "cut"] = "drop"
    """What happens to a prompt with more: drop leaves its row out; cut takes its start away, but
    never BOS. Either is counted and told."""
