from alignctl.reporting.page.redaction import HIDDEN
from alignctl.reporting.page.tables import ABSENT, Row, table


def test_values_of_runs_stand_side_by_side_under_dotted_names() -> None:
    first = {"optimizer": {"lr": 1e-5, "betas": [0.9, 0.95]}, "load": None, "empty": {}}
    second = {"optimizer": {"lr": 2e-5, "betas": [0.9, 0.95]}, "packing": True}
    rows = table([first, second])
    assert rows == [
        Row("optimizer.lr", ["1e-05", "2e-05"]),
        Row("optimizer.betas", ["0.9, 0.95", "0.9, 0.95"]),
        Row("load", ["none", ABSENT]),
        Row("empty", ["{}", ABSENT]),
        Row("packing", [ABSENT, "true"]),
    ]
    assert [row.name for row in rows if row.is_same] == ["optimizer.betas"]


def test_what_was_measured_has_four_digits_and_what_was_set_is_as_it_was() -> None:
    column = {"loss": 1.23456789, "steps": 1234}
    assert [row.values for row in table([column], is_measured=True)] == [["1.235"], ["1234"]]
    assert table([{"loss_scale": 4294967296.0}])[0].values == ["4294967296"]


def test_keys_are_hidden_at_any_depth() -> None:
    rows = table([{"judge": {"api_key": "abc", "key": {"a": "b"}, "urls": ["http://u:p@h/"]}}])
    assert [row.values for row in rows] == [[HIDDEN], [HIDDEN], [f"http://{HIDDEN}@h/"]]
