"""Settings of all tests."""

from hypothesis import settings

# Hypothesis fails examples that take 200 ms, as the first one may on a busy machine. No test here
# asserts a time.
settings.register_profile("alignctl", deadline=None)
settings.load_profile("alignctl")
