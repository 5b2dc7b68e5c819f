from tests.config import resolved


def test_every_preset_gives_the_values_that_it_gave() -> None:
    """Of all stages. A new knob has no value of old; one that is gone or renamed fails.

    Where a change is meant: `python -m tests.config.resolved`, and the diff is the list of it.
    """
    before, now = resolved.read(), resolved.resolve()
    changes = [
        f"{name}: {key} was {value!r}, is {now[key][name]!r}"
        if name in now.get(key, {})
        else f"{name}: {key} was {value!r}, is gone"
        for key, by_name in before.items()
        for name, value in by_name.items()
        if key not in now or name not in now[key] or now[key][name] != value
    ]
    assert changes == []
