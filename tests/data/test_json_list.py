import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignctl.data.rows import json_list
from alignctl.data.rows.json_list import list_values
from alignctl.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=[1, 7, 1 << 20])
def _chunks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Reads that cut values, and characters, anywhere."""
    monkeypatch.setattr(json_list, "_CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("_chunks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_the_values_are_those_of_the_list(
    tmp_path: Path, values: list[object], indent: int | None, ascii_only: bool
) -> None:
    file = tmp_path / "a.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8", "replace"))
    assert [*list_values(file)] == json.loads(file.read_bytes().decode("utf-8-sig"))


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize(
    "text",
    [
        "[", "[1", "[1,", '[{"a": 1}', '[{"a": 1} {"b": 2}]', '[{"a": }]', "[1] 2",
        '[\n {"a": 1},\n {"b" 2}\n]', '[{"a": "\n"}]', "[1,,2]", '[\n\n{"a": 1},\n  x]', "[,1]",
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_line_and_column(tmp_path: Path, text: str) -> None:
    """The line and the column are those of Python's own parser."""
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text)
    with pytest.raises(UserError) as ours:
        [*list_values(file)]
    found = re.fullmatch(r".*:(\d+): not valid JSON: .* at column (\d+)", ours.value.message)
    assert found is not None, ours.value.message
    assert (int(found[1]), int(found[2])) == (theirs.value.lineno, theirs.value.colno)


@pytest.mark.usefixtures("_chunks")
def test_text_that_is_not_utf8_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[\n"a",\n"caf\xe9"]')
    with pytest.raises(UserError, match=r"a\.json:3: not UTF-8 text"):
        [*list_values(tmp_path / "a.json")]
