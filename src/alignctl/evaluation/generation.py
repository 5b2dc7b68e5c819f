"""Answers of any checkpoint: its weights are streamed into vLLM, in this process or a few more.

with Generator(Path("runs/sft"), Generation(max_new_tokens=256)) as generator:
    for answers in generator.generate(generator.prompts(questions)):
        print(answers[0].text)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from alignctl import console
from alignctl.checkpoints import adapted, generation_config
from alignctl.checkpoints.conversion import hf_tensors
from alignctl.checkpoints.find import find
from alignctl.checkpoints.source import Source
from alignctl.config.generation import Generation
from alignctl.config.presets.problems import refuse
from alignctl.config.sections import Model
from alignctl.data.prompts import render_prompts
from alignctl.data.rows.prompt_schemas import Question, lead
from alignctl.data.text.masks import cut_prompt, encode_prompts
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.evaluation.tp_workers import Ranks, Start
from alignctl.models.families import differences
from alignctl.rollouts import library
from alignctl.rollouts.samples import Completion, Finish, Request, Sampling, draw_seed

if TYPE_CHECKING:
    from alignctl.rollouts.vllm import Rollout


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        tokens: Token ids `[P]`, int32, as the model reads them.
        number: Its place among all prompts of a set: what it is answered does not depend on the
            others, nor on how many were answered before.
        lead: White space that an answer begins with, since it belongs to what is learned.
        is_cut: Whether it lost its start, because it was longer than `max_prompt_length`.
        temperature: In the place of the settings' own; None: theirs.
    """

    tokens: NDArray[np.int32]
    number: int
    lead: str = ""
    is_cut: bool = False
    temperature: float | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: Without special tokens, the token that ended it, and the white space that parts it
            from the prompt.
        tokens: Token ids; the one that ended it is the last one.
        finish: Why it ended: "stop" with an end token, "length" because it may not be longer.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish


class Generator:
    """A model that answers; a context manager, which starts vLLM and ends it.

    Attributes:
        source: The checkpoint.
        tokenizer: Its tokenizer.
        settings: How it answers, as far as the model can: see `Generation.fitted`.
        max_prompt_length: Most tokens of a prompt.
        end_token_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        load: Path,
        settings: Generation,
        *,
        tokenizer: Path | None = None,
        model: Model | None = None,
    ) -> None:
        """Check the model and the settings; no weight is read, and vLLM is not imported.

        Args:
            load: A model of any kind: Hugging Face, Megatron, a run folder.
            settings: How it answers.
            tokenizer: Folder of the tokenizer; None: beside the model.
            model: The architecture it must have; None: what it says itself.

        Raises:
            UserError: It is no policy, vLLM cannot run it here, the settings do not fit it, or the
                files beside it name end tokens that it has not.
        """
        library.be_quiet()
        self._load, self._model = load, model
        self.source = open_policy(load, model)
        self.settings = settings.fitted(self.source.model)
        if problems := self.settings.problems(self.source.model):
            raise refuse([f"{self.source.path}: {problem}" for problem in problems])
        if self.settings.max_new_tokens < settings.max_new_tokens:
            console.say(
                f"{self.source.path}: max_new_tokens is {self.settings.max_new_tokens}, not "
                f"{settings.max_new_tokens}: the model's longest sequence has "
                f"{self.source.model.max_position_embeddings} tokens"
            )
        self.tokenizer: Tokenizer = load_tokenizer(self.source.tokenizer_folder(tokenizer))
        check_fits(self.tokenizer, self.source.model.vocab_size)
        self._longest = self.settings.longest(self.source.model)
        self.max_prompt_length = self._longest - self.settings.max_new_tokens
        self._render = Renderer(self.settings.template, self.tokenizer)
        drawing = self.settings.rollout(self.source.model)
        self.end_token_ids = generation_config.end_token_ids(
            self.source.auxiliary,
            self.tokenizer.eos_id,
            vocab_size=self.source.model.vocab_size,
        )
        if warning := generation_config.unheeded(
            self.source.auxiliary, repetition_penalty=drawing.repetition_penalty
        ):
            console.say(f"warning: {warning}")
        self._sampling = Sampling.of(drawing, self.end_token_ids)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start vLLM with the checkpoint's weights."""
        with self._stack:
            adapted.verify(self.source)
            self._ranks = self._stack.enter_context(Ranks(self.settings.tp))
            self._ranks.tell(Start(self._load, self._model, self.settings, self._longest))
            self._rollout = self._stack.enter_context(
                start_rollout(self.source, self.settings, self._longest)
            )
            self._stack.push(self._ranks.dismiss)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def prompts(self, questions: Sequence[Question], *, first: int = 0) -> list[Prompt]:
        """Build prompts of questions, as the model reads them; a long one loses its start, not BOS.

        Args:
            questions: Rows, or chats made of messages.
            first: The number of the first one.
        """
        texts = render_prompts(questions, self._render)
        limit = self.max_prompt_length
        return [
            Prompt(
                cut_prompt(tokens, limit, self.tokenizer.bos_id),
                number,
                lead(text),
                is_cut=len(tokens) > limit,
            )
            for number, (text, tokens) in enumerate(
                zip(texts, encode_prompts(texts, self.tokenizer), strict=True), first
            )
        ]

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]:
        """Answer prompts, in their order; each is given as soon as those before it are done.

        Args:
            prompts: Any number; `settings.samples` answers are given to each.

        Raises:
            RunError: A prompt cannot be answered, which was tried twice.
        """
        samples, seed = self.settings.samples, self.settings.seed
        requests = [
            (
                Request(prompt.tokens, draw_seed(seed, prompt.number, sample), group=place),
                self._choose_sampling(prompt),
            )
            for place, prompt in enumerate(prompts)
            for sample in range(samples)
        ]
        self._ranks.tell(requests)
        row: list[Answer] = []
        for place, completion in _reorder(self._rollout.stream(requests)):
            if completion is None:
                raise RunError(
                    f"prompt {prompts[place // samples].number + 1} could not be answered: vLLM "
                    "failed twice, as it says above"
                )
            row.append(self._answer(prompts[place // samples], completion))
            if len(row) == samples:
                yield row
                row = []

    def _choose_sampling(self, prompt: Prompt) -> Sampling:
        if prompt.temperature is None:
            return self._sampling
        return replace(self._sampling, temperature=prompt.temperature)

    def _answer(self, prompt: Prompt, completion: Completion) -> Answer:
        tokens = tuple(completion.tokens.tolist())
        # Not every end token is a special one, which decoding would leave out.
        said = tokens[:-1] if completion.finish == "stop" else tokens
        text = self.tokenizer.decode_answer(said).removeprefix(prompt.lead)
        return Answer(text, tokens, completion.finish)


@contextmanager
def start_rollout(source: Source, settings: Generation, longest: int) -> Iterator["Rollout"]:
    """Start vLLM with a checkpoint's weights, on every rank of the process group.

    Args:
        source: The checkpoint.
        settings: Layout, memory, precision.
        longest: Most tokens of a prompt and its answer.

    Raises:
        RunError: It did not start.
    """
    # Torch takes a second, which a wrong option is not to wait for.
    from alignctl.engines.device import IS_GPU
    from alignctl.rollouts.vllm import Rollout

    try:
        rollout = Rollout(
            source.hf_config,
            settings.rollout(source.model),
            max_model_len=longest,
            precision=settings.precision or ("bf16" if IS_GPU else "fp32"),
            seed=settings.seed % 2**31,
            timeout_minutes=10,
        )
    except AlignctlError:
        raise
    except Exception as error:  # vLLM's own are of many kinds, most of them about memory
        raise RunError(
            f"vLLM did not start: {type(error).__name__}: {error}",
            "on a GPU, gpu_memory_utilization is its share of the memory; max_prompt_length, "
            "max_new_tokens and batch say how much its cache must hold; tp cuts the model",
        ) from error
    try:
        rollout.load_weights(hf_tensors(source))
        yield rollout
    finally:
        rollout.close()


def open_policy(load: Path, model: Model | None = None) -> Source:
    """Find a model that generates text, and that vLLM can run here; no weight is read.

    Raises:
        UserError: It is none.
    """
    source = open_weights(load, model)
    if warning := library.check_vllm(source.model):
        console.say(f"warning: {warning}")
    return source


def open_weights(load: Path, model: Model | None = None) -> Source:
    """Find a model that generates text; no weight is read.

    Args:
        load: A folder of any kind.
        model: The architecture that it must have; None: what it says itself.

    Raises:
        UserError: It is none.
    """
    source = find(load, vocab_divisor=model.vocab_divisor if model else 128, expected=model)
    if source.role != "policy":
        raise UserError(
            f"{source.path}: this is a reward model, which cannot speak",
            "give the policy that it was made from, or that was trained with it",
        )
    if model and (found := differences(model, source.model)):
        raise UserError(
            f"the preset and {source.path} describe different models:\n  " + "\n  ".join(found),
            "choose the preset of this model, or leave --preset out",
        )
    return source


def _reorder(
    found: Iterator[tuple[int, Completion | None]],
) -> Iterator[tuple[int, Completion | None]]:
    """Put completions in the order of their places; those that come too early wait."""
    waiting: dict[int, Completion | None] = {}
    next_place = 0
    for place, completion in found:
        waiting[place] = completion
        while next_place in waiting:
            yield next_place, waiting.pop(next_place)
            next_place += 1
