"""From a file of prompts to a file of answers, by one model."""

from pathlib import Path
from typing import Any

from alignctl import console
from alignctl.config.generation import RESOURCES, Generation
from alignctl.data.store import unread_notes
from alignctl.evaluation.answers import AnswerFile, check_suffix, format_row, format_text, key_of
from alignctl.evaluation.generation import Generator, Prompt
from alignctl.evaluation.prompts import TEXT_SUFFIX, PromptFile
from alignctl.reporting.progress.answers import AnswersProgress

FORMAT = 2
"""Part of the key; raised when the same command would write something else."""


def answer(generator: Generator, file: PromptFile, output: Path) -> None:
    """Answer all prompts of a file, or those that are left; none if all were answered before.

    Args:
        generator: The model, not started yet: it is only started if there is something to do.
        file: The prompts.
        output: Where the answers go, .jsonl or .txt.

    Raises:
        UserError: The output has another kind of name, or other answers have this name.
        RunError: vLLM failed, or the disk is full. What was answered is kept.
    """
    check_suffix(output)
    prompts = generator.prompts(file.questions)
    console.say(f"model: {generator.source.description}")
    console.say(_describe(prompts, generator.max_prompt_length))
    for note in unread_notes(file.unread):
        console.say(note)
    samples = generator.settings.samples
    lines_per_row = samples if output.suffix == TEXT_SUFFIX else 1
    key = _key(generator, file, output)
    with AnswerFile(output, key, lines_per_row=lines_per_row) as out:
        if out.state == "finished":
            console.say(f"{output} is complete already: nothing is left to do")
            return
        if out.state == "resumed":
            console.say(f"resuming: {out.done:,} prompts were answered before")
        info: dict[str, Any] = {
            "model": generator.source.description,
            "data": str(file.path),
            "settings": generator.settings.model_dump(mode="json", include=_KNOBS),
            "max_prompt_length": generator.max_prompt_length,
            "prompts": len(prompts),
            "cut": sum(prompt.is_cut for prompt in prompts),
        }
        if out.done < len(prompts):
            try:
                info |= _write(generator, file, prompts, out)
            except KeyboardInterrupt:
                console.say(
                    f"stopped: {out.done:,} of {len(prompts):,} prompts are answered; the same "
                    "command goes on"
                )
                raise
        out.commit(info)


def _write(
    generator: Generator, file: PromptFile, prompts: list[Prompt], out: AnswerFile
) -> dict[str, Any]:
    """Answer the prompts that are left; return figures of the work, for the file's record."""
    is_text = out.path.suffix == TEXT_SUFFIX
    first, num_full = out.done, 0
    with generator:
        progress = AnswersProgress("generating", len(prompts), first)
        for answers in generator.generate(prompts[first:]):
            row, is_cut = file.rows[out.done], prompts[out.done].is_cut
            out.write(
                format_text(answers)
                if is_text
                else [format_row(row.record, answers, is_cut=is_cut)]
            )
            num_full += sum(each.finish == "length" for each in answers)
            progress.advance(sum(len(each.tokens) for each in answers))
        tokens, seconds, speed = progress.tokens, progress.seconds, progress.tokens_per_second
    num_answers = (len(prompts) - first) * generator.settings.samples
    console.say(
        f"generated: {num_answers:,} answers, {tokens:,} tokens in {seconds:.1f} s "
        f"({speed:,.0f} tokens/s); {num_full:,} of them ended at max_new_tokens"
    )
    return {
        "answered_by_the_last_attempt": len(prompts) - first,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(speed, 1),
    }


def _describe(prompts: list[Prompt], limit: int) -> str:
    num_cut = sum(prompt.is_cut for prompt in prompts)
    cut = f"; {num_cut:,} cut to their last {limit:,} tokens (max_prompt_length)" if num_cut else ""
    return f"data: {len(prompts):,} prompts{cut}"


_KNOBS = set(Generation.model_fields)


def _key(generator: Generator, file: PromptFile, output: Path) -> str:
    from alignctl.checkpoints.identity import identity

    knobs = generator.settings.model_dump(mode="json", include=_KNOBS - RESOURCES)
    return key_of(
        {
            "format": FORMAT,
            "model": identity(generator.source),
            "tokenizer": generator.tokenizer.fingerprint,
            "end_token_ids": generator.end_token_ids,
            "knobs": knobs,
            "max_prompt_length": generator.max_prompt_length,
            "data": file.digest,
            "prompts": len(file.questions),
            "kind": output.suffix,
        }
    )
