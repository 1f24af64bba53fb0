from __future__ import annotations

import numpy as np
import pytest
import torch

from matvit.config import MatViTConfig
from matvit.embedding import embed, embed_each
from matvit.mixes import mix_n_match
from matvit.model import AnchoredMatViT, MatViT

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)


def pixels(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("anchored", [False, True])
def test_every_submodel_gets_the_vectors_of_a_run_of_its_own(anchored):
    torch.manual_seed(0)
    model = MatViT(CONFIG)
    if anchored:
        torch.manual_seed(1)
        model = AnchoredMatViT.join(model, MatViT(CONFIG))
    submodels = mix_n_match(CONFIG)
    images = pixels(5)
    submodels += [model.submodel(text) for text in ("S~1,0,1", "S~1,0,0", "3xXL~0,2,0")]
    found = dict(embed_each(model, images, [*submodels, submodels[0]], batch_size=2))
    assert set(found) == set(submodels)
    for submodel, vectors in found.items():
        expected = embed(model, images, submodel)
        assert (vectors * expected).sum(axis=1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_common_prefixes_cost_less_than_runs_of_their_own(monkeypatch):
    model = MatViT(CONFIG)
    rows = []
    attend = type(model.backbone.blocks[0]).attend
    monkeypatch.setattr(
        type(model.backbone.blocks[0]),
        "attend",
        lambda self, x, *sizes: (rows.append(len(x)), attend(self, x, *sizes))[1],
    )
    list(embed_each(model, pixels(4), mix_n_match(CONFIG)))
    # 20 submodels of 3 blocks would attend 60 times; in groups of 16 and 4 they share 31 of them
    assert sum(rows) / 4 < 0.6 * 60


def test_an_encoder_in_training_is_refused():
    with pytest.raises(ValueError, match="in training mode; call eval"):
        list(embed_each(MatViT(CONFIG).train(), pixels(1), mix_n_match(CONFIG)))
