"""Memory of a GPU in closed form."""

GIB = 2**30
