"""Every stage's tests write their metrics through the glossary; here is what they do not reach."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from alignctl.reporting import glossary
from alignctl.reporting.metrics import MetricsWriter
from alignctl.reporting.page.charts import MAIN
from alignctl.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_glossary_says() -> None:
    """After a change of it: python -m alignctl.reporting.glossary > docs/metrics.md."""
    assert (ROOT / "docs/metrics.md").read_text("utf-8").splitlines() == list(glossary.render())


def test_a_name_that_the_glossary_lacks_is_not_written(tmp_path: Path) -> None:
    with MetricsWriter(RunFolder(tmp_path), enabled=True) as metrics:
        metrics.train(1, loss=1.0, seconds_rollout=2.0)
        with pytest.raises(AssertionError, match="lacks 'los' of train rows: add it to src/align"):
            metrics.train(2, los=1.0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_ranks_that_write_nothing_refuse_the_same(tmp_path: Path) -> None:
    """Else rank 0 alone would fail, and the others wait for it."""
    with (
        MetricsWriter(RunFolder(tmp_path), enabled=False) as metrics,
        pytest.raises(AssertionError, match="lacks 'perplexty' of validation rows"),
    ):
        metrics.validation(0, perplexty=1.0)


def test_every_name_is_explained_once() -> None:
    names = [entry.name for section in glossary.SECTIONS for entry in section.entries]
    assert len(set(names)) == len(names)
    for name in names:
        if "*" not in name:
            assert sum(fnmatchcase(name, other) for other in names) == 1, name


def test_what_the_report_draws_is_in_it() -> None:
    assert not [chart.metric for chart in MAIN if not glossary.is_known(chart.metric)]
