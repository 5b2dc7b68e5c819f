import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alignctl import atomic
from alignctl.errors import UserError


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


def test_a_second_writer_of_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with atomic.new_folder(final) as partial:
        (partial / "a").touch()
        with (
            pytest.raises(UserError, match=r"model is being written by another command \(process"),
            atomic.new_folder(final),
        ):
            pass
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    assert [each.name for each in final.iterdir()] == ["a"]


def test_a_second_writer_waits_if_it_is_told_to(tmp_path: Path) -> None:
    """The first one is another process, as it always is; it ends once the second one waits."""
    final = tmp_path / "model"
    code = (
        "import sys; from pathlib import Path; from alignctl import atomic\n"
        "with atomic.locked(Path(sys.argv[1])):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(final)]
    pipe = subprocess.PIPE
    said: list[str] = []
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        other = first.stdin

        def hear(line: str) -> None:
            said.append(line)
            other.close()

        with atomic.new_folder(final, hear) as partial:
            (partial / "a").touch()
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert said == [
        f"{final} is being written by another command ({holder}): waiting for it",
        f"{final}: the other command has ended",
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_what_killed_writers_have_left_is_removed(tmp_path: Path) -> None:
    """Their locks went with them; scratch folders of both kinds of names did not."""
    for name in (".model.partial", ".model.123.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".model.lock").write_text("process 123 on here\n")
    (tmp_path / ".model.b.5.partial").mkdir()  # of another one
    with atomic.new_folder(tmp_path / "model"):
        pass
    assert sorted(each.name for each in tmp_path.iterdir()) == [".model.b.5.partial", "model"]
