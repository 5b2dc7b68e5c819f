r"""`math_rule`: whether the final answer of a completion equals the reference.

Both are read as what they are (`alignctl.rewards.readings`) and compared exactly; a decimal of four
digits or more may be rounded, and a missing unit is taken for the other's. What is ambiguous is
wrong: a reward that is given wrongly is what a policy learns. LaTeX is read by a grammar, and
nothing is ever evaluated as Python. Reading takes its time all the same, so the rule runs in
`alignctl.rewards.workers`.
"""

from typing import Literal

from alignctl.rewards.equality import is_equal
from alignctl.rewards.extraction import final_answer
from alignctl.rewards.notation import canonical
from alignctl.rewards.readings import read


def math_rule(
    completion: str, reference: str
) -> Literal["correct", "wrong", "no_answer", "bad_reference"]:
    """Compare the final answer of a completion with the reference answer.

    Args:
        completion: All that the model wrote after the prompt.
        reference: The answer, or a text that marks it as a completion would (`#### 72`).
    """
    is_marked = "####" in reference or "\\boxed" in reference
    expected = read(final_answer(reference) or "" if is_marked else canonical(reference))
    if expected is None:
        return "bad_reference"
    answer = read(final_answer(completion) or "")
    if answer is None:
        return "no_answer"
    return "correct" if is_equal(expected, answer) else "wrong"
