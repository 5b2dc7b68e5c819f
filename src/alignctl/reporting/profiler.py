"""A trace of a few steps by torch's profiler, for chrome://tracing or Perfetto."""

from pathlib import Path
from typing import Any, Self

from alignctl.run_folder import RunFolder


class Profiler:
    """Records the steps from one to another; use it as a context manager around them all."""

    def __init__(
        self, folder: RunFolder, steps: tuple[int, ...] | None, *, enabled: bool, step: int
    ) -> None:
        """Prepare; nothing is recorded yet.

        Args:
            folder: The run folder.
            steps: The first and the last step to record; None: none.
            enabled: Whether this rank records.
            step: Steps that are done: those among them are not recorded.
        """
        self._folder, self._steps = folder, steps
        self._is_due = enabled and steps is not None and step < steps[1]
        self._profile: Any = None

    def before(self, step: int) -> None:
        """Begin to record if a step, the number of which is given, is the first one to be."""
        if self._steps is None or not self._is_due or step < self._steps[0]:
            return
        if self._profile is None:
            import torch

            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after(self, step: int) -> Path | None:
        """Write the trace if a step was the last one to record; return its file then."""
        if self._profile is None or self._steps is None or step < self._steps[1]:
            return None
        profile, self._profile, self._is_due = self._profile, None, False
        profile.stop()
        self._folder.profile.mkdir(exist_ok=True)
        file = self._folder.profile / f"steps_{self._steps[0]}_to_{self._steps[1]}.json"
        partial = file.with_name(f".{file.name}.partial.json")
        profile.export_chrome_trace(str(partial))
        return partial.replace(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was not completed: the run ends."""
        if self._profile is not None:
            self._profile.stop()
