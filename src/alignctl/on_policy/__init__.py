"""Learning from the policy's own answers: the loop, its models, and the three ways to learn."""
