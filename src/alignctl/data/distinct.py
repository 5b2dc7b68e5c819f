"""Which of many things are the same, so that each is scored once.

If each text were scored, equal ones would get scores that differ by rounding, because they have
other neighbours in their batches. These differences would count as preferences, and as deviations
that advantages are divided by.
"""

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray


def find_distinct(keys: Iterable[Hashable]) -> tuple[list[int], NDArray[np.int64]]:
    """Find the first of each kind of thing, D in all, and for each thing which of them it equals.

    Args:
        keys: Of N things; equal things have equal keys.

    Returns:
        Numbers of things `[D]`, rising; and for each thing a place in them `[N]`.
    """
    places: dict[Hashable, int] = {}
    firsts: list[int] = []
    found: list[int] = []
    for number, key in enumerate(keys):
        if key not in places:
            places[key] = len(firsts)
            firsts.append(number)
        found.append(places[key])
    return firsts, np.asarray(found, np.int64)
