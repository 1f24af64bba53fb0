from __future__ import annotations

import numpy as np
import pytest
from toy import SIDE, ToyEncoder, photo

from indexing import Corpus, ImageIndex
from retrieval import Retriever
from retrieval.tuning.sample import alter, draw_sample


@pytest.fixture
def retriever(tmp_path):
    for number in range(60):
        photo(tmp_path / "photos" / f"class{number % 3}" / f"{number:03}.png", number)
    corpus = Corpus.from_folder(tmp_path / "photos")
    encoder = ToyEncoder()
    return Retriever(encoder, ImageIndex.build(encoder, corpus, tmp_path / "index"))


def held_out(tmp_path, count=50):
    for number in range(count):
        photo(tmp_path / "queries" / f"class{number % 3}" / f"{number:03}.png", 1000 + number)
    return Corpus.from_folder(tmp_path / "queries")


def parts(sample):
    return sample.selecting, sample.bounding, sample.reporting


def test_the_three_parts_share_no_query_and_hold_all_that_were_drawn(retriever, tmp_path):
    sample = draw_sample(retriever, held_out(tmp_path), size=44)
    pictures = [pixels.tobytes() for part in parts(sample) for pixels in part.pixels]
    assert [len(part) for part in parts(sample)] == [11, 22, 11]
    assert len(set(pictures)) == 44
    assert not sample.altered
    assert sample.has_labels


def test_pixels_are_those_of_the_query_and_its_label_goes_with_it(retriever, tmp_path):
    sample = draw_sample(retriever, corpus := held_out(tmp_path), size=50)
    expected = {
        retriever.encoder.preprocess.pixels(corpus.read(row)).tobytes(): corpus.labels[row]
        for row in range(50)
    }
    for part in parts(sample):
        assert [expected[pixels.tobytes()] for pixels in part.pixels] == part.wanted.labels.tolist()


def test_altered_images_of_the_index_know_which_row_they_are(retriever):
    sample = draw_sample(retriever, size=60)
    own = np.concatenate([part.wanted.own[:, 0] for part in parts(sample)])
    assert sorted(own) == list(range(60))
    for part in parts(sample):
        for pixels, row in zip(part.pixels, part.wanted.own[:, 0], strict=True):
            original = retriever.encoder.preprocess.pixels(
                retriever.index.image_bytes(int(retriever.index.ids[row]))
            )
            assert not np.array_equal(pixels, original)
        assert (part.wanted.labels == retriever.index.labels[part.wanted.own[:, 0]]).all()


def test_the_same_seed_draws_the_same(retriever):
    first, again, other = (draw_sample(retriever, size=40, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.reporting.pixels, again.reporting.pixels)
    assert not np.array_equal(first.reporting.pixels, other.reporting.pixels)


def test_the_same_file_twice_is_one_query(retriever, tmp_path):
    held_out(tmp_path, 40)
    for number in range(10):
        source = tmp_path / "queries" / f"class{number % 3}" / f"{number:03}.png"
        (source.with_name(f"copy{number}.png")).write_bytes(source.read_bytes())
    sample = draw_sample(retriever, Corpus.from_folder(tmp_path / "queries"), size=50)
    assert sum(map(len, parts(sample))) == 40


def test_images_that_are_gone_or_damaged_are_passed_over(retriever, tmp_path):
    for file in sorted((tmp_path / "photos").rglob("*.png"))[::3]:
        file.unlink()
    sample = draw_sample(retriever, size=60)
    assert (sum(map(len, parts(sample))), sample.unreadable) == (40, 20)


def test_too_few_queries_are_refused(retriever, tmp_path):
    with pytest.raises(ValueError, match="a sample of at least 40 queries, got 39"):
        draw_sample(retriever, size=39)
    with pytest.raises(
        ValueError, match=r"at least 40 .* has only 20 .* copies \(0 cannot be read\)$"
    ):
        draw_sample(retriever, held_out(tmp_path, 20))
    for file in (tmp_path / "photos").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"only 0 .* \(60 cannot .* with --queries"):
        draw_sample(retriever, size=40)


def test_alterations_are_gentle():
    rng = np.random.default_rng(0)
    side = 32
    ramp = np.broadcast_to(np.linspace(40, 200, side, dtype=np.uint8)[:, None], (side, side))
    picture = np.repeat(ramp[:, :, None], 3, axis=2)
    for _ in range(50):
        changed = alter(picture, rng)
        assert changed.shape == picture.shape
        # 6 % of 160 gray levels lost at an edge, and a twentieth more or less bright
        assert np.abs(changed.astype(int) - picture).max() <= 160 * 0.06 + 0.05 * 200 + 4
        assert not np.array_equal(changed, picture)
    assert alter(np.full((SIDE, SIDE, 3), 255, np.uint8), rng).max() <= 255
