"""How large numbers may be, in configurations and in flags: what is beyond, no library would take.

The bounds are wide. They are there so that a slip of the finger is told at once, by its key,
instead of an overflow in a rank later.
"""

MOST = 10**9
"""Of things that are counted: their products still fit into 64 bits."""

MOST_TOKENS = 10**15

MOST_PROCESSES = 65536

LARGEST_SEED = 2**31 - 1
"""NumPy takes 32 bits, and Megatron-Core adds a few thousand for the rank."""

A_YEAR = 365 * 24 * 3600
"""In seconds. Torch counts nanoseconds in 64 bits, from when the machine was started."""
