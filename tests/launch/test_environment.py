import json
import sys

from alignctl.launch import environment


def test_the_description_names_versions_and_devices_and_nothing_else() -> None:
    description = environment.describe()
    assert set(description) == {
        *("python", "platform", "cpu", "cores", "gpus", "packages", "commit"),
    }
    assert description["python"] == ".".join(str(n) for n in sys.version_info[:3])
    json.dumps(description)


def test_a_package_that_is_not_installed_has_no_version() -> None:
    versions = environment.package_versions()
    assert set(versions) == set(environment.PACKAGES)
    assert versions["pydantic"]
    assert versions["deepspeed"] is None or versions["deepspeed"]
