"""One rank of a job of any size, run without its memory, its arithmetic and its other ranks."""
