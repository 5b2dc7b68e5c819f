import pytest

from alignctl.reporting.page.redaction import HIDDEN, hide, hide_in_commands


@pytest.mark.parametrize(
    "name",
    ["judge.api_key", "api-key", "hf_token", "access.token", "DB_PASSWORD", "x.secret", "key"],
)
def test_what_is_called_a_key_is_hidden(name: str) -> None:
    assert hide(name, "anything") == HIDDEN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollout.max_new_tokens", 40),
        ("tokenizer", "models/llama"),
        ("loss.aggregation", "token"),
        ("judge.api_key", None),
        ("monkey", "business"),
        ("url", "https://example.org/v1"),
    ],
)
def test_what_only_sounds_like_one_is_shown(name: str, value: object) -> None:
    assert hide(name, value) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sk-abcdefghijklmnop", HIDDEN),
        ("see hf_abcdefghijklmnop!", f"see {HIDDEN}!"),
        ("https://bob:hunter2@host/v1", f"https://{HIDDEN}@host/v1"),
    ],
)
def test_keys_are_known_by_their_looks_too(text: str, shown: str) -> None:
    assert hide("note", text) == shown


def test_keys_in_command_lines_are_hidden_and_nothing_else() -> None:
    shown = hide_in_commands(
        "alignctl eval --judge-key abc api_key='d e' --api-key=ghi judge.token=jkl "
        "loss.aggregation=token --tokenizer models/x rollout.max_new_tokens=5"
    )
    assert shown == (
        f"alignctl eval --judge-key {HIDDEN} api_key={HIDDEN} --api-key={HIDDEN} "
        f"judge.token={HIDDEN} loss.aggregation=token --tokenizer models/x "
        "rollout.max_new_tokens=5"
    )
