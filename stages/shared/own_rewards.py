"""Rewards of one's own outside of an episode: before a run starts, and where answers are measured.

A run keeps the source of its rewards in its folder; what it has been is what it stays.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignctl import atomic, console
from alignctl.config.presets.problems import refuse
from alignctl.config.rewards import RewardFunction, file_problems
from alignctl.data.rows.files import Row
from alignctl.data.rows.prompt_schemas import Question
from alignctl.errors import RunError, UserError
from alignctl.evaluation.prompts import PromptFile
from alignctl.launch.attempt import Attempt
from alignctl.rewards.functions import Functions
from alignctl.rewards.results import Answer
from alignctl.user_files import read_bytes


def check_functions(functions: Sequence[RewardFunction]) -> None:
    """Look at the files of rewards, then import them in processes of their own.

    Raises:
        UserError: With all that are wrong; or with the first that cannot be imported.
        RunError: A process died, or did not start in time.
    """
    if problems := file_problems(functions):
        raise refuse(problems)
    with Functions(functions, 1) as opened:
        opened.check()


def make_answer(row: Row, question: Question, completion: str) -> Answer:
    """Make an answer to a row of prompts, as a run would: there, rows have been JSON."""
    record = json.loads(json.dumps(row.record, default=str))
    return Answer(question.asked, completion, record)


def score_answers(
    functions: Sequence[RewardFunction],
    num_workers: int,
    file: PromptFile,
    said: Sequence[Sequence[str]],
) -> dict[str, NDArray[np.float64]]:
    """Score all answers to prompts; say what failed.

    Args:
        functions: The rewards, F in all.
        num_workers: Processes of each that is in a file.
        file: The prompts, P in all.
        said: The answers to each prompt, K of them.

    Returns:
        Label to scores `[P, K]`, NaN where a reward failed.

    Raises:
        RunError: A reward has scored not one answer.
    """
    answers = [
        (row, make_answer(row, question, text))
        for row, question, texts in zip(file.rows, file.questions, said, strict=True)
        for text in texts
    ]
    found = {}
    with Functions(functions, num_workers) as opened:
        results = opened.results([answer for _, answer in answers])
    for function, each in zip(functions, results, strict=True):
        failed = [place for place, result in enumerate(each) if result.failure is not None]
        if failed:
            first = f"{answers[failed[0]][0].where}: {each[failed[0]].failure}"
            text = (
                f"reward {function.called} gave {len(failed):,} of {len(each):,} answers no score"
            )
            if len(failed) == len(each):
                raise RunError(f"{text}; the first is an answer to {first}")
            console.say(f"warning: {text}; the first is an answer to {first}")
        scores = [np.nan if result.score is None else result.score for result in each]
        found[function.called] = np.asarray(scores).reshape(len(said), -1)
    return found


def keep_sources(functions: Sequence[RewardFunction], attempt: Attempt) -> None:
    """Copy the files of rewards into a run folder, which then says what scored its answers.

    Raises:
        UserError: The run has steps behind it that another content has scored.
    """
    for each in functions:
        if each.file is None:
            continue
        content = read_bytes(each.file)
        copy = attempt.folder.path / "rewards" / f"{each.called}.py"
        if copy.exists() and copy.read_bytes() != content and attempt.folder.latest_step():
            raise UserError(
                f"{each.file} has changed since this run was started, which has a copy, {copy}: "
                "its later steps would be rewarded for something else",
                f"put it back, or start a new run: --load {attempt.folder.path} --output NEW",
            )
        copy.parent.mkdir(exist_ok=True)
        atomic.write_bytes(copy, content)
