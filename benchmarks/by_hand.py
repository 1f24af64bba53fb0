"""The same job as people do it today: a timm model, a DataLoader with workers, FAISS by hand."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import faiss
import pyarrow as pa
import torch
from PIL import Image
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from matvit import MatViT, resolve_precision


class TableImages(Dataset[Tensor]):
    """Images of Parquet tables, decoded and transformed by timm."""

    def __init__(self, tables: list[pa.Table], images: int, model: MatViT) -> None:
        self._column = pa.concat_tables(tables)["image"].slice(0, images)
        settings = model.preprocess
        self._transform: Any = create_transform(
            settings.img_size,
            interpolation=settings.interpolation,
            mean=settings.mean,
            std=settings.std,
            crop_pct=1.0,
        )

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> Tensor:
        data = self._column[index].as_py()["bytes"]
        image: Tensor = self._transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return image


def index_by_hand(model: MatViT, tables: list[pa.Table], images: int, path: Path) -> None:
    """Embed and index images; the precision is the one this project would choose."""
    vit = VisionTransformer(**{**model.config.to_dict(), "num_classes": 0}).eval().to(model.device)
    loader = DataLoader(
        TableImages(tables, images, model), batch_size=256, num_workers=os.cpu_count() or 1
    )
    index = faiss.IndexFlatIP(model.config.embed_dim)
    dtype = resolve_precision(model.device)
    with torch.inference_mode(), torch.autocast(model.device.type, dtype):
        for batch in loader:
            vectors = normalize(vit(batch.to(model.device)).float(), dim=1)
            index.add(vectors.cpu().numpy())
    faiss.write_index(index, str(path))
