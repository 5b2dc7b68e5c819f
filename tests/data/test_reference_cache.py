"""The cache of a reference's log-probabilities: what decides its key, and what is read back."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from alignctl.data import reference_cache
from alignctl.errors import RunError, UserError

VALUES = np.asarray([-1.5, -2.25, -1e-3])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A run folder's data/."""
    folder = tmp_path / "run" / "data"
    folder.mkdir(parents=True)
    return folder


def test_what_was_written_is_read_with_the_seconds_it_took(data: Path, tmp_path: Path) -> None:
    reference_cache.choose(data, tmp_path / "cache", lambda: {"weights": "a"})
    cache = reference_cache.chosen(data)
    assert cache.read(3) is None
    cache.write(VALUES, 12.5)
    found = cache.read(3)
    assert found is not None
    assert found.seconds == 12.5
    assert found.values.tolist() == VALUES.tolist()
    about = json.loads(cache.file.with_suffix(".json").read_text())
    assert about == {"format": reference_cache.FORMAT, "weights": "a", "seconds": 12.5}


def test_other_content_has_another_file(data: Path, tmp_path: Path) -> None:
    names = set()
    for number, content in enumerate("aba"):
        folder = data / str(number)
        folder.mkdir()
        reference_cache.choose(folder, tmp_path / "cache", partial(dict, weights=content))
        names.add(reference_cache.chosen(folder).file.name)
    assert len(names) == 2


def test_a_run_keeps_its_file_without_asking_what_decides_it(data: Path, tmp_path: Path) -> None:
    def forbidden() -> dict[str, object]:
        raise AssertionError("reading the weights takes minutes")

    reference_cache.choose(data, tmp_path / "cache", lambda: {"weights": "a"})
    reference_cache.chosen(data).write(VALUES, 1.0)
    reference_cache.choose(data, tmp_path / "elsewhere", forbidden)
    assert reference_cache.chosen(data).read(3) is not None


def test_a_lost_file_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    reference_cache.choose(data, tmp_path / "cache", lambda: {"weights": "a"})
    with pytest.raises(UserError, match="the reference model has changed"):
        reference_cache.choose(data, tmp_path / "cache", lambda: {"weights": "b"})


@pytest.mark.parametrize("values", [VALUES[:2], np.asarray([0.0, np.nan, 0.0])])
def test_numbers_that_cannot_be_the_reference_are_refused(
    data: Path, tmp_path: Path, values: np.ndarray
) -> None:
    reference_cache.choose(data, tmp_path / "cache", lambda: {"weights": "a"})
    cache = reference_cache.chosen(data)
    cache.write(values, 1.0)
    with pytest.raises(RunError, match="3 finite numbers were expected"):
        cache.read(3)


def test_a_cache_that_cannot_be_written_names_the_knob(data: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(RunError, match="the reference cannot be kept there") as caught:
        reference_cache.choose(data, tmp_path / "cache", lambda: {"weights": "a"})
    assert "data.reference_cache=FOLDER" in (caught.value.hint or "")
