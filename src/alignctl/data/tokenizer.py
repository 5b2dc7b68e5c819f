"""The exact fast tokenizer of a folder: its tokenizer.json, and what its settings say about it.

The `tokenizers` library reads tokenizer.json as it is. transformers' model-specific classes do not:
its LlamaTokenizer (5.x) rebuilds the tokenizer from the vocabulary and loses a leading space.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl.data.hf_settings import read_settings
from alignctl.errors import RunError, UserError
from alignctl.user_files import is_there, read_text, reading

_MAKE_ONE = (
    "give another folder with --tokenizer DIR; every Llama 2 and Bloom release on the Hugging Face "
    "hub has the file; or make it, where "
    'transformers 4 is installed: python -c "from transformers import AutoTokenizer; '
    "AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
)


# A text is read after one of these, where a tokenizer treats the start of a text differently.
_ANCHORS = ("\n", "\x02", "|", "a", "0")


@dataclass(frozen=True, eq=False)
class Reading:
    """The tokens of a text, and which characters of it each of them is.

    Attributes:
        encoding: A `tokenizers.Encoding`, of the text or of something before it as well.
        skipped_tokens: Tokens of what is before.
        skipped_characters: Characters of what is before.
    """

    encoding: Any
    skipped_tokens: int = 0
    skipped_characters: int = 0

    def __len__(self) -> int:
        return len(self.encoding) - self.skipped_tokens

    @property
    def ids(self) -> NDArray[np.int32]:
        """Token ids `[N]`."""
        ids = np.asarray(self.encoding.ids, np.int32)
        return ids[self.skipped_tokens :] if self.skipped_tokens else ids

    def token_at(self, character: int) -> int | None:
        """Find the first token of a character; None when a normaliser removed the character."""
        token: int | None = self.encoding.char_to_token(character + self.skipped_characters)
        return None if token is None else token - self.skipped_tokens

    def start(self, token: int) -> int:
        """Find the first character of a token."""
        characters: tuple[int, int] = self.encoding.token_to_chars(token + self.skipped_tokens)
        return characters[0] - self.skipped_characters


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer, and the rules for the special tokens that documents get.

    Attributes:
        folder: Where it was read from.
        backend: The `tokenizers.Tokenizer`, without post-processor: it adds no special tokens, and
            its offsets are untrimmed.
        special_tokens: `bos_token`, `eos_token`, ... to their texts, for chat templates.
        bos_id: Id of the token at the start of every document, or None.
        eos_id: Id of the token that ends a turn.
        pad_id: Id of the padding token, or None. Nothing is ever masked by comparing with it.
        adds_bos: Whether a document starts with BOS: `add_bos_token` when it is given, otherwise
            whether the post-processor puts it there.
        chat_templates: Jinja sources by name; the one without a name is `default`.
    """

    folder: Path
    backend: Any
    special_tokens: dict[str, str]
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    adds_bos: bool
    chat_templates: dict[str, str]

    @property
    def eos_token(self) -> str:
        """Text of EOS."""
        return self.special_tokens["eos_token"]

    @property
    def vocab_size(self) -> int:
        """Highest token id plus one, added tokens included."""
        highest: int = max(self.backend.get_vocab(with_added_tokens=True).values())
        return highest + 1

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides how text becomes tokens."""
        state = [self.backend.to_str(), self.special_tokens, self.adds_bos, self.chat_templates]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids of all tokens, by their text."""
        tokens: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return tokens

    def encode_batch(self, texts: Sequence[str]) -> list[Any]:
        """Tokenise texts, without adding special tokens; return `tokenizers.Encoding` objects."""
        with explain_panic(self.folder):
            encodings: list[Any] = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return encodings

    def continue_text(self, text: str) -> "Reading":
        """Tokenise a text that follows another one: without what is put before a first word.

        SentencePiece's tokenizers put a space there, so such a text is read after a character that
        does not join it, whose tokens are left out.
        """
        if not self._prefixes:
            return Reading(self.encode_batch([text])[0])
        for anchor in _ANCHORS:
            (encoding,) = self.encode_batch([anchor + text])
            whole = Reading(encoding)
            first = whole.token_at(len(anchor))
            if first is None or whole.start(first) >= len(anchor):
                skipped = len(whole) if first is None else first
                return Reading(encoding, skipped, len(anchor))
        raise RunError(f"{self.folder}: the tokenizer joins {text[:20]!r} with all that is before")

    @cached_property
    def _prefixes(self) -> bool:
        """True if a text alone has other tokens than after a line break."""
        alone, after = self.encode_batch(["a", "\na"])
        alone_ids: list[int] = alone.ids
        return bool(after.ids[-len(alone_ids) :] != alone_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids to text, special tokens included."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False)
        return text

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Decode token ids to text without special tokens, as a reader sees an answer."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer folder, or the folder of a tokenizer.json or tokenizer.model file.

    Raises:
        UserError: The folder has no tokenizer, or a file of it is damaged or contradicts another.
    """
    folder = path.parent if path.name in ("tokenizer.json", "tokenizer.model") else path
    if not folder.is_dir():
        raise UserError(f"{folder}: no such tokenizer folder", "set --tokenizer to a folder")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: no tokenizer.json in this tokenizer folder",
            _MAKE_ONE.format(folder=folder),
        )
    backend = _read_backend(folder / "tokenizer.json")
    with reading(
        f"{folder}: tokenizer_config.json or a file beside it has a value of the wrong kind",
        "copy the files again from the model's release",
    ):
        return _apply_settings(folder, backend)


def _apply_settings(folder: Path, backend: Any) -> Tokenizer:
    """Make the tokenizer from tokenizer.json and what the files beside it say about it."""
    settings = _settings_of(folder / "tokenizer_config.json")
    _add_missing_tokens(backend, settings, folder)
    special = _special_tokens(backend, settings, folder)
    ids = {name: _id_of(backend, name, token, folder) for name, token in special.items()}
    if "eos_token" not in ids:
        raise UserError(
            f"{folder}: the tokenizer has no eos_token, so a model could not learn to stop",
            'add "eos_token": "..." to its tokenizer_config.json',
        )
    adds_bos = _adds_bos(backend, settings, ids.get("bos_token"), folder)
    # ByteLevel post-processors cut white space off the offsets, which would move boundaries.
    backend.post_processor = None
    return Tokenizer(
        folder=folder,
        backend=backend,
        special_tokens=special,
        bos_id=ids.get("bos_token"),
        eos_id=ids["eos_token"],
        pad_id=ids.get("pad_token"),
        adds_bos=adds_bos,
        chat_templates=_chat_templates(settings, folder),
    )


def check_fits(tokenizer: Tokenizer, vocab_size: int, hint: str | None = None) -> None:
    """Refuse a tokenizer with ids beyond the rows of the model's embedding.

    Args:
        tokenizer: The tokenizer of the data.
        vocab_size: Rows of the embedding, without the padding for tensor parallelism.
        hint: What to do about it; None for the usual.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= vocab_size)
    shown = ", ".join(f"{token!r} = {i}" for i, token in beyond[:3])
    raise UserError(
        f"{tokenizer.folder}: {len(beyond)} token ids exceed the model's embedding of {vocab_size} "
        f"rows ({shown}{', ...' if len(beyond) > 3 else ''})",
        hint or "use the tokenizer of the model that is loaded, or one with a larger vocab_size",
    )


@contextmanager
def explain_panic(folder: Path) -> Iterator[None]:
    """Turn a panic of the library, which is no `Exception`, into a message.

    Raises:
        UserError: A pattern of the tokenizer takes too many steps over a text, say.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{folder / 'tokenizer.json'}: fails over a text: {error}") from error


def _read_backend(file: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    text = read_text(file)
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(f"{file}: not a readable tokenizer.json: {error}") from error
    # Some files hold the truncation and padding that their author used last.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _settings_of(file: Path) -> dict[str, Any]:
    if not is_there(file):
        return {}
    return read_settings(file)


def _add_missing_tokens(backend: Any, settings: dict[str, Any], folder: Path) -> None:
    """Add the tokens that only tokenizer_config.json lists, as transformers does."""
    from tokenizers import AddedToken

    listed = settings.get("added_tokens_decoder") or {}
    for number in sorted(int(key) for key in listed):
        entry = listed[str(number)]
        content = entry["content"] if isinstance(entry, dict) else str(entry)
        if backend.token_to_id(content) is None:
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            given = {f: entry[f] for f in flags if f in entry} if isinstance(entry, dict) else {}
            backend.add_tokens([AddedToken(content, **given)])
        if backend.token_to_id(content) != number:
            raise UserError(
                f"{folder}: tokenizer_config.json says {content!r} has id {number}, but in "
                f"tokenizer.json it has {backend.token_to_id(content)}",
                "the two files are of different tokenizers; copy both from one release",
            )


def _special_tokens(backend: Any, settings: dict[str, Any], folder: Path) -> dict[str, str]:
    """Find the special tokens: tokenizer_config.json, special_tokens_map.json, then config.json."""
    others = _settings_of(folder / "special_tokens_map.json")
    model = _settings_of(folder / "config.json")
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name, others.get(name))
        if isinstance(value, dict):
            value = value.get("content")
        if value is None and name not in settings:
            number = model.get(f"{name}_id")
            number = number[0] if isinstance(number, list) and number else number
            # Configs of the first Llama have -1 where there is no such token.
            is_id = isinstance(number, int) and number >= 0
            value = backend.id_to_token(number) if is_id else None
        if value is not None and not isinstance(value, str):
            raise UserError(f"{folder}: {name} is {value!r:.80}, where text is expected")
        if value is not None:
            special[name] = value
    return special


def _id_of(backend: Any, name: str, token: str, folder: Path) -> int:
    number: int | None = backend.token_to_id(token)
    if number is None:
        raise UserError(
            f"{folder}: {name} is {token!r}, which is no token of tokenizer.json",
            f"correct {name} in tokenizer_config.json or special_tokens_map.json",
        )
    return number


def _adds_bos(backend: Any, settings: dict[str, Any], bos_id: int | None, folder: Path) -> bool:
    wanted = settings.get("add_bos_token")
    if wanted and bos_id is None:
        raise UserError(f"{folder}: add_bos_token is true, but there is no bos_token")
    if wanted is not None:
        if not isinstance(wanted, bool):
            raise UserError(f"{folder}: add_bos_token is {wanted!r:.80}, not true or false")
        return wanted
    with explain_panic(folder):
        ids: list[int] = backend.encode("a", add_special_tokens=True).ids
    return bos_id is not None and ids[:1] == [bos_id]


def _chat_templates(settings: dict[str, Any], folder: Path) -> dict[str, str]:
    """Read the first place of those that transformers reads which has a template; files first."""
    if is_there(folder / "chat_template.jinja"):
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        named = {file.stem: read_text(file) for file in others}
        return {"default": read_text(folder / "chat_template.jinja"), **named}
    file, value = folder / "tokenizer_config.json", settings.get("chat_template")
    if value is None:
        file = folder / "chat_template.json"
        value = _settings_of(file).get("chat_template")
    if value is None:
        return {}
    entries = value if isinstance(value, list) else [{"name": "default", "template": value}]
    templates: dict[str, str] = {}
    for entry in entries:
        name, template = (
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(template, str):
            raise UserError(
                f"{file}: chat_template is neither text nor a list of {{name, template}}",
                "copy the file again from the model's release",
            )
        templates[name] = template
    return templates
