"""The warning that nothing is learned, because the rule finds no answer right."""

from collections.abc import Mapping
from dataclasses import dataclass

from alignctl.config.on_policy import Score


@dataclass(eq=False)
class Alarm:
    """Counts episodes in which no answer was right, where the rule is what is learned from.

    Attributes:
        settings: How answers are scored.
        silent: Episodes in a row in which no answer was right.
    """

    settings: Score
    silent: int = 0

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        """Note what an episode found; return a warning every `alarm_after` silent episodes.

        Args:
            metrics: Of the answers: `accuracy`, where a rule was applied, and the shares of what
                else it found, as `rule_no_answer`.
        """
        if self.settings.source in ("dense_only", "functions"):
            return None
        self.silent = self.silent + 1 if metrics.get("accuracy") == 0 else 0
        if not self.silent or self.silent % self.settings.alarm_after:
            return None
        reasons = ", ".join(
            f"{name.removeprefix('rule_')} {share:.0%}"
            for name, share in metrics.items()
            if name.startswith("rule_")
        )
        return (
            f"warning: no answer was right in the last {self.silent} episodes, so nothing is "
            f"learned from the rule ({reasons}): are the answers parsed, and the reference "
            "answers the final results? samples/ has both"
        )
