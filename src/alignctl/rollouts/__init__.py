"""Sampling from the policy while it is trained: vLLM inside the trainer's own job."""
