from alignctl.config.presets.knobs import COMMANDS, describe_values, gather_chapters
from alignctl.config.presets.load import STAGES, Preset
from alignctl.config.presets.problems import known_keys
from alignctl.config.rewards import RewardFunction


def test_every_key_that_can_be_set_is_on_the_page() -> None:
    """Of the sections of a preset; a section is not a knob, but for one that may be null.

    The keys of a list's entries are on the page too, and are set with the whole list alone.
    """
    written = {
        ".".join((stage.replace("-", "_"), *chapter.path, key))
        for chapter in gather_chapters()
        for stage in chapter.stages
        if stage not in COMMANDS and chapter.declared is not RewardFunction
        for key in chapter.knobs
    }
    keys = set(known_keys(Preset))
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    assert leaves - written == set()
    assert written - leaves == {f"{stage}.lora" for stage in STAGES} | {"model.rope_scaling"}


def test_values_are_told_in_words() -> None:
    assert describe_values({"type": "integer", "minimum": 1}) == "an integer at least 1"
    share = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert describe_values({"anyOf": [share, {"type": "null"}]}) == (
        "a number at least 0 and under 1 or `null`"
    )
    assert describe_values({"type": "string", "enum": ["a", "b"]}) == "`a`, `b`"
    assert describe_values({"type": "array", "items": {"type": "string"}}) == "a list, each text"
