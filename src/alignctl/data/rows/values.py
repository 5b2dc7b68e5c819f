"""Values of rows, or a message that names the row, the key and what was found."""

from alignctl.data.rows.files import Row
from alignctl.errors import UserError


def text_at(row: Row, key: str) -> str:
    """Read the text under a key."""
    if key not in row.record:
        found = ", ".join(sorted(row.record)) or "none"
        raise UserError(
            f"{row.where}: no key {key!r} in this row (its keys: {found})",
            "every row must have the schema of the first row",
        )
    return check_text(row, key, row.record[key])


def check_text(row: Row, name: str, value: object) -> str:
    """Return a value if it is text and can be encoded; `name` is what the message calls it."""
    if not isinstance(value, str):
        raise mismatch(row, name, value, "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.where}: {name} holds half a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}) at character {error.start + 1}",
            "the text was cut inside an escaped character; mend or remove the row",
        ) from error
    return value


def mismatch(row: Row, name: str, value: object, expected: str) -> UserError:
    """Make the error for a value of another kind than expected."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return UserError(
        f"{row.where}: {name} is {kinds.get(type(value), 'a number')}, where {expected} is expected"
    )
