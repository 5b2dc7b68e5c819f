"""Types of the numbers in a configuration, none of them without bounds."""

from typing import Annotated

from pydantic import Field

from alignctl.config.bounds import A_YEAR, LARGEST_SEED, MOST, MOST_PROCESSES, MOST_TOKENS

Count = Annotated[int, Field(ge=1, le=MOST)]
"""A number of things of which there is at least one."""

MaybeNone = Annotated[int, Field(ge=0, le=MOST)]
"""A number of things of which there may be none."""

Several = Annotated[int, Field(ge=2, le=MOST)]
"""A number of things of which there are at least two."""

Layers = Annotated[int, Field(ge=1, le=10000)]
"""A number of layers: each has names, which are held in memory."""

Width = Annotated[int, Field(ge=1, le=10**7)]
"""Of a vector, or of several end to end."""

Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
"""A number of tokens of a whole run."""

Processes = Annotated[int, Field(ge=1, le=MOST_PROCESSES)]
"""A number of processes, of nodes, or of requests at a time."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""What chance follows from."""

Minutes = Annotated[int, Field(ge=1, le=A_YEAR // 60)]
"""A time to wait."""

Seconds = Annotated[int, Field(ge=1, le=A_YEAR)]
"""A time to wait."""

ProcessorSeconds = Annotated[float, Field(gt=0, le=24 * 3600)]
"""A time to compute."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A probability or a share, less than all."""

Real = Annotated[float, Field(ge=-1e9, le=1e9)]
"""A number of either sign; in float32 it is still a number when it is squared."""

Weight = Annotated[float, Field(ge=0, le=1e9)]
"""What something counts; 0: nothing."""

Positive = Annotated[float, Field(gt=0, le=1e9)]
"""A number above 0."""
