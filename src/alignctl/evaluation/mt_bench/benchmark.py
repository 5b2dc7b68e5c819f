"""MT-Bench, from models to a table: answers, judgments, means.

OUTPUT/model_answer/MODEL.jsonl              FastChat's format
OUTPUT/model_judgment/JUDGE_single.jsonl     FastChat's format; or JUDGE_pair.jsonl
OUTPUT/mt_bench.json                         the result; or mt_bench_pairwise.json
OUTPUT/../.cache/judge/JUDGE.jsonl           every reply, for all evaluations beside this one
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignctl import console
from alignctl.config.generation import Generation
from alignctl.errors import RunError, UserError
from alignctl.evaluation import results
from alignctl.evaluation.mt_bench import judge, matches, replies
from alignctl.evaluation.mt_bench.answers import Author, ModelAuthor, describe_settings, open_author
from alignctl.evaluation.mt_bench.cost import BYTES_PER_TOKEN, Prices, Usage, cut, estimate
from alignctl.evaluation.mt_bench.fastchat_answers import Answers
from alignctl.evaluation.mt_bench.judge_endpoint import Endpoint
from alignctl.evaluation.mt_bench.judge_prompts import FORMS, Mode, Prompt, load_templates
from alignctl.evaluation.mt_bench.questions import (
    PROMPTS,
    QUESTIONS,
    REFERENCES,
    Question,
    find_bundled,
    load_questions,
)
from alignctl.evaluation.mt_bench.replies import Reply, ReplyCache
from alignctl.reporting.progress.answers import AnswersProgress
from alignctl.user_files import opened

_FORM = "structured_outputs"
"""vLLM's parameter of a request."""


@dataclass(frozen=True)
class Benchmark:
    """One call of `alignctl eval mt-bench`.

    Attributes:
        models: Models of any kind, or files of answers (.jsonl).
        endpoint: The judge.
        generation: How models answer.
        output: Folder of all that is written.
        mode: Whether answers are rated, or compared with those of the first model.
        tokenizer: Folder of the models' tokenizer; None: beside each model.
        questions: File of questions; None: the package's.
        references: File of reference answers; None: the package's, for its questions.
        judge_prompts: File of templates; None: the package's.
        limit: At most so many questions.
        prices: The judge's.
    """

    models: Sequence[Path]
    endpoint: Endpoint
    generation: Generation
    output: Path
    mode: Mode = "single"
    tokenizer: Path | None = None
    questions: Path | None = None
    references: Path | None = None
    judge_prompts: Path | None = None
    limit: int | None = None
    prices: Prices = field(default_factory=Prices)

    @property
    def cache(self) -> Path:
        """Folder of all replies."""
        return self.output.resolve().parent / ".cache"

    @property
    def judge_file(self) -> Path:
        """File that keeps the judge's replies."""
        return self.cache / "judge" / replies.file_name(self.endpoint.model)


def run(benchmark: Benchmark, *, as_json: bool = False, is_dry: bool = False) -> None:
    """Answer the questions, judge the answers, write the result and print it.

    Args:
        benchmark: What to do.
        as_json: Print the summary, not the table.
        is_dry: Print what would be done and what it would cost, and do nothing.

    Raises:
        UserError: A file, a model, or the judge's address, name or key is wrong: said before a
            model is loaded.
        RunError: Judgments are missing. Those that were made are kept.
    """
    paths = [path.with_suffix("") if path.suffix == ".jsonl" else path for path in benchmark.models]
    names = results.names_of(paths)
    if benchmark.mode == "pairwise" and len(names) < 2:
        raise UserError("a comparison needs two models or more", "the first one is the baseline")
    judging = _Judging(benchmark)
    authors = [
        open_author(
            name, path, benchmark.generation, benchmark.tokenizer, benchmark.cache / "answers"
        )
        for name, path in zip(names, benchmark.models, strict=True)
    ]
    answers = {author.name: author.known(judging.questions) for author in authors}
    if is_dry:
        console.emit(judging.plan(answers))
        return
    with replies.open_cache(benchmark.judge_file) as cache:
        # Before hours of work go into answers that nobody can judge.
        if judging.needs_judge(answers, cache) and (remark := judge.look(benchmark.endpoint)):
            console.say(f"warning: {remark}")
        said = {
            author.name: author.complete(judging.questions, benchmark.output) for author in authors
        }
        result = judging.result(said, cache)
    file = matches.write_result(
        benchmark.output, benchmark.mode, result, benchmark.endpoint, judging.settings(authors)
    )
    console.emit(file.read_text("utf-8").rstrip() if as_json else result.table)
    console.say(f"wrote {file}")


def _sha256(file: Path) -> str:
    with opened(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Judging:
    """The files, and what is done with them once there are answers."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._endpoint = benchmark.endpoint
        self._files = {
            "questions": benchmark.questions or find_bundled(QUESTIONS),
            "judge_prompts": benchmark.judge_prompts or find_bundled(PROMPTS),
        }
        if benchmark.references or not benchmark.questions:
            self._files["references"] = benchmark.references or find_bundled(REFERENCES)
        self.questions: list[Question] = load_questions(
            self._files["questions"], self._files.get("references"), benchmark.limit
        )
        self._templates = load_templates(self._files["judge_prompts"], benchmark.mode)

    def list_matches(self, answers: Mapping[str, Answers]) -> list[matches.Match]:
        """List all that the judge is asked about these models."""
        return matches.matches(self._benchmark.mode, self.questions, answers, self._templates)

    def prompts(self, answers: Mapping[str, Answers]) -> list[Prompt]:
        """List the prompts of all matches between these models."""
        return [prompt for match in self.list_matches(answers) for prompt in match.prompts]

    def unknown(self, prompts: Sequence[Prompt], cache: ReplyCache) -> list[Prompt]:
        """List the prompts that have no reply yet; equal ones once."""
        named = {self._endpoint.name_of(prompt): prompt for prompt in prompts}
        return [prompt for name, prompt in named.items() if cache.get(name) is None]

    def needs_judge(self, answers: Mapping[str, Answers | None], cache: ReplyCache) -> bool:
        """Tell whether any judgment is missing."""
        known = {name: found for name, found in answers.items() if found is not None}
        return len(known) < len(answers) or bool(self.unknown(self.prompts(known), cache))

    def plan(self, answers: Mapping[str, Answers | None]) -> str:
        """Describe in words what a run would do."""
        longest = "x" * (BYTES_PER_TOKEN * self._benchmark.generation.max_new_tokens)
        prompts = self.prompts(
            {
                name: found or {q.id: [name + longest] * len(q.turns) for q in self.questions}
                for name, found in answers.items()
            }
        )
        with replies.peek(self._benchmark.judge_file) as cache:
            unknown = self.unknown(prompts, cache)
        missing = [name for name, found in answers.items() if found is None]
        lines = [
            f"{name}: answers " + ("would be generated" if name in missing else "are there")
            for name in answers
        ]
        lines.append(self._estimate(prompts, unknown))
        if missing:
            lines.append("answers that are not there are taken to be as long as they may be")
        return "\n".join(lines)

    def result(self, answers: Mapping[str, Answers], cache: ReplyCache) -> matches.Result:
        """Ask for the judgments that are missing, and sum up all of them.

        Raises:
            RunError: Some are missing.
        """
        asked = self.list_matches(answers)
        prompts = [prompt for match in asked for prompt in match.prompts]
        unknown = self.unknown(prompts, cache)
        console.say(self._estimate(prompts, unknown))
        found = self._ask(prompts, len(unknown), cache)
        if found.failed:
            raise RunError(
                f"{len(found.failed)} of {len(unknown)} judgments are missing; what was in the way "
                f"of the last one: {list(found.failed.values())[-1]}",
                "the others are kept: the same command asks only for these",
            )
        self._warn(found)
        if self._benchmark.mode == "single":
            result = matches.single_result(asked, found, self._endpoint)
        else:
            result = matches.pairwise_result(asked, found, self._endpoint, next(iter(answers)))
        self._hint(result)
        return result

    def settings(self, authors: Sequence[Author]) -> dict[str, object]:
        """Describe what the result depends on, for its file; files by their names and checksums."""
        return {
            "mode": self._benchmark.mode,
            "num_questions": len(self.questions),
            "limit": self._benchmark.limit,
            "parameters": dict(self._endpoint.parameters),
            "files": {
                kind: {"name": file.name, "sha256": _sha256(file)}
                for kind, file in self._files.items()
            },
            "generation": describe_settings(self._benchmark.generation),
            "max_new_tokens": {
                author.name: author.generator.settings.max_new_tokens
                for author in authors
                if isinstance(author, ModelAuthor)
            },
        }

    def _ask(self, prompts: Sequence[Prompt], num_unknown: int, cache: ReplyCache) -> judge.Answers:
        usage = Usage()
        if not num_unknown:
            return judge.ask_all(self._endpoint, prompts, cache, usage.add)
        progress = AnswersProgress("judging", num_unknown)

        def count(reply: Reply) -> None:
            usage.add(reply)
            progress.advance((reply.prompt_tokens or 0) + (reply.completion_tokens or 0))

        try:
            return judge.ask_all(self._endpoint, prompts, cache, count)
        finally:  # what was paid is told also when something went wrong
            console.say(usage.told(self._benchmark.prices))

    def _estimate(self, prompts: Sequence[Prompt], unknown: Sequence[Prompt]) -> str:
        text = f"{len(prompts)} judgments by {self._endpoint.model}"
        if not unknown:
            return f"{text}, all of them known"
        if num_known := len(prompts) - len(unknown):
            text += f", {num_known} of them known; {len(unknown)} to ask"
        return f"{text}: {estimate(unknown, self._max_tokens(), self._benchmark.prices)}"

    def _max_tokens(self) -> int | None:
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(found := self._endpoint.parameters.get(name), int):
                return found
        return None

    def _hint(self, result: matches.Result) -> None:
        """Suggest a remedy when most of the judge's replies lack a rating in the form asked for."""
        failures = sum(each["failures"] for each in result.summary.values())
        total = sum(each["judgments"] for each in result.summary.values())
        if 2 * failures <= total or _FORM in self._endpoint.parameters:
            return
        form = json.dumps({"regex": FORMS[self._benchmark.mode]})
        console.say(
            f"warning: {failures} of {total} judgments are without a rating; vLLM keeps a small "
            f"judge to the form with --judge-parameter '{_FORM}={form}'"
        )

    def _warn(self, found: judge.Answers) -> None:
        if found.refused:
            why = next(iter(found.refused.values()))
            console.say(f"warning: {len(found.refused)} prompts were refused, such as by {why}")
        if num_cut := cut(found.replies.values()):
            console.say(
                f"warning: {num_cut} judgments were cut at their greatest length, perhaps before "
                f"the rating; --judge-parameter max_tokens={2 * (self._max_tokens() or 1024)} "
                "asks anew"
            )
