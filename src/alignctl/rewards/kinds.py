"""The kinds of answers that there are, as values."""

from dataclasses import dataclass

from alignctl.rewards.expressions import Expression
from alignctl.rewards.quantities import Based, Clock, Quantity

SET = r"\{\}"
"""The brackets of a set."""


@dataclass(frozen=True)
class Words:
    """A word or more, in small letters and without an article in front."""

    text: str


@dataclass(frozen=True)
class Literal:
    """What has no meaning here but itself: compared letter by letter."""

    text: str


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple choice, and what is written beside it."""

    letter: str
    beside: str


@dataclass(frozen=True)
class Ratio:
    """Numbers with colons between them."""

    parts: tuple["Reading", ...]


@dataclass(frozen=True)
class Group:
    """Several answers: a list without brackets, a set, a tuple or an interval."""

    brackets: str
    items: tuple["Reading", ...]


@dataclass(frozen=True)
class Union:
    """Intervals and sets, united."""

    parts: tuple["Reading", ...]


@dataclass(frozen=True)
class Assignment:
    """A name and what it is."""

    name: str
    value: "Reading"


@dataclass(frozen=True)
class Region:
    """The values that inequalities leave to an unknown."""

    name: str
    values: "Reading"


@dataclass(frozen=True)
class Relation:
    r"""An equation or inequality of expressions: `difference` compares with 0 as the sign says."""

    sign: str
    difference: Expression


@dataclass(frozen=True)
class Matrix:
    """Rows of numbers."""

    rows: tuple[tuple["Reading", ...], ...]


Reading = (
    Quantity
    | Clock
    | Based
    | Words
    | Literal
    | Choice
    | Ratio
    | Group
    | Union
    | Assignment
    | Region
    | Relation
    | Matrix
    | Expression
)
