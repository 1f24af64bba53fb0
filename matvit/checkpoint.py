"""Encoders on disk: `model.safetensors` and `config.json` in one folder, written and read here.

An encoder is whole, or a submodel extracted from one, or has an anchor: then a third file,
`anchor.safetensors`, holds the full size as it was before the conversion. Both kinds of weights
have their fingerprint in `config.json`, and are refused if theirs is another one.

A fingerprint says what an encoder answers, not that its files are whole: it leaves out the head.
So `config.json` also has the SHA-256 of each file, and one of itself. Older encoders have neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from msgspec import UNSET, Meta, Struct, UnsetType
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from matvit.config import MatViTConfig
from matvit.conversion.anchored import AnchoredMatViT
from matvit.cost import count_params
from matvit.extraction import ExtractedViT
from matvit.files import open_regular, read_json
from matvit.identity import fingerprint_of
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from matvit.submodel import Submodel
from matvit.writing import SEAL, is_whole, sealed, sha256_of, write_atomically

FORMAT_VERSION: Final = 1
WEIGHTS = "model.safetensors"
ANCHOR: Final = "anchor.safetensors"
SETTINGS = "config.json"
DEFAULT_ENCODER = "matvit-tiny64"
_BUNDLED = Path(__file__).parent / "weights"

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
    """Find the folder of an encoder: a bundled name, or a path.

    Raises:
        FileNotFoundError: If there is neither.
    """
    names = bundled_encoders()
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


def load_encoder(
    source: str | Path, *, device: str | torch.device = "cpu"
) -> MatViT | ExtractedViT:
    """Load an encoder: a bundled one by name, or a folder that `save_encoder` wrote.

    Returns:
        A whole `MatViT`, or a submodel extracted from one.

    Raises:
        FileNotFoundError: If there is neither; the message lists the bundled names.
        ValueError: If a file is damaged or of another version, or the files do not fit together.

    Examples:
        >>> encoder = load_encoder("matvit-tiny64")
        >>> encoder.name, encoder.preprocess.img_size
        ('matvit-tiny64', 64)
    """
    folder, settings = locate(source), read_settings(source)
    expected = {WEIGHTS: settings.weights}
    if settings.anchor is not UNSET:
        expected[ANCHOR] = settings.fingerprint
    tensors = {name: _read(folder / name, settings, known) for name, known in expected.items()}
    try:
        _check_amount(settings, tensors)
        encoder = _build(settings, tensors)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the weights in {folder} do not fit its settings: {reason}") from error
    return encoder.to(device)


def save_encoder(
    encoder: MatViT | ExtractedViT,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write weights, settings and fingerprints into a folder; weights first, settings last.

    Each file appears in one step. An interrupted write leaves files whose fingerprints disagree,
    which `load_encoder` refuses.

    Args:
        encoder: A whole encoder, or an extracted submodel.
        folder: Created if missing; an earlier encoder in it is replaced.
        dtype: Stored precision. With float16 the file is half as large, and the encoder it
            loads as (float32 values rounded to float16) has its own fingerprint. An anchor is
            never rounded.
        training: Anything worth remembering about how the weights came to be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(encoder, dtype)
    weights = fingerprint_of(encoder.config, files[WEIGHTS])
    written = {name: _write(folder / name, tensors) for name, tensors in files.items()}
    is_extracted = isinstance(encoder, ExtractedViT)
    settings = Settings(
        format_version=FORMAT_VERSION,
        name=encoder.name,
        # Rounding may have changed the weights, but not those of an anchor.
        fingerprint=encoder.fingerprint if is_extracted or ANCHOR in files else weights,
        weights=weights,
        submodel=str(encoder.submodel()) if is_extracted else None,
        model=encoder.config,
        preprocess=encoder.preprocess,
        training=training or {},
        anchor=ANCHOR if ANCHOR in files else UNSET,
        files=written,
    )
    write_atomically(folder / SETTINGS, lambda stream: stream.write(settings.to_json()))
    if ANCHOR not in files:
        (folder / ANCHOR).unlink(missing_ok=True)  # of an earlier encoder in this folder
    return folder


def _files(encoder: MatViT | ExtractedViT, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file, as they are stored."""
    weights = encoder if isinstance(encoder, ExtractedViT) else encoder.backbone
    files = {
        WEIGHTS: {
            key: value.detach().to("cpu", torch.float32).to(dtype).contiguous()
            for key, value in weights.state_dict().items()
        }
    }
    if isinstance(encoder, AnchoredMatViT):
        files[ANCHOR] = {
            key: _lossless(value.detach().to("cpu", torch.float32), dtype)
            for key, value in encoder.anchor.state_dict().items()
        }
    return files


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors and return the SHA-256 of the file."""
    data = save(tensors, metadata={"format": "pt"})
    return write_atomically(path, lambda stream: stream.write(data)).sha256


def _lossless(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a smaller type where that changes no value."""
    rounded = tensor.to(dtype)
    return (rounded if torch.equal(rounded.float(), tensor) else tensor).contiguous()


def _read(path: Path, settings: Settings, expected: str) -> dict[str, Tensor]:
    """Read tensors as float32, and check that they are those written."""
    try:
        with open_regular(path):  # the library would wait for a FIFO
            stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    tensors = {key: value.float() for key, value in stored.items()}
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


def _check_amount(settings: Settings, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Make sure that there are weights for all that the settings describe, before it is made.

    Raises:
        ValueError: If there are not.
    """
    config = settings.model
    cut = Submodel.parse(
        settings.submodel or "XL", depth=config.depth, hidden_dim=config.hidden_dim
    )
    wanted = count_params(config, cut)
    for name, stored in tensors.items():
        found = sum(tensor.numel() for tensor in stored.values())
        if found < wanted + config.num_classes:
            raise ValueError(
                f"{name} has {found:,} values, the settings describe {wanted:,} and "
                f"{config.num_classes:,} classes"
            )


def _build(
    settings: Settings, tensors: Mapping[str, Mapping[str, Tensor]]
) -> MatViT | ExtractedViT:
    """Make the encoder that the settings describe, of the tensors of each file."""
    config, preprocess, name = settings.model, settings.preprocess, settings.name
    if settings.submodel is not None:
        cut = Submodel.parse(settings.submodel, depth=config.depth, hidden_dim=config.hidden_dim)
        extracted = ExtractedViT(config, cut, preprocess, name, settings.fingerprint)
        extracted.take_weights(tensors[WEIGHTS])
        return extracted
    if settings.anchor is UNSET:
        model = MatViT(config, preprocess, name)
    else:
        model = anchored = AnchoredMatViT(config, preprocess, name)
        anchored.anchor.load_state_dict(tensors[ANCHOR])
    model.backbone.load_state_dict(tensors[WEIGHTS])
    return model
