from pathlib import Path

import pytest

from alignctl import atomic


def test_text_replaces_what_was_there_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic.write_text(path, "old")
    atomic.write_text(path, "new \u00e9")
    assert path.read_text(encoding="utf-8") == "new \u00e9"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_gets_its_name_with_all_it_holds(tmp_path: Path) -> None:
    partial = tmp_path / ".iter.partial"
    (partial / "deep" / "er").mkdir(parents=True)
    (partial / "deep" / "er" / "weights").write_text("w")
    final = tmp_path / "iter"
    final.mkdir()  # an empty one is no obstacle
    atomic.commit_folder(partial, final)
    assert (final / "deep" / "er" / "weights").read_text() == "w"
    assert not partial.exists()


@pytest.mark.parametrize("is_file", [True, False])
def test_a_folder_never_takes_the_place_of_something(tmp_path: Path, is_file: bool) -> None:
    partial, final = tmp_path / "partial", tmp_path / "final"
    partial.mkdir()
    if is_file:
        final.write_text("precious")
    else:
        final.mkdir()
        (final / "precious").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        atomic.commit_folder(partial, final)
    assert partial.exists()
