"""Encoders on disk: `model.safetensors` and `config.json` in one folder, read here.

An encoder is whole, or a submodel extracted from one, or has an anchor: then a third file,
`anchor.safetensors`, holds the full size as it was before the conversion. Both kinds of weights
have their fingerprint in `config.json`, and are refused if theirs is another one.

A fingerprint says what an encoder answers, not that its files are whole: it leaves out the head.
So `config.json` also has the SHA-256 of each file, and one of itself. Older encoders have neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from jaxtyping import Float32
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from matvit.config import MatViTConfig
from matvit.cost import count_params, resolve_submodel
from matvit.files import open_regular, read_file, read_json
from matvit.hub import hub_folder, is_on_hub
from matvit.identity import fingerprint_of
from matvit.preprocess import Preprocess
from matvit.writing import SEAL, is_whole, sealed, sha256_of, write_atomically

FORMAT_VERSION: Final = 1
WEIGHTS = "model.safetensors"
ANCHOR: Final = "anchor.safetensors"
SETTINGS = "config.json"
CARD = "README.md"
DEFAULT_ENCODER = "matvit-tiny64-v2"
_BUNDLED = Path(__file__).parent / "weights"

_WRITTEN_HERE = (
    "<!-- Written with the encoder; without this line it stays when that is replaced. -->"
)
_MOST_CARD_BYTES = 1 << 20

Tensors = Mapping[str, Float32[ndarray, "..."]]
"""Weights under timm's names."""

_Fingerprint = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `config.json` says.

    Attributes:
        name: What to call the encoder.
        fingerprint: Identity of the full encoder.
        weights: Fingerprint of the tensors in `model.safetensors`.
        submodel: For an extracted submodel, what was cut; None for a whole encoder.
        model: Architecture of the full encoder.
        preprocess: How images become its input.
        training: How the weights came to be; free-form.
        anchor: File of the weights that a converted encoder runs its full size from.
        files: SHA-256 of each file of weights.
        sha256: Of all the above.
    """

    format_version: Literal[1]
    name: str
    fingerprint: _Fingerprint
    weights: _Fingerprint
    submodel: str | None
    model: MatViTConfig
    preprocess: Preprocess
    training: dict[str, Any]
    anchor: Literal["anchor.safetensors"] | UnsetType = UNSET
    files: dict[str, str] | UnsetType = UNSET
    sha256: str | UnsetType = UNSET

    def to_json(self) -> bytes:
        """Return the text of the file, sealed."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        values |= {"model": self.model.to_dict(), "preprocess": self.preprocess.to_dict()}
        return sealed({name: value for name, value in values.items() if value is not UNSET})


def bundled_encoders() -> list[str]:
    """Names of the encoders that come with the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{SETTINGS}"))


def locate(source: str | Path) -> Path:
    """Find the folder of an encoder: a bundled name, a path, or `hf-hub:owner/name`.

    Raises:
        FileNotFoundError: If there is none of them.
        ValueError: If it is no name that the hub could have.
    """
    names = bundled_encoders()
    if is_on_hub(source):
        source = hub_folder(str(source))
    if str(source) in names:
        return _BUNDLED / str(source)
    folder = Path(source)
    if (folder / SETTINGS).is_file():
        return folder
    raise FileNotFoundError(
        f"no encoder {str(source)!r}: bundled encoders are {', '.join(names) or 'none'}; "
        f"or give a folder that holds {SETTINGS} and {WEIGHTS}"
    )


def read_settings(source: str | Path) -> Settings:
    """Read what is known of an encoder without its weights.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the file is damaged or of another version.
    """
    path, what = locate(source) / SETTINGS, "the description of an encoder"
    settings = read_json(path, Settings, what, version=FORMAT_VERSION)
    if not is_whole(read_json(path, dict[str, Any], what)):
        raise ValueError(
            f"{path} is damaged or was changed: its content is not what was written; restore it "
            f"from where it came, or remove the line {SEAL!r} if you changed it yourself"
        )
    return settings


def read_encoder(source: str | Path) -> tuple[Settings, dict[str, Tensors]]:
    """Read what is known of an encoder, and the tensors of each of its files.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If a file is damaged or of another version, or the files do not fit together.
    """
    folder, settings = locate(source), read_settings(source)
    expected = {WEIGHTS: settings.weights}
    if settings.anchor is not UNSET:
        expected[ANCHOR] = settings.fingerprint
    tensors = {name: _read(folder / name, settings, known) for name, known in expected.items()}
    with fitting(source):
        _check_amount(settings, tensors)
    return settings, tensors


@contextmanager
def fitting(source: str | Path) -> Iterator[None]:
    """Say of an error within that weights do not fit their settings."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the weights in {locate(source)} do not fit its settings: {reason}"
        ) from error


def write_encoder(
    folder: str | Path,
    settings: Settings,
    files: Mapping[str, bytes],
    card: str | None = None,
) -> Path:
    """Write weights and settings into a folder; weights first, settings last.

    Each file appears in one step. An interrupted write leaves files whose fingerprints disagree,
    which `read_encoder` refuses.

    Args:
        folder: Created if missing; an earlier encoder in it is replaced.
        settings: All but the hashes.
        files: Content of each file of weights.
        card: What to tell people, in Markdown; it replaces no card that they wrote themselves.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {name: _write(folder / name, content) for name, content in files.items()}
    if card is not None and _may_write(folder / CARD):
        _write(folder / CARD, f"{card}\n{_WRITTEN_HERE}\n".encode())
    _write(folder / SETTINGS, replace(settings, files=hashes).to_json())
    if ANCHOR not in files:
        (folder / ANCHOR).unlink(missing_ok=True)  # of an earlier encoder in this folder
    return folder


def _may_write(card: Path) -> bool:
    """Whether nobody has put a card of their own there."""
    try:
        return _WRITTEN_HERE.encode() in read_file(card, max_bytes=_MOST_CARD_BYTES).data
    except OSError:
        return not card.exists()


def _write(path: Path, content: bytes) -> str:
    """Write a file and return its SHA-256."""
    return write_atomically(path, lambda stream: stream.write(content)).sha256


def _read(path: Path, settings: Settings, expected: str) -> Tensors:
    """Read tensors as float32, and check that they are those written."""
    try:
        with open_regular(path):  # the library would wait for a FIFO
            stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    tensors = {key: value.astype(np.float32) for key, value in stored.items()}
    found = fingerprint_of(settings.model, tensors)
    if found != expected:
        raise ValueError(
            f"{path} is damaged or was changed: its fingerprint is {found}, "
            f"{SETTINGS} says {expected}; restore both files from where they came"
        )
    if settings.files is not UNSET and settings.files.get(path.name) != sha256_of(path):
        raise ValueError(
            f"{path} is damaged or was changed: its SHA-256 is not the one in {SETTINGS}; "
            "restore both files from where they came"
        )
    return tensors


def _check_amount(settings: Settings, tensors: Mapping[str, Tensors]) -> None:
    """Make sure that there are weights for all that the settings describe, before it is made.

    Raises:
        ValueError: If there are not.
    """
    config = settings.model
    wanted = count_params(config, resolve_submodel(config, settings.submodel))
    classes = config.num_classes if settings.submodel is None else 0
    for name, stored in tensors.items():
        found = sum(tensor.size for tensor in stored.values())
        if found < wanted + classes:
            raise ValueError(
                f"{name} has {found:,} values, the settings describe {wanted:,} and "
                f"{classes:,} classes"
            )
