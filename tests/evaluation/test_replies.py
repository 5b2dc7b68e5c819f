import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.errors import RunError, UserError
from alignctl.evaluation.mt_bench import replies
from alignctl.evaluation.mt_bench.replies import Reply, key, open_cache, peek


def reply(text: str) -> Reply:
    return Reply(text=text, finish_reason="stop", prompt_tokens=3, completion_tokens=None, time=1.5)


TEXTS = ("Rating: [[5]]", "two\nlines\r\n\u2028 and \u00fc", "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with open_cache(tmp_path / "deep" / "judge.jsonl") as cache:
        for number, text in enumerate(TEXTS):
            cache.add(f"k{number}", reply(text))
    return tmp_path / "deep" / "judge.jsonl"


def test_replies_come_back(file: Path) -> None:
    with open_cache(file) as cache:
        assert [cache.get(f"k{n}") for n in range(3)] == [reply(text) for text in TEXTS]
        assert cache.get("k3") is None
        assert len(cache) == 3


def test_whatever_a_killed_process_left_of_the_last_line_is_mended(file: Path) -> None:
    """Cut anywhere: complete lines stay, the rest goes, and what follows can be read."""
    content = file.read_bytes()
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    places = {*range(0, len(content), 17), *(end + n for end in (0, *ends) for n in (-2, -1, 0, 1))}
    for size in sorted(places & set(range(len(content) + 1))):
        file.write_bytes(content[:size])
        # A line that lacks nothing but its end was paid, too.
        whole = sum(end <= size or end - 1 == size for end in ends)
        with open_cache(file) as cache:
            assert len(cache) == whole
            cache.add("new", reply("more"))
        with open_cache(file) as cache:
            assert len(cache) == whole + 1
            assert cache.get("new") == reply("more")


def test_zeros_that_a_crash_left_at_the_end_are_removed(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 50)
    with open_cache(file) as cache:
        assert len(cache) == 3


def test_a_damaged_line_before_the_end_is_named_and_nothing_is_removed(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b'{"key": "k1"}\n', lines[2]])
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"judge\.jsonl:2: not a reply"), open_cache(file):
        pass
    assert file.read_bytes() == damaged


def test_two_evaluations_do_not_ask_the_same_judge_at_a_time(file: Path) -> None:
    with open_cache(file):
        with pytest.raises(UserError, match="another evaluation"), open_cache(file):
            pass
        with peek(file) as cache:
            assert len(cache) == 3


def test_a_look_at_a_cache_changes_nothing(tmp_path: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])
    before = file.read_bytes()
    with peek(file) as cache:
        assert len(cache) == 2
    assert file.read_bytes() == before
    with peek(tmp_path / "none.jsonl") as cache:
        assert len(cache) == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_a_full_disk_leaves_the_file_as_it_was(file: Path) -> None:
    """A limit on the size of files stands for it: the line is written in part, then refused."""
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with open_cache(file) as cache:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
            with pytest.raises(RunError, match="cannot be kept"):
                cache.add("k3", reply("x" * 100))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert file.read_bytes() == before
            cache.add("k3", reply("y"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with open_cache(file) as cache:
        assert cache.get("k3") == reply("y")


def test_a_key_is_of_all_that_decides_a_reply() -> None:
    contents: list[tuple[object, ...]] = [
        ("judge", [{"role": "user", "content": "a"}], {"temperature": 0}),
        ("judge", [{"role": "user", "content": "b"}], {"temperature": 0}),
        ("judge", [{"role": "system", "content": "a"}], {"temperature": 0}),
        ("judge", [{"role": "user", "content": "a"}], {"temperature": 1}),
        ("judge", [{"role": "user", "content": "a"}], {}),
        ("judge", [{"role": "user", "content": "a"}]),
        ("other", [{"role": "user", "content": "a"}], {"temperature": 0}),
    ]
    assert len({key(*content) for content in contents}) == len(contents)
    assert key("judge", {"a": 1, "b": 2}) == key("judge", {"b": 2, "a": 1})


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_names_have_different_files(one: str, other: str) -> None:
    names = [replies.file_name(one), replies.file_name(other)]
    assert (names[0] == names[1]) == (one == other)
    assert all(Path(name).name == name and not name.startswith(".") for name in names)
