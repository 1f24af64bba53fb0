"""The card of an encoder: what the hub, or whoever opens its folder, reads first."""

from __future__ import annotations

from matvit.config import MatViTConfig
from matvit.cost import count_macs, count_params
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel

_TEXT = """\
---
library_name: matvit-retrieval
pipeline_tag: image-feature-extraction
tags:
- image-retrieval
- matformer
- vision-transformer
---

# {name}

A Vision Transformer that embeds images at any of its sizes, all of them in one space: embed the
database once with the full size (XL), ask it with a smaller one.

```python
from matvit import load_encoder

encoder = load_encoder("hf-hub:OWNER/NAME")  # or the folder that this file is in
```

| size | GMACs | of full | parameters |
| --- | ---: | ---: | ---: |
{rows}

Widths can differ from block to block, as in `4xS,2xXL`. Vectors have {dim} dimensions and length
one. Images become {size} x {size} px: {fit}, {interpolation}, mean {mean}, deviation {std}.

{origin}Fingerprint: `{fingerprint}`. An index that was made by this encoder accepts no other.
"""

_MARK = (
    "<!-- Written with the encoder. Without this line it stays when the encoder is replaced. -->"
)

_FITS = {
    "crop": "the shorter side is scaled and the centre kept",
    "squash": "both sides are scaled",
}


def card_of(
    name: str,
    fingerprint: str,
    config: MatViTConfig,
    preprocess: Preprocess,
    training: dict[str, object],
) -> str:
    """Describe an encoder in Markdown, with the head that the hub reads.

    Args:
        name: What it is called.
        fingerprint: Of the full size.
        config: Its architecture.
        preprocess: How images become its input.
        training: How the weights came to be; from whom they are is said.
    """
    depth, hidden = config.depth, config.hidden_dim
    sizes = [Submodel.uniform(size, depth=depth, hidden_dim=hidden) for size in Granularity]
    full = count_macs(config, sizes[-1])
    rows = [
        f"| {size} | {count_macs(config, size) / 1e9:.2f} | {count_macs(config, size) / full:.0%} "
        f"| {count_params(config, size):,} |"
        for size in sizes
    ]
    return _TEXT.format(
        name=name,
        rows="\n".join(rows),
        dim=config.embed_dim,
        size=config.img_size,
        fit=_FITS[preprocess.fit],
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        origin=_origin(training),
        fingerprint=fingerprint,
    )


def _origin(training: dict[str, object]) -> str:
    original = training.get("converted_from")
    if isinstance(original, dict):
        return f"At full size it is {original.get('name')}, unchanged. "
    if imported := training.get("imported_from"):
        return f"Imported from a checkpoint of {imported}. "
    return ""
