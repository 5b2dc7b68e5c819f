"""How a model answers when it is asked: lengths, sampling, memory; no training is involved."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from alignctl.config import rollout
from alignctl.config.data import Template, Truncation
from alignctl.config.numbers import Count, MaybeNone, Processes, ProcessorSeconds, Seed, Weight
from alignctl.config.precision import Precision
from alignctl.config.rewards import RewardFunction, label_problems
from alignctl.config.sections import FilePath, Model, Section

RESOURCES = {"tp", "batch", "kv_cache_gib", "gpu_memory_utilization"}
"""Knobs that do not decide what is answered, but for rounding."""

USUAL_LENGTH = 4096
"""Most tokens of prompt and answer together, where nobody says what prompts are to be cut to."""


class Generation(rollout.SamplingParams):
    """The knobs of `generate`, and of what `eval` generates."""

    max_prompt_length: Count | None = None
    """Most tokens of a prompt, BOS included: a longer one loses its start, after BOS; null: what
    4096 tokens, or the model's longest sequence if that is shorter, leave beside max_new_tokens."""

    max_new_tokens: Count = 512
    """Most tokens of an answer, its end token included. Where it is not given, and is too much for
    the model, it is what fits: at most half of its longest sequence, or the rest beside
    max_prompt_length."""

    temperature: Weight = 0.0
    """What logits are divided by before a token is drawn; 0: greedy, always the likeliest token."""

    samples: Count = 1
    """Answers to each prompt."""

    seed: Seed = 1234
    """Of all chance; each answer's own seed follows from it, its prompt's place and its number."""

    template: Template = "auto"
    """How a row is written as text. auto: its own text where it has one, otherwise the tokenizer's
    chat template, or the HH form where there is none; tokenizer: always its chat template; hh:
    always the HH form; none: every row's own text."""

    precision: Precision | None = None
    """Of weights and computation; null: bf16 on a GPU, fp32 without."""

    tp: Processes = 1
    """Tensor-parallel ranks that the model is cut over, all on this machine: for one that is too
    large for a device."""

    batch: Processes = 64
    """Most answers that are worked on at the same time."""

    kv_cache_gib: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """GiB for the cache of keys and values, or what one longest sequence takes, if that is more;
    acts only without GPUs."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of a GPU's memory for weights and cache together; acts only on GPUs."""

    @property
    def is_greedy(self) -> bool:
        """True if nothing is left to chance."""
        return self.temperature == 0

    def longest(self, model: Model) -> int:
        """Return the most tokens of prompt and answer together."""
        if self.max_prompt_length is not None:
            return self.max_prompt_length + self.max_new_tokens
        return min(model.max_position_embeddings, USUAL_LENGTH)

    def fitted(self, model: Model) -> Self:
        """Copy these settings; fit `max_new_tokens` to the model where it is the default."""
        if "max_new_tokens" in self.model_fields_set:
            return self
        if self.max_prompt_length is None:
            most = self.longest(model) // 2
        elif not model.traits.is_rotary:  # ALiBi has no limit
            return self
        else:
            most = model.max_position_embeddings - self.max_prompt_length
        # Where nothing is left, `problems` says so.
        if not 0 < most < self.max_new_tokens:
            return self
        return self.model_copy(update={"max_new_tokens": most})

    def problems(self, model: Model) -> list[str]:
        """List the reasons why a model cannot answer like this, one line per reason."""
        if problems := model.layout_problems(self.tp, 1, prefix=""):
            return problems
        limit, longest = model.max_position_embeddings, self.longest(model)
        if self.max_prompt_length is None and self.max_new_tokens >= longest:
            remedy = "lower it" if model.traits.is_rotary else "lower it, or set max_prompt_length"
            return [
                f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt in a sequence "
                f"of {longest} tokens; {remedy}"
            ]
        if model.traits.is_rotary and longest > limit:
            return [
                f"max_prompt_length {self.max_prompt_length} + max_new_tokens "
                f"{self.max_new_tokens} = {longest} exceed the model's longest sequence of {limit} "
                "tokens (max_position_embeddings)"
            ]
        return []

    def rollout(self, model: Model) -> rollout.Rollout:
        """Make vLLM's section of these settings."""
        # Keys and values of one sequence, in float32.
        per_token = 8 * model.num_layers * model.num_query_groups * model.head_width
        gib = (self.longest(model) + 16) * per_token / 2**30
        return rollout.Rollout(
            tp=self.tp,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_num_seqs=self.batch,
            gpu_memory_utilization=self.gpu_memory_utilization,
            kv_cache_gib=max(self.kv_cache_gib, gib),
        )

    @model_validator(mode="after")
    def _knobs_have_an_effect(self) -> Self:
        problems = []
        if self.is_greedy and (self.top_p < 1 or self.top_k or self.min_p):
            problems.append(
                "top_p, top_k and min_p have no effect at temperature 0, the default: the "
                "likeliest token is always taken; set temperature=1.0"
            )
        if self.is_greedy and self.samples > 1:
            problems.append(
                f"samples {self.samples} would be the same at temperature 0, the default; set "
                "temperature=1.0"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class GenerateOptions(Generation):
    """One call of `generate`."""

    load: FilePath
    """The model: Hugging Face, Megatron or a run folder."""

    data: FilePath
    """The prompts: a text file with one in each line, or rows."""

    output: FilePath
    """Where the answers go: .jsonl, or .txt with one answer in each line."""

    tokenizer: FilePath | None = None
    """Folder of the tokenizer; null: beside the model."""

    model: Model | None = None
    """The architecture of a preset to insist on; null: what the folder says."""


class Compared(Section):
    """Models in the columns of one table."""

    models: Annotated[list[FilePath], Field(min_length=1)]
    """The models: Hugging Face, Megatron or run folders."""

    output: FilePath
    """Folder for the result, and for what it is made from."""

    tokenizer: FilePath | None = None
    """Folder of the tokenizer of all of them; null: beside each model."""


class EvalOptions(Compared, Generation):
    """One evaluation of models by what they say."""

    data: FilePath
    """The file of rows."""

    limit: Count | None = None
    """Only so many rows, the first ones; null: all."""


class RewardedOptions(EvalOptions):
    """One evaluation that rewards of one's own may take part in."""

    functions: list[RewardFunction] = Field([], max_length=32)
    """Rewards of one's own that are told beside, as in score.functions of the on-policy stages."""

    workers: Processes = 2
    """Processes that compare answers by rules, and of each function in a file."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if problems := label_problems(self.functions, "functions"):
            raise ValueError("\n".join(problems))
        return self


class MathOptions(RewardedOptions):
    """One call of `eval math`."""

    timeout_seconds: ProcessorSeconds = 5.0
    """Processor seconds for one comparison; 20 times as long by the clock. What takes longer is
    tried once more, alone; then it counts as wrong, and is counted."""


class WinOptions(RewardedOptions):
    """One call of `eval preference` that compares models' answers with a baseline's."""

    reward_load: FilePath
    """The reward model that scores all answers."""

    baseline: FilePath
    """The model that the others are compared with, or a .jsonl of its answers."""

    score_batch: Processes = 4
    """Texts that the reward model reads at the same time."""

    @model_validator(mode="after")
    def _one_answer_each(self) -> Self:
        if self.samples > 1:
            raise ValueError(f"samples {self.samples}: one answer to each prompt is compared")
        return self


class PairOptions(Compared):
    """One call of `eval preference` that asks reward models which answer is better."""

    data: FilePath
    """File or folder of preferences."""

    max_length: Count | None = None
    """Most tokens of a prompt with an answer; null: the model's longest sequence."""

    truncation: Truncation = "keep_response"
    """What is cut from those that are longer, as in data.truncation of alignctl reward."""

    template: Template = "auto"
    """How a row is written as text, as in data.template of alignctl reward."""

    precision: Precision | None = None
    """Of weights and computation; null: bf16 on a GPU, fp32 without."""

    score_batch: Processes = 4
    """Prompts, with all their answers, that the reward model reads at the same time."""


class HarnessOptions(Compared):
    """One call of `eval lm-eval`."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of the harness's tasks."""

    include_path: FilePath | None = None
    """Folder of further tasks, as the harness's YAML files."""

    num_fewshot: MaybeNone | None = None
    """Examples before each question; null: as the task has it."""

    batch: Processes = 8
    """Texts that are read at the same time."""

    limit: Count | None = None
    """Only so many questions of each task, the first ones; null: all."""

    chat_template: bool = False
    """Write questions by the tokenizer's chat template."""

    precision: Precision | None = None
    """Of weights and computation; null: bf16 on a GPU, fp32 without."""
