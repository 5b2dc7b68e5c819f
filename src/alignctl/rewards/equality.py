r"""Which answer equals which, kind by kind.

Order counts in `(1, 2)`, and not in `1, 2` or `\{1, 2\}`. A name in front of a value may be
missing, so may a unit; a base, brackets, half a day may not.
"""

from collections.abc import Sequence

from alignctl.rewards.expressions import (
    Expression,
    difference,
    is_decimal_of,
    is_proportional,
    is_same_expression,
    make_expression,
    read_expression,
)
from alignctl.rewards.kinds import (
    SET,
    Assignment,
    Choice,
    Group,
    Matrix,
    Ratio,
    Reading,
    Region,
    Relation,
    Union,
)
from alignctl.rewards.quantities import Clock, Quantity, is_same_quantity, is_same_time


def is_equal(expected: Reading, answer: Reading) -> bool:
    """Tell whether an answer equals the reference; asymmetric: a reference may ask for a form."""
    if expected == answer:
        return True
    match expected, answer:
        case Assignment(), Assignment():
            return expected.name == answer.name and is_equal(expected.value, answer.value)
        case Assignment(), Relation() | Region():
            return _is_same_equation(expected, answer)
        case Relation(), Assignment():
            return _is_same_equation(answer, expected)
        case Assignment(), _:
            return is_equal(expected.value, answer)
        case _, Assignment():
            return is_equal(expected, answer.value)
        case Choice(), Choice():
            beside = expected.beside, answer.beside
            return expected.letter == answer.letter and (not all(beside) or beside[0] == beside[1])
        case Quantity(), Quantity():
            return is_same_quantity(expected, answer)
        case Clock(), Clock():
            return is_same_time(expected, answer)
        case Ratio(), Ratio():
            return _is_same_ratio(expected, answer)
        case Region(), Region():
            return expected.name == answer.name and is_equal(expected.values, answer.values)
        case Region(), Group() | Union():
            return is_equal(expected.values, answer)
        case Group() | Union(), Region():
            return is_equal(expected, answer.values)
        case Group(), Group():
            return _is_same_group(expected, answer)
        case Union(), Union():
            return _is_same_bag(expected.parts, answer.parts)
        case Matrix(), Matrix():
            return _is_same_matrix(expected, answer)
        case Relation(), Relation():
            return expected.sign == answer.sign and is_proportional(
                expected.difference, answer.difference, by_positive=expected.sign != "="
            )
        case ((Quantity() | Expression()), (Quantity() | Expression())):
            return _is_same_value(expected, answer)
    return False


def _is_same_value(expected: Quantity | Expression, answer: Quantity | Expression) -> bool:
    pair = []
    for value, other in ((expected, answer), (answer, expected)):
        if isinstance(value, Quantity):
            if value.unit not in ("", "\u00b0"):
                return False
            if isinstance(other, Expression) and is_decimal_of(value, other):
                return True
            pair.append(make_expression(value))
        else:
            pair.append(value)
    return is_same_expression(pair[0], pair[1])


def _is_same_ratio(expected: Ratio, answer: Ratio) -> bool:
    if len(expected.parts) != len(answer.parts):
        return False
    numbers = [
        [part.value for part in ratio.parts if isinstance(part, Quantity) and not part.unit]
        for ratio in (expected, answer)
    ]
    if len(numbers[0]) == len(numbers[1]) == len(expected.parts) and all(numbers[0] + numbers[1]):
        quotients = {a / b for a, b in zip(*numbers, strict=True)}
        return len(quotients) == 1 and quotients.pop() > 0
    return _is_same_row(expected.parts, answer.parts)


def _is_same_group(expected: Group, answer: Group) -> bool:
    loose = ("", SET)
    if expected.brackets in loose and answer.brackets in loose:
        return _is_same_bag(expected.items, answer.items)
    return expected.brackets == answer.brackets and _is_same_row(expected.items, answer.items)


def _is_same_matrix(expected: Matrix, answer: Matrix) -> bool:
    return len(expected.rows) == len(answer.rows) and all(
        _is_same_row(a, b) for a, b in zip(expected.rows, answer.rows, strict=True)
    )


def _is_same_row(expected: Sequence[Reading], answer: Sequence[Reading]) -> bool:
    return len(expected) == len(answer) and all(
        _is_same_item(a, b) for a, b in zip(expected, answer, strict=True)
    )


def _is_same_bag(expected: Sequence[Reading], answer: Sequence[Reading]) -> bool:
    """Tell whether each item of one has its own item in the other."""
    left = list(answer)
    for item in expected:
        place = next((i for i, other in enumerate(left) if _is_same_item(item, other)), None)
        if place is None:
            return False
        left.pop(place)
    return not left


def _is_same_item(expected: Reading, answer: Reading) -> bool:
    """Tell whether two items of lists are equal; a value alone does not equal `x = value`."""
    if isinstance(expected, Assignment) != isinstance(answer, Assignment):
        return False
    return is_equal(expected, answer)


def _is_same_equation(assignment: Assignment, other: Reading) -> bool:
    """Tell that `y = 2x + 3` is `2x - y + 3 = 0`; not that `x = 5` solves `2x = 10`."""
    name = read_expression(assignment.name)
    value = assignment.value
    if name is None or not isinstance(value, Expression) or not value.tree.free_symbols:
        return False
    relation = Relation("=", difference(name, value))
    return isinstance(other, Relation) and is_equal(relation, other)
