"""Launching: a job as a value, the folder a run lives in, and the processes that carry it out."""
