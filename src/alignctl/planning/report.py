"""What a job takes of each GPU, simulated or computed, and whether it fits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from alignctl.planning.memory import GIB, RESERVED_GIB, Held
from alignctl.planning.sampler import Sampler


@dataclass(frozen=True)
class Phase:
    """A part of a step at its largest, in bytes.

    Attributes:
        peak: All that is on the device.
        activations: What the part itself adds.
        logits: The most that logits and their gradients take; in `activations`, but perhaps not at
            the same time.
        sampler: What vLLM takes.
        sent: Bytes that the rank sends to others, by what the group is for.
    """

    peak: int
    activations: int
    logits: int = 0
    sampler: int = 0
    sent: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RankReport:
    """A rank of one kind.

    Attributes:
        kind: Which ranks are like it.
        models: What each model keeps, by its role.
        phases: The parts of a step.
        host: Bytes of the CPU's memory that waiting models take.
    """

    kind: str
    models: Mapping[str, Held]
    phases: Mapping[str, Phase]
    host: int = 0

    @property
    def peak(self) -> int:
        """Most bytes that are on the device at any time."""
        return max(phase.peak for phase in self.phases.values())


def largest(reports: Sequence[RankReport]) -> RankReport:
    """Report on one rank with micro batches of several kinds: each phase as with the worst."""
    phases = {
        name: max((each.phases[name] for each in reports), key=lambda phase: phase.peak)
        for name in reports[0].phases
    }
    return replace(reports[0], phases=phases)


@dataclass(frozen=True)
class Report:
    """A whole job.

    Attributes:
        job: Stage, preset and layout, in a line.
        ranks: One rank of each kind.
        gpu_memory_gib: What a GPU has.
        sampler: None where nothing is sampled.
        gpus_per_node: Ranks that share a node's memory.
    """

    job: str
    ranks: tuple[RankReport, ...]
    gpu_memory_gib: float
    sampler: Sampler | None = None
    gpus_per_node: int = 8

    @property
    def peak_gib(self) -> float:
        """GiB at the peak of the rank that takes most."""
        return max(rank.peak for rank in self.ranks) / GIB

    @property
    def fits(self) -> bool:
        """True if every rank has room, and the sampler has room for one sequence at least."""
        has_room = self.sampler is None or self.sampler.sequences >= 1
        return has_room and self.peak_gib <= self.gpu_memory_gib - RESERVED_GIB

    def render(self) -> str:
        """Write the report as text."""
        lines = [self.job, ""]
        for role in self.ranks[0].models:
            lines += _table(f"{role}, GiB of a GPU", self._held(role), self._kinds)
        lines += _table("GiB of a GPU at most", self._phases(), self._kinds)
        sent = self._sent()
        if sent:
            lines += _table("GiB sent by a GPU in a step", sent, self._kinds)
        lines += self._notes()
        return "\n".join([*lines, self.verdict])

    @property
    def verdict(self) -> str:
        """Verdict in one line: it fits, or it does not."""
        room = self.gpu_memory_gib - RESERVED_GIB
        of = (
            f"{self.peak_gib:.1f} GiB of {room:g} ({self.gpu_memory_gib:g}, less {RESERVED_GIB:g} "
            "for CUDA, NCCL and fragmentation)"
        )
        if self.sampler is not None and self.sampler.sequences < 1:
            return f"does not fit: the sampler has no room for one sequence; {of}"
        return f"fits: {of}" if self.fits else f"does not fit: {of}"

    @property
    def _kinds(self) -> list[str]:
        return [rank.kind for rank in self.ranks]

    def _held(self, role: str) -> dict[str, list[int]]:
        models = [rank.models[role] for rank in self.ranks]
        parts = {
            "weights": [each.weights for each in models],
            "gradients": [each.gradients for each in models],
            "optimizer": [each.optimizer for each in models],
        }
        return {name: values for name, values in parts.items() if any(values)}

    def _phases(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for name in self.ranks[0].phases:
            phases = [rank.phases[name] for rank in self.ranks]
            rows[name] = [each.peak for each in phases]
            parts = {
                "  activations": [each.activations for each in phases],
                "  of these, logits": [each.logits for each in phases],
                "  sampler": [each.sampler for each in phases],
            }
            rows |= {f"{name}{part}": values for part, values in parts.items() if any(values)}
        return rows

    def _sent(self) -> dict[str, list[int]]:
        rows = {
            f"{name} {group}": [rank.phases[name].sent.get(group, 0) for rank in self.ranks]
            for name in self.ranks[0].phases
            for group in ("TP", "PP", "DP")
        }
        return {name: values for name, values in rows.items() if max(values) > 2**20}

    def _notes(self) -> list[str]:
        lines = []
        if (sampler := self.sampler) is not None:
            lines.append(
                f"sampler: weights {sampler.weights / GIB:.1f}, work {sampler.work / GIB:.1f}, "
                f"cache {max(0, sampler.cache) / GIB:.1f} GiB: room for "
                f"{sampler.sequences:,.0f} sequences of {sampler.longest:,} tokens, "
                f"{sampler.wanted} are wanted at once"
            )
        if host := max(rank.host for rank in self.ranks):
            lines.append(
                f"waiting models take {host * self.gpus_per_node / GIB:.0f} GiB of a node's memory"
            )
        return [*lines, ""] if lines else []


def _table(title: str, rows: Mapping[str, Iterable[int]], columns: list[str]) -> list[str]:
    """Format a table of bytes in GiB, by lines; the part of a name after two spaces is set in."""
    widths = [max(9, len(column)) for column in columns]
    head = "  ".join(column.rjust(width) for column, width in zip(columns, widths, strict=True))
    lines = [f"{title:<34}{head}"]
    for name, values in rows.items():
        shown = f"    {name.partition('  ')[2]}" if "  " in name else f"  {name}"
        cells = [
            f"{value / GIB:.2f}".rjust(width) for value, width in zip(values, widths, strict=True)
        ]
        lines.append(f"{shown:<34}{'  '.join(cells)}")
    return [*lines, ""]
