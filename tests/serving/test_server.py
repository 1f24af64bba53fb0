"""An index over HTTP, asked within one process."""

from __future__ import annotations

import io
import shutil
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.serving import batches, server
from app.serving.routes import make_app
from app.serving.server import Settings
from indexing import Corpus, ImageIndex
from matvit import embed
from retrieval import Retriever


@pytest.fixture(scope="module")
def built(tiny_model, shared_photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "index"
    ImageIndex.build(tiny_model, Corpus.open(shared_photos), path)
    return path


@pytest.fixture
def retriever(tiny_model, built) -> Retriever:
    return Retriever(tiny_model, ImageIndex.open(built))


def client(retriever, token=None, **settings) -> TestClient:
    given = Settings(index=str(retriever.index.path), **settings)
    return TestClient(make_app(given, token, retriever))


def photo(red: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (red, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


def test_an_image_finds_what_a_retriever_finds(retriever):
    with client(retriever) as asked:
        for size in ("S", "XL"):
            said = asked.post("/search", content=photo(), params={"k": 3, "submodel": size}).json()
            wanted = retriever.search(photo(), size, k=3).to_dict()
            assert [hit["path"] for hit in said["hits"]] == [hit["path"] for hit in wanted["hits"]]
            scores = [hit["score"] for hit in said["hits"]]
            assert scores == pytest.approx([hit["score"] for hit in wanted["hits"]], abs=1e-6)
            assert (said["submodel"], said["macs"]) == (size, wanted["macs"])
            assert (said["generation"], said["followed_load"]) == (1, False)


def test_a_vector_from_elsewhere_finds_the_same_as_its_image(retriever):
    with client(retriever) as asked:
        encoded = asked.post("/encode", content=photo(), params={"submodel": "S"}).json()
        assert encoded["submodel"] == "S"
        pixels = retriever.encoder.preprocess.pixels(photo())[np.newaxis]
        assert encoded["vector"] == pytest.approx(
            embed(retriever.encoder, pixels, "S")[0].tolist(), abs=1e-6
        )
        # Of any length: only its direction counts.
        sent = {"vector": [3 * each for each in encoded["vector"]],
                "fingerprint": encoded["fingerprint"]}  # fmt: skip
        by_vector = asked.post("/search", json=sent, params={"k": 4}).json()
        by_image = asked.post("/search", content=photo(), params={"k": 4, "submodel": "S"}).json()
        assert [hit["id"] for hit in by_vector["hits"]] == [hit["id"] for hit in by_image["hits"]]
        assert (by_vector["submodel"], by_vector["macs"]) == ("vector", 0)


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"content": b"no image"}, 400, "not a readable image"),
        ({"content": b""}, 400, "no image; send the bytes of its file as the body"),
        ({"content": b"x" * 2_001}, 413, "more than 2,000 bytes; send a smaller image"),
        ({"json": {"vector": [1.0], "fingerprint": "f" * 16}}, 400, "the vector is of encoder"),
        ({"json": {"vector": [1.0], "fingerprint": None}}, 400, "Expected `str`, got `null`"),
        ({"json": {"vector": [1.0], "fingerprint": "{mine}"}}, 400, "numbers that have a direct"),
        ({"json": {"vector": [0.0] * 16, "fingerprint": "{mine}"}}, 400, "that have a direction"),
        ({"json": {"vector": [1e300] * 16, "fingerprint": "{mine}"}}, 200, ""),
        ({"content": photo(), "params": {"submodel": "Q"}}, 400, "unknown size 'Q'"),
        ({"content": photo(), "params": {"at_least": "7xS"}}, 400, "not 2"),
        ({"content": photo(), "params": {"k": 0}}, 422, "greater than or equal to 1"),
        ({"content": photo(), "params": {"k": 101}}, 422, "less than or equal to 100"),
    ],
)
def test_what_cannot_be_asked_is_told(retriever, sent, status, message):
    if "json" in sent and sent["json"]["fingerprint"] == "{mine}":
        mine = {"fingerprint": retriever.encoder.fingerprint}
        sent = {"json": sent["json"] | mine}
    with client(retriever, most_bytes=2_000) as asked:
        said = asked.post("/search", **sent)
        assert said.status_code == status
        assert message in said.text


def test_filters_go_for_images_and_vectors_alike(retriever):
    everything = {hit.path: hit.label for hit in retriever.search(photo(), k=12)}
    one = next(iter(everything))
    with client(retriever) as asked:
        vector = asked.post("/encode", content=photo()).json()
        sent = {name: vector[name] for name in ("vector", "fingerprint")}

        def found(**params: object) -> list[set[str]]:
            answers = [
                asked.post("/search", content=photo(), params={"k": 12, **params}).json(),
                asked.post("/search", json=sent, params={"k": 12, **params}).json(),
            ]
            return [{hit["path"] for hit in answer["hits"]} for answer in answers]

        assert found() == [set(everything)] * 2
        assert found(**{"in": one}) == [{one}] * 2
        assert found(exclude=one) == [set(everything) - {one}] * 2
        of_class = {path for path, label in everything.items() if label == everything[one]}
        assert 0 < len(of_class) < len(everything)
        assert found(label=everything[one]) == [of_class] * 2
        refused = asked.post("/search", content=photo(), params={"label": "nobody's"})
        assert (refused.status_code, "nobody's" in refused.text) == (400, True)


def test_pictures_are_those_of_the_index_and_no_others(retriever, shared_photos):
    with client(retriever) as asked:
        got = asked.get("/images/0")
        assert got.content == (shared_photos / retriever.index.path_of(0)).read_bytes()
        assert got.headers["content-type"] == "image/png"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert asked.get("/images/99").status_code == 404
        assert asked.get("/images/-1").status_code == 422
        assert asked.get("/images/..%2f..%2fetc").status_code in (404, 422)


def test_health_and_metrics_say_what_is_going_on(retriever):
    with client(retriever) as asked:
        said = asked.get("/health").json()
        assert (said["status"], said["images"]) == ("ready", len(retriever.index))
        assert said["fingerprint"] == retriever.encoder.fingerprint
        asked.post("/search", content=photo(), params={"submodel": "S"})
        asked.get("/images/3")
        text = asked.get("/metrics").text
        for line in (
            'matvit_requests_total{path="/search",status="200"} 1.0',
            'matvit_requests_total{path="/images/{id}",status="200"} 1.0',
            'matvit_encode_seconds_count{submodel="S"} 1.0',
            "matvit_decode_seconds_count 1.0",
            "matvit_search_seconds_count 1.0",
            "matvit_size_in_use 1.0",
            f"matvit_index_images {float(len(retriever.index))}",
        ):
            assert line in text


def test_nobody_asks_without_the_token(retriever):
    with client(retriever, token="secret") as asked:
        assert asked.get("/health").status_code == 200
        for wrong in ({}, {"Authorization": "Bearer no"}, {"Authorization": "secret"}):
            said = asked.post("/search", content=photo(), headers=wrong)
            assert (said.status_code, said.headers["www-authenticate"]) == (401, "Bearer")
        right = {"Authorization": "Bearer secret"}
        assert asked.post("/search", content=photo(), headers=right).status_code == 200


def slowly(monkeypatch, begun: threading.Event, go_on: threading.Event) -> None:
    def answering(*arguments):
        begun.set()
        assert go_on.wait(20)
        return embed(*arguments)

    monkeypatch.setattr(batches, "embed", answering)


def test_who_comes_when_too_many_wait_is_told_to_come_again(retriever, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    slowly(monkeypatch, begun, go_on)
    with client(retriever, most_waiting=1) as asked:
        codes: list[int] = []

        def ask() -> None:
            codes.append(asked.post("/search", content=photo()).status_code)

        first = threading.Thread(target=ask)
        first.start()
        assert begun.wait(20)
        second = threading.Thread(target=ask)
        second.start()
        queue = asked.app.state.server.batches._queue
        deadline = time.monotonic() + 20
        while queue.empty() and time.monotonic() < deadline:
            time.sleep(0.001)
        third = asked.post("/search", content=photo())
        assert (third.status_code, third.headers["retry-after"]) == (503, "1")
        go_on.set()
        first.join(20)
        second.join(20)
        assert codes == [200, 200]


def test_who_waits_too_long_is_told(retriever, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    slowly(monkeypatch, begun, go_on)
    with client(retriever, limit_s=0.05) as asked:
        said = asked.post("/search", content=photo())
        assert (said.status_code, "no answer within 0.05 s" in said.text) == (504, True)
        go_on.set()


def test_an_error_reaches_those_who_asked_and_nobody_else(retriever, monkeypatch):
    def failing(*_):
        raise ValueError("broken")

    with client(retriever) as asked:
        monkeypatch.setattr(batches, "embed", failing)
        with pytest.raises(ValueError, match="broken"):  # the test client raises; a server says 500
            asked.post("/search", content=photo())
        monkeypatch.undo()
        assert asked.post("/search", content=photo()).status_code == 200


def test_questions_that_come_together_are_answered_together(retriever, monkeypatch):
    sizes: list[int] = []

    def counting(encoder, pixels, submodel):
        sizes.append(len(pixels))
        return embed(encoder, pixels, submodel)

    monkeypatch.setattr(batches, "embed", counting)
    monkeypatch.setattr(server, "Batches", lambda *a, **b: batches.Batches(*a, **b, wait_ms=2000))
    with client(retriever) as asked:
        found: dict[int, dict] = {}

        def ask(red: int) -> None:
            found[red] = asked.post("/search", content=photo(red), params={"k": 2}).json()

        threads = [threading.Thread(target=ask, args=(red,)) for red in range(0, 256, 16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sizes == [16]
    for red, said in found.items():
        wanted = retriever.search(photo(red), k=2)
        assert [hit["id"] for hit in said["hits"]] == [hit.id for hit in wanted]


def test_a_new_generation_answers_without_a_restart(
    tiny_model, built, shared_photos, tmp_path, monkeypatch
):
    path = tmp_path / "index"
    shutil.copytree(built, path)
    retriever = Retriever(tiny_model, ImageIndex.open(path))
    monkeypatch.setattr(server, "_LOOK_S", 0.01)
    gone = retriever.search(photo()).hits[0].id
    with client(retriever) as asked:
        assert asked.post("/search", content=photo()).json()["hits"][0]["id"] == gone
        ImageIndex.open(path).remove(ids=[gone])
        deadline = time.monotonic() + 30
        while asked.get("/health").json()["generation"] == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        said = asked.post("/search", content=photo()).json()
        assert said["generation"] == 2
        assert gone not in [hit["id"] for hit in said["hits"]]
        shutil.move(path, tmp_path / "away")  # what is open goes on answering
        time.sleep(0.1)
        assert asked.post("/search", content=photo()).status_code == 200


def test_following_the_load_a_client_may_ask_for_a_floor(retriever):
    with client(retriever, slo_ms=1e9) as asked:
        server_ = asked.app.state.server
        assert asked.get("/health").json()["sizes"] == ["S", "M", "L", "XL"]
        server_.batches._pace.choose = lambda waiting_ms: 0
        said = asked.post("/search", content=photo()).json()
        assert (said["submodel"], said["followed_load"]) == ("S", True)
        said = asked.post("/search", content=photo(), params={"at_least": "L"}).json()
        assert said["submodel"] == "L"
        said = asked.post("/search", content=photo(), params={"submodel": "M"}).json()
        assert (said["submodel"], said["followed_load"]) == ("M", False)


def test_what_can_be_asked_is_described(retriever):
    with client(retriever) as asked:
        paths = asked.get("/openapi.json").json()["paths"]
        assert set(paths) == {"/search", "/encode", "/images/{id}", "/health", "/metrics"}
        body = paths["/search"]["post"]["requestBody"]["content"]
        assert set(body) == {"image/*", "application/octet-stream", "application/json"}


def test_a_page_beside_it_is_for_everybody_and_nothing_else_is(retriever, tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<p>Hello")
    (tmp_path / "secret").write_text("secret")
    with client(retriever, token="t", page=str(folder)) as asked:
        assert asked.get("/page/").text == "<p>Hello"
        assert asked.get("/page/%2e%2e/secret").status_code == 404
        assert asked.get("/images/0").status_code == 401
    with client(retriever) as asked:
        assert asked.get("/page/").status_code == 404
