"""URLs of servers that a user names: what every log and every process list would show is none."""

from urllib.parse import urlsplit


def find_url_problem(name: str, url: str, *, may_ask: bool) -> str | None:
    """Say what is wrong with a URL, without its password; None: nothing is.

    Args:
        name: What names it, for the message.
        url: The URL.
        may_ask: Whether something may stand after ?.
    """
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        shown = url.rpartition("@")[2]  # what is before may be a password
        return f"{name} {shown!r} is not one of http:// or https://, such as http://127.0.0.1:8000/"
    if parts.username or parts.password or parts.fragment or (parts.query and not may_ask):
        marks = "#" if may_ask else "? or #"
        return (
            f"{name} may not hold a user, a password or anything after {marks}: every log would "
            "show it"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        return f"{name} holds a character that no URL has"
    return None
