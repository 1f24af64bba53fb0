"""Which encoders an index accepts: the one that built it, and to write, the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from indexing.store.manifest import CorpusRecord, EncoderRecord, PreprocessRecord
from matvit import COLOURS, Encoder, count_macs


class Described(Protocol):
    """What says by which encoder, and of which images, vectors were made; a manifest does."""

    @property
    def encoder(self) -> EncoderRecord:
        """What embedded them."""
        ...

    @property
    def preprocess(self) -> PreprocessRecord:
        """How they became its input."""
        ...

    @property
    def corpus(self) -> CorpusRecord:
        """Where they came from."""
        ...


class IndexMismatchError(ValueError):
    """An index was asked with another encoder or preprocessing than it was built with.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from indexing import Corpus, ImageIndex
        >>> from matvit import MatViT, load_encoder
        >>> folder, encoder = TemporaryDirectory(), load_encoder("matvit-tiny64")
        >>> Image.new("RGB", (64, 64)).save(f"{folder.name}/black.png")
        >>> index = ImageIndex.build(encoder, Corpus.open(folder.name), f"{folder.name}/index")
        >>> try:
        ...     index.check_encoder(MatViT(encoder.config))  # of the same shape, but untrained
        ... except IndexMismatchError:
        ...     print("refused")
        refused
        >>> folder.cleanup()
    """


def check_encoder(path: Path, described: Described, encoder: Encoder) -> None:
    """Refuse an encoder with other weights or other preprocessing than the index was built by.

    Raises:
        IndexMismatchError: If it has; the message names both.
    """
    built = described.encoder
    if encoder.fingerprint != built.fingerprint:
        raise IndexMismatchError(
            f"{path} was built by encoder {built.name} ({built.fingerprint}), but this is "
            f"{encoder.name} ({encoder.fingerprint}); build the index again or load that encoder"
        )
    expected, found = described.preprocess.fingerprint, encoder.preprocess.fingerprint
    if found != expected:
        raise IndexMismatchError(
            f"{path} was built with preprocessing {expected}, but encoder {encoder.name} uses "
            f"{found}; build the index again or restore the settings"
        )


def check_whole(encoder: Encoder) -> None:
    """Refuse a submodel cut from an encoder: it shares the fingerprint of the whole.

    Raises:
        ValueError: If it is one.
    """
    if not (largest := encoder.submodel(None)).is_full:
        raise ValueError(
            f"an index is embedded at full size, but {encoder.name} is only the submodel "
            f"{largest}; build it with the whole encoder and search it with this one"
        )


def describe(encoder: Encoder) -> tuple[EncoderRecord, PreprocessRecord]:
    """Say in the manifest's words what embeds an index."""
    return (
        EncoderRecord(
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.config.embed_dim,
            macs=count_macs(encoder.config, encoder.submodel(None)),
        ),
        PreprocessRecord(
            spec=encoder.preprocess.to_dict(),
            fingerprint=encoder.preprocess.fingerprint,
            colours=COLOURS,
        ),
    )
