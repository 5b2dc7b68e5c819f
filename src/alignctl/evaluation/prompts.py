"""Files of prompts: a text file with one in each line, or rows of the schemas of prompts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignctl.data.documents import Unread
from alignctl.data.rows.files import Row, find_files, read_rows
from alignctl.data.rows.prompt_schemas import Question, prompt_schema_of
from alignctl.errors import UserError
from alignctl.user_files import check_regular, opened, read_bytes, reading

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class PromptFile:
    """All prompts of a file.

    Attributes:
        path: The file.
        rows: As they stand there; a line of text is a row with the key `prompt`.
        questions: What each of them asks.
        digest: SHA-256 of the file.
        unread: How many rows have each key that nothing reads, by file.
    """

    path: Path
    rows: list[Row]
    questions: list[Question]
    digest: str
    unread: dict[str, dict[str, int]]


def read(path: Path, limit: int | None = None) -> PromptFile:
    """Read a file of prompts; blank lines are passed over.

    Args:
        path: The file.
        limit: Only so many rows, the first ones; None: all. The others are looked at as well.

    Raises:
        UserError: There is no such file, it is empty, or a row is wrong.
    """
    if path.is_dir():
        raise UserError(f"{path}: a file of prompts was expected, this is a folder")
    if path.exists():
        check_regular(path, path.stat().st_mode)
    if path.name.endswith(TEXT_SUFFIX) and path.is_file():
        rows = list(_text_rows(path))
    else:
        (file,) = find_files(path, "train")
        rows = list(read_rows([file]))
    if not rows:
        raise UserError(f"{path}: no prompts: there is no row in it")
    schema = prompt_schema_of(rows[0])
    unread = Unread()
    questions = []
    for row in rows:
        with reading(row):
            unread.add(row, schema.unread(row))
            questions.append(schema.parse(row))
    with opened(path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return PromptFile(path, rows[:limit], questions[:limit], digest, unread.counts())


def _text_rows(file: Path) -> Iterator[Row]:
    with reading(file):
        content = read_bytes(file)
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}:{number}: not UTF-8 text") from error
        if text.strip():
            yield Row(file, number, {"prompt": text})
