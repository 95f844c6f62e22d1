"""The server: what it answers, what it refuses, that it fails closed, and that it batches."""

import asyncio
import base64
import io
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from serving import CAPTIONS, extreme, make_index, png, serving

from hysac.cli import main
from hysac.index import search
from hysac.scoring import SafetyScorer

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient  # noqa: E402

from hysac.serve.app import create_app  # noqa: E402
from hysac.serve.batching import Batcher, EncodingError, OverloadedError  # noqa: E402
from hysac.serve.disk import Disk, sample_places  # noqa: E402
from hysac.serve.limits import HEADERS, Limits  # noqa: E402

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serve")
    return (*make_index(directory), directory)


@pytest.fixture(scope="module")
def scorer(made):
    return made[0]


@pytest.fixture(scope="module")
def index(made):
    return made[1]


@pytest.fixture(scope="module")
def client(scorer, index):
    with TestClient(create_app(scorer, index)) as client:
        yield client


def bare(scorer, **other):
    """The same model with other thresholds and bounds."""
    options = {"points": scorer.points, "bounds": scorer.bounds, **other}
    return SafetyScorer(scorer.model, scorer.preprocess, scorer.tokenizer, **options)


class TestScore:
    def test_items_in_their_order(self, client, scorer):
        items = [{"text": CAPTIONS[0]}, {"image": png()}, {"text": CAPTIONS[1]}]
        answer = client.post("/score", json={"items": items})
        assert answer.status_code == 200
        picture = Image.open(io.BytesIO(base64.b64decode(png())))
        image, first, second = scorer(images=[picture], texts=CAPTIONS[:2])
        for got, wanted in zip(answer.json()["scores"], (first, image, second), strict=True):
            assert got["distance"] == pytest.approx(wanted.distance, rel=1e-5)
            assert (got["modality"], got["decision"]) == (wanted.modality, wanted.decision)
            assert got["probability"] == pytest.approx(wanted.probability, abs=1e-3)
            assert got["nearest_class"] == wanted.nearest_class

    def test_a_long_text_counts_by_its_farthest_window(self, client, scorer):
        text = " ".join(CAPTIONS * 10)
        (wanted,) = scorer(texts=[text])
        (got,) = client.post("/score", json={"items": [{"text": text}]}).json()["scores"]
        assert got["distance"] == pytest.approx(wanted.distance, rel=1e-5)

    def test_items_that_cannot_be_read_are_named(self, client):
        items = [{"text": "a"}, {"image": "AAAA"}, {"image": "not base64!"}, {"text": "a" * 201}]
        answer = client.post("/score", json={"items": items})
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["error"] == "3 of the items cannot be scored"
        assert [one["item"] for one in problem["items"]] == [1, 2, 3]
        told = [one["error"] for one in problem["items"]]
        assert "none of JPEG, PNG" in told[0]
        assert "0x" not in told[0], "no address of the server's memory"
        assert "not in base64" in told[1]
        assert "a word of more than 200 letters" in told[2]

    def test_an_image_of_too_many_pixels(self, scorer, index):
        small = SafetyScorer(scorer.model, scorer.preprocess, scorer.tokenizer, max_pixels=100)
        with TestClient(create_app(small)) as client:
            answer = client.post("/score", json={"items": [{"image": png()}]})
        assert answer.status_code == 422
        assert "40 pixels are more than 100" in answer.json()["items"][0]["error"]

    @pytest.mark.parametrize(
        "body",
        [
            {"items": []},
            {"items": [{"text": "a"}] * 65},
            {"items": [{}]},
            {"items": [{"text": "a", "image": png()}]},
            {"items": [{"text": ""}]},
            {"items": [{"text": "  \n"}]},
            {"items": [{"text": "a b " * 2501}]},
            {"items": [{"text": 5}]},
            {"items": [{"text": "a", "more": 1}]},
            {"items": "a"},
            {"items": [7]},
            {"item": []},
            [],
            None,
        ],
    )
    def test_what_is_not_as_described(self, client, body):
        answer = client.post("/score", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"{", 400),
            (b"\xff\xfe", 400),
            (b"[" * 100_000, 400),
            (b"", 422),
            (rb'{"items": [{"text": "\ud800"}]}', 422),
            (rb'{"items": [{"\ud800": "\ud800"}]}', 422),
            (b'{"items": [{"text": NaN}]}', 422),
        ],
    )
    def test_what_is_no_json_or_no_text(self, client, body, status):
        answer = client.post("/score", content=body, headers=JSON)
        assert answer.status_code == status
        assert answer.json()["error"]

    def test_a_body_that_is_not_called_json(self, client):
        body = json.dumps({"items": [{"text": "a"}]})
        assert client.post("/score", content=body, headers={"content-type": "text/plain"}).status_code == 422

    def test_texts_of_too_many_windows(self, scorer):
        with TestClient(create_app(scorer, limits=Limits(rows=3))) as client:
            answer = client.post("/score", json={"items": [{"text": "a dog " * 100}]})
            assert answer.status_code == 413
            assert "windows, more than 3" in answer.json()["error"]

    @pytest.mark.parametrize("distance", [math.nan, math.inf])
    def test_a_score_that_is_not_finite_is_an_error(self, scorer, index, monkeypatch, distance):
        def broken(modality, rows):
            return torch.zeros(len(rows), scorer.model.embed_dim), torch.full((len(rows),), distance)

        other = bare(scorer)
        monkeypatch.setattr(other, "encode_rows", broken)
        with TestClient(create_app(other, index)) as client:
            answers = [
                client.post("/score", json={"items": [{"text": "a"}]}),
                client.post("/search", json={"text": "a", "policy": "block"}),
            ]
        for answer in answers:
            assert answer.status_code == 500
            assert re.search("distance of item 0 is (nan|inf)", answer.json()["error"])
            assert "safe" not in answer.text

    def test_a_model_that_fails(self, scorer, monkeypatch):
        def broken(modality, rows):
            raise RuntimeError("out of memory")

        other = bare(scorer)
        monkeypatch.setattr(other, "encode_rows", broken)
        with TestClient(create_app(other)) as client:
            answer = client.post("/score", json={"items": [{"text": "a"}]})
        assert answer.status_code == 500
        assert "the model failed" in answer.json()["error"]


class TestSearch:
    @pytest.mark.parametrize("policy", ["as-asked", "redirect", "block"])
    @pytest.mark.parametrize("kind", ["image", "text", "any", None])
    def test_as_the_library_finds(self, client, scorer, index, policy, kind):
        for text in extreme(scorer):
            body = {"text": text, "k": 4, "modality": kind, "policy": policy}
            got = client.post("/search", json=body).json()
            wanted = search(index, scorer, text=text, k=4, modality=kind, policy=policy)
            assert got["blocked"] == wanted.is_blocked
            assert got["moved"] == pytest.approx(wanted.moved, rel=1e-4)
            assert [hit["id"] for hit in got["hits"]] == [hit.place for hit in wanted.hits]
            for hit, other in zip(got["hits"], wanted.hits, strict=True):
                assert hit["distance"] == pytest.approx(other.distance, rel=1e-4, abs=1e-4)
                assert hit["score"]["decision"] == other.score.decision
                assert (
                    (hit["text"] is None) == (hit["picture"] is not None) == (other.score.modality == "image")
                )

    def test_an_image(self, client):
        found = client.post("/search", json={"image": png(), "k": 2}).json()
        assert found["query"]["modality"] == "image"
        assert all(hit["text"] in CAPTIONS for hit in found["hits"])

    @pytest.mark.parametrize(
        "change",
        [
            {"k": 0},
            {"k": 101},
            {"k": True},
            {"k": "5"},
            {"k": 1.5},
            {"policy": "trust"},
            {"modality": "video"},
            {"redirection": {"to": "hell"}},
            {"redirection": {"margin": 1e9}},
            {"redirection": None},
        ],
    )
    def test_bad_options(self, client, change):
        assert client.post("/search", json={"text": "a", **change}).status_code == 422

    def test_a_whole_number_is_an_integer(self, client):
        assert client.post("/search", json={"text": "a dog", "k": 2.0}).status_code == 200

    def test_what_the_model_cannot_decide(self, scorer, index):
        body = {"text": extreme(scorer)[1]}
        with TestClient(create_app(bare(scorer, points=None, bounds=None), index)) as client:
            for change in (
                {"policy": "block"},
                {"policy": "redirect"},
                {"policy": "redirect", "redirection": {"to": "nearest-safe"}},
            ):
                answer = client.post("/search", json={**body, **change})
                assert answer.status_code == 409
                assert "needs" in answer.json()["error"]
            assert client.get("/about").json()["policies"] == ["as-asked"]
            (score,) = client.post("/score", json={"items": [body]}).json()["scores"]
            assert score["decision"] is None

    def test_without_an_index(self, scorer):
        with TestClient(create_app(scorer)) as client:
            assert client.post("/score", json={"items": [{"text": "a"}]}).status_code == 200
            answers = [
                client.post("/search", json={"text": "a"}),
                client.post("/redirect", json={"text": "a"}),
                client.get("/map"),
                client.get("/pictures/0"),
            ]
            assert client.get("/about").json()["policies"] == []
        for answer in answers:
            assert answer.status_code == 409
            assert "no index" in answer.json()["error"]


class TestRedirect:
    def test_the_way_ends_where_a_search_would_start(self, client, scorer):
        unsafe = extreme(scorer)[1]
        how = {"to": "nearest-safe"}
        way = client.post(
            "/redirect", json={"text": unsafe, "modality": "text", "redirection": how, "steps": 5}
        )
        steps = way.json()["steps"]
        assert [step["share"] for step in steps] == [0, 0.25, 0.5, 0.75, 1]
        assert steps[0]["text"]["text"] == unsafe
        assert steps[-1]["text"]["score"]["decision"] == "safe"
        found = client.post(
            "/search", json={"text": unsafe, "modality": "text", "policy": "redirect", "redirection": how}
        )
        assert steps[-1]["text"]["id"] == found.json()["hits"][0]["id"]
        assert all(math.hypot(step["place"]["x"], step["place"]["y"]) < 1 for step in steps)

    def test_a_safe_query_stays(self, client, scorer):
        way = client.post("/redirect", json={"text": extreme(scorer)[0]}).json()
        assert [step["share"] for step in way["steps"]] == [0]

    def test_a_margin_that_leaves_nothing(self, client, scorer):
        body = {"text": extreme(scorer)[1], "redirection": {"margin": -50}}
        answer = client.post("/redirect", json=body)
        assert answer.status_code == 409
        assert "must be positive" in answer.json()["error"]


class TestPictures:
    def decision(self, scorer, index, place):
        return scorer.judge("image", float(index.distances()[place])).decision

    def test_unsafe_ones_are_blurred_until_asked_for(self, client, scorer, index):
        decisions = set()
        for place in range(6):
            decisions.add(decision := self.decision(scorer, index, place))
            plain, shown = (client.get(f"/pictures/{place}?reveal={reveal}") for reveal in ("false", "true"))
            assert plain.headers["content-type"] == "image/jpeg"
            assert (plain.content == shown.content) == (decision == "safe")
            detail = [
                float(
                    torch.tensor(
                        list(Image.open(io.BytesIO(one.content)).convert("L").tobytes()), dtype=torch.float
                    ).std()
                )
                for one in (plain, shown)
            ]
            assert (detail[0] < detail[1] / 2) == (decision == "unsafe")
        assert decisions == {"safe", "unsafe"}

    def test_undecided_ones_are_blurred(self, scorer, index):
        with TestClient(create_app(bare(scorer, points=None), index)) as client:
            assert client.get("/pictures/0").content != client.get("/pictures/0?reveal=true").content
            found = client.post("/search", json={"text": "a dog"}).json()
            assert all(hit["hidden"] for hit in found["hits"])

    @pytest.mark.parametrize(
        ("number", "status"),
        [("6", 404), ("999", 404), ("-1", 422), ("a", 422), ("01", 422), ("9" * 40, 422)],
    )
    def test_no_such_image(self, client, number, status):
        assert client.get(f"/pictures/{number}").status_code == status

    def test_reveal_is_true_or_false(self, client):
        assert client.get("/pictures/0?reveal=1").status_code == 422

    @pytest.mark.slow
    def test_an_image_that_is_gone(self, tmp_path):
        scorer, index = make_index(tmp_path)
        (tmp_path / "secret-photos" / "0.png").unlink()
        with TestClient(create_app(scorer, index)) as client:
            answer = client.get("/pictures/0")
        assert answer.status_code == 404
        assert answer.json() == {"error": "image 0 cannot be read any more"}


class TestMap:
    def test_the_radius_is_the_distance(self, client, index):
        drawn = client.get("/map").json()
        assert drawn["total"] == len(drawn["items"]) == 30
        for item in drawn["items"]:
            radius = math.hypot(item["place"]["x"], item["place"]["y"])
            assert radius == pytest.approx(math.tanh(math.sqrt(index.curv) * item["distance"] / 2), rel=1e-5)

    def test_a_geodesic_to_the_root_is_a_radius(self):
        points = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        disk = Disk(points, 0.5)
        near, far = (disk.place(scale * points) for scale in (0.3, 2.0))
        for (x, y), (other_x, other_y) in zip(near, far, strict=True):
            assert math.atan2(y, x) == pytest.approx(math.atan2(other_y, other_x), abs=1e-9)

    def test_other_points(self):
        disk = Disk(torch.ones(1, 3), 1.0)
        places = disk.place(torch.tensor([[0.0, 0.0, 0.0], [1e30, 0.0, 0.0]]))
        assert places[0] == (0, 0)
        assert math.hypot(*places[1]) < 1

    def test_a_sample_is_always_the_same(self):
        there = torch.ones(2000, dtype=torch.bool)
        there[::2] = False
        places = sample_places(there, 500)
        assert len(places) == 500
        assert bool(there[places].all())
        assert torch.equal(places, sample_places(there, 500))
        assert torch.equal(places, places.sort().values)


class TestGuard:
    def test_every_answer_has_the_headers(self, client):
        for answer in (
            client.get("/"),
            client.get("/healthz"),
            client.get("/nowhere"),
            client.put("/score"),
            client.post("/score", content=b"{", headers=JSON),
        ):
            assert HEADERS.items() <= dict(answer.headers).items()

    @pytest.mark.slow
    def test_unknown_paths_and_methods(self, client):
        assert client.get("/nowhere").status_code == 404
        assert client.get("/page/../app.py").status_code == 404
        assert client.get("/page/%2e%2e%2fapp.py").status_code == 404
        answer = client.put("/score")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")

    @pytest.mark.parametrize("is_counted", [True, False])
    def test_a_body_that_is_too_large(self, scorer, is_counted):
        def parts():
            for _ in range(20):
                yield b" " * 1000

        with TestClient(create_app(scorer, limits=Limits(body=10_000))) as client:
            body = b" " * 20_000 if is_counted else parts()
            answer = client.post("/score", content=body, headers=JSON)
            assert answer.status_code == 413
            assert "more than 10000 bytes" in answer.json()["error"]
            assert client.get("/healthz").status_code == 200

    def test_a_length_far_beyond_is_refused_unread(self, scorer):
        with serving(create_app(scorer, limits=Limits(body=1000))) as address:
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 413")

    def test_a_body_that_never_comes(self, scorer):
        with serving(create_app(scorer, limits=Limits(timeout=0.3))) as address:
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 504")

    @pytest.mark.slow
    def test_a_model_that_takes_too_long(self, scorer, monkeypatch):
        other, release = bare(scorer), threading.Event()
        encode = other.encode_rows
        monkeypatch.setattr(other, "encode_rows", lambda *call: release.wait(20) and encode(*call))
        with TestClient(create_app(other, limits=Limits(timeout=0.2))) as client:
            answer = client.post("/score", json={"items": [{"text": "a"}]})
            assert answer.status_code == 504
            assert client.get("/healthz").status_code == 200
            release.set()
            assert client.post("/score", json={"items": [{"text": "a"}]}).status_code in (200, 504)

    def test_an_error_tells_nothing_of_the_server(self, scorer, index, monkeypatch, caplog):
        monkeypatch.setattr(
            "hysac.serve.service.search_from", lambda *_, **__: Path("/no/such/secret").read_text()
        )
        with TestClient(create_app(scorer, index)) as client:
            answer = client.post("/search", json={"text": "a"})
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed; its log says more"}
        assert "/no/such/secret" in caplog.text
        assert HEADERS.items() <= dict(answer.headers).items()

    def test_a_token(self, scorer, index):
        with TestClient(create_app(scorer, index, token="s3cret")) as client:
            for path in ("/about", "/map", "/metrics", "/pictures/0", "/nowhere"):
                for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
                    answer = client.get(path, headers=headers)
                    assert answer.status_code == 401
                    assert answer.headers["www-authenticate"] == "Bearer"
            assert client.post("/score", content=b" " * 10).status_code == 401
            for path in ("/", "/api", "/healthz", "/openapi.json", "/page/app.js"):
                assert client.get(path).status_code == 200
            good = {"authorization": "bearer s3cret"}
            assert client.get("/about", headers=good).status_code == 200
            body = {"items": [{"text": "a"}]}
            assert client.post("/score", json=body, headers=good).status_code == 200
            assert "HTTPBearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]

    def test_an_empty_token(self, scorer):
        with pytest.raises(ValueError, match="the token is empty"):
            create_app(scorer, token=" ")

    def test_host_names(self, scorer):
        with TestClient(create_app(scorer, hosts=["localhost", "[::1]"])) as client:
            for host, status in (
                ("localhost", 200),
                ("LOCALHOST:8000", 200),
                ("[::1]:8000", 200),
                ("evil.example", 400),
                ("localhost.evil.example", 400),
            ):
                assert client.get("/healthz", headers={"host": host}).status_code == status

    @pytest.mark.slow
    def test_bodies_that_are_held_together(self, scorer):
        limits = Limits(body=1000, bodies=1500, timeout=20)
        with serving(create_app(scorer, limits=limits)) as address:
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as held:
                held.sendall(b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: 901\r\n\r\n" + b" " * 900)
                time.sleep(0.3)
                answer = httpx.post(f"{address}/score", content=b" " * 900, timeout=20)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            time.sleep(0.3)
            assert httpx.post(f"{address}/score", content=b" " * 900, timeout=20).status_code == 422

    @pytest.mark.parametrize(
        "options", [{"timeout": 0}, {"threads": 0}, {"body": 0}, {"body": 9, "bodies": 8}, {"queue": 5}]
    )
    def test_bad_limits(self, options):
        with pytest.raises(ValueError, match="must be"):
            Limits(**options)


def test_no_answer_tells_a_path(client, made):
    """Neither of the index nor of its images, whatever is asked."""
    scorer, _, directory = made
    answers = [
        client.get(path)
        for path in ("/", "/api", "/about", "/map", "/metrics", "/openapi.json", "/pictures/9")
    ]
    for text in extreme(scorer):
        for policy in ("as-asked", "redirect", "block"):
            answers.append(
                client.post("/search", json={"text": text, "policy": policy, "k": 50, "modality": "any"})
            )
        for to in ("origin", "nearest-safe"):
            answers.append(client.post("/redirect", json={"text": text, "redirection": {"to": to}}))
    for answer in answers:
        for told in (str(directory), "secret-photos", "photos.index", ".png"):
            assert told not in answer.text


@pytest.mark.slow
def test_no_path_in_what_an_index_lacks(tmp_path):
    scorer, index = make_index(tmp_path)
    index.delete([name for name in index.names() if name.endswith(".png")])
    with TestClient(create_app(scorer, index)) as client:
        answer = client.post("/search", json={"text": "a", "modality": "image"})
    assert answer.status_code == 409
    assert answer.json() == {"error": "the index has no image"}


def test_metrics(scorer, index):
    with TestClient(create_app(scorer, index)) as client:
        client.post("/score", json={"items": [{"text": text} for text in extreme(scorer)]})
        client.get("/nowhere/at/all")
        lines = client.get("/metrics").text.splitlines()
    for line in (
        'hysac_requests_total{path="/score",status="200"} 1.0',
        'hysac_requests_total{path="other",status="404"} 1.0',
        'hysac_items_total{decision="safe",modality="text"} 1.0',
        'hysac_items_total{decision="unsafe",modality="text"} 1.0',
        'hysac_batch_rows_sum{modality="text"} 2.0',
        "hysac_waiting_rows 0.0",
    ):
        assert line in lines


def test_the_page_needs_nothing_from_elsewhere(client):
    names = re.findall(r'(?:src|href)="(/[^"#]*)"', client.get("/").text)
    assert "/page/app.js" in names
    for name in [*names, "/page/draw.js"]:
        answer = client.get(name)
        assert answer.status_code == 200
        assert not re.search(r"""(src|href|import|url)\W+https?:""", answer.text)
        assert "style=" not in answer.text, "the policy forbids it"


def test_the_description_has_what_the_server_answers(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/score", "/search", "/redirect", "/map", "/pictures/{number}", "/about", "/healthz", "/metrics",
    }  # fmt: skip
    shown = client.get("/api").text
    assert all(path in shown for path in described["paths"])
    assert all(f'id="{name}"' in shown for name in described["components"]["schemas"])


class Encoder:
    """Stands for the model: counts, and waits until it is let."""

    def __init__(self):
        self.sizes, self.go = [], threading.Event()

    def __call__(self, modality, rows):
        self.go.wait(20)
        self.sizes.append((modality, len(rows)))
        return rows.float(), rows.float().sum(-1)


def rows(*values):
    return [torch.tensor([value]) for value in values]


class TestBatcher:
    def run(self, test, **options):
        async def started():
            encoder = Encoder()
            batcher = Batcher(encoder, **{"batch_size": 4, "capacity": 100, "linger": 0.0, **options})
            batcher.start()
            try:
                await test(batcher, encoder)
            finally:
                encoder.go.set()
                await batcher.stop()

        asyncio.run(started())

    def test_what_waits_goes_together(self):
        async def test(batcher, encoder):
            first = asyncio.create_task(batcher.encode("text", rows(0)))
            await asyncio.sleep(0.05)
            others = [asyncio.create_task(batcher.encode("text", rows(n))) for n in range(1, 7)]
            image = asyncio.create_task(batcher.encode("image", rows(9)))
            await asyncio.sleep(0.05)
            assert len(batcher) == 7
            encoder.go.set()
            answers = await asyncio.gather(first, *others, image)
            assert [answer[0][1] for answer in answers] == [0, 1, 2, 3, 4, 5, 6, 9]
            assert encoder.sizes == [("text", 1), ("text", 4), ("text", 2), ("image", 1)]

        self.run(test)

    def test_a_request_may_be_larger_than_a_batch(self):
        async def test(batcher, encoder):
            encoder.go.set()
            answers = await batcher.encode("text", rows(*range(10)))
            assert [distance for _, distance in answers] == list(range(10))
            assert sum(size for _, size in encoder.sizes) == 10
            assert max(size for _, size in encoder.sizes) <= 4

        self.run(test)

    def test_requests_that_are_being_read_are_waited_for(self):
        async def test(batcher, encoder):
            encoder.go.set()

            async def late():
                with batcher.expecting():
                    await asyncio.sleep(0.05)
                return await batcher.encode("text", rows(1))

            both = [asyncio.create_task(late()), asyncio.create_task(batcher.encode("text", rows(0)))]
            await asyncio.gather(*both)
            assert encoder.sizes in ([("text", 2)], [("text", 1), ("text", 1)])
            assert await batcher.encode("text", rows(5))

        self.run(test, linger=5.0)

    def test_more_than_may_wait(self):
        async def test(batcher, encoder):
            waiting = asyncio.create_task(batcher.encode("text", rows(*range(100))))
            await asyncio.sleep(0.05)
            with pytest.raises(OverloadedError, match="rows are waiting"):
                await batcher.encode("text", rows(*range(5)))
            encoder.go.set()
            assert len(await waiting) == 100

        self.run(test)

    def test_rows_that_were_given_up_are_not_computed(self):
        async def test(batcher, encoder):
            first = asyncio.create_task(batcher.encode("text", rows(0)))
            await asyncio.sleep(0.05)
            given_up = asyncio.create_task(batcher.encode("text", rows(1, 2, 3)))
            last = asyncio.create_task(batcher.encode("text", rows(4)))
            await asyncio.sleep(0.05)
            given_up.cancel()
            encoder.go.set()
            await asyncio.gather(first, last)
            assert encoder.sizes == [("text", 1), ("text", 1)]

        self.run(test)

    def test_a_batch_that_fails_fails_alone(self):
        async def test(batcher, encoder):
            encoder.go.set()
            with pytest.raises(EncodingError, match="the model failed"):
                await batcher.encode("text", [torch.tensor([1]), torch.tensor([1, 2])])
            assert await batcher.encode("text", rows(1))

        self.run(test)


def test_concurrent_requests_share_batches(scorer, monkeypatch):
    """Behind a batch of another modality that takes long."""
    app, other, release = create_app(bare(scorer)), bare(scorer), threading.Event()
    batcher = app.state.service.engine.batcher
    monkeypatch.setattr(batcher, "_encode", lambda *call: release.wait(60) and other.encode_rows(*call))
    got: list[float] = []
    with TestClient(app) as client:

        def ask(item):
            (score,) = client.post("/score", json={"items": [item]}).json()["scores"]
            got.append(score["distance"])

        def wait_for(condition):
            deadline = time.monotonic() + 30
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)

        items = [{"image": png()}, *({"text": text} for text in CAPTIONS)]
        threads = [threading.Thread(target=ask, args=(item,)) for item in items]
        threads[0].start()
        wait_for(lambda: "hysac_batch_rows_count" in client.get("/metrics").text)
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(batcher) == len(CAPTIONS))
        release.set()
        for thread in threads:
            thread.join()
        lines = client.get("/metrics").text
    assert 'hysac_batch_rows_count{modality="text"} 1.0' in lines
    assert 'hysac_batch_rows_sum{modality="text"} 24.0' in lines
    wanted = [score.distance for score in scorer(texts=CAPTIONS)]
    assert sorted(got[1:]) == pytest.approx(sorted(wanted), rel=1e-5)


def test_a_queue_that_is_full(scorer):
    app = create_app(scorer, limits=Limits(queue=2, rows=2))
    with TestClient(app) as client:
        batcher = app.state.service.engine.batcher
        batcher.capacity = 0
        answer = client.post("/score", json={"items": [{"text": "a"}]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.slow
class TestCommand:
    def run(self, *arguments):
        return main(["serve", *map(str, arguments), "--device", "cpu"])

    def test_errors_before_work(self, made, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("hysac.cli.serve.load_scorer", lambda args: pytest.fail("the model was loaded"))
        model_dir, index = made[2] / "model", made[2] / "photos.index"
        other = make_index(tmp_path)[1]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            cases = {
                "Address already in use": ["--port", port],
                "--port must be 0 to 65535": ["--port", 99999],
                "was made by other weights": ["--index", other.path],
                "is no index": ["--index", tmp_path],
                "must hold a token": ["--token-file", "empty"],
                "No such file": ["--token-file", tmp_path / "nowhere"],
                "timeout must be positive": ["--timeout", 0],
                "cannot listen at 192.0.2.1": ["--host", "192.0.2.1", "--port", 0],
            }
            (tmp_path / "empty").write_text("\n")
            monkeypatch.chdir(tmp_path)
            changed = made[1].path
            (tmp_path / "model").rename(tmp_path / "kept")
            assert changed == index
            for message, arguments in cases.items():
                if "was made" in message:
                    settings = other.path / "index.json"
                    content = json.loads(settings.read_text())
                    settings.write_text(json.dumps({**content, "model": "0" * 64}))
                assert self.run("--model-dir", model_dir, *arguments) == 2
                assert message in capsys.readouterr().err

    def test_without_the_extra(self):
        program = (
            "import sys; sys.modules['fastapi'] = None\n"
            "try: import hysac.serve\n"
            "except ImportError as error: print(error)"
        )
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "pip install 'hysac[serve]'" in told.stdout

    def test_a_process_that_serves_and_stops(self, made, tmp_path):
        (tmp_path / "token").write_text("s3cret\n")
        command = [sys.executable, "-m", "hysac.cli", "serve", "--model-dir", made[2] / "model"]
        options = [
            "--index",
            made[2] / "photos.index",
            "--port",
            "0",
            "--device",
            "cpu",
            "--token-file",
            tmp_path / "token",
        ]
        root = Path(__file__).parents[2]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=root) as process:
            try:
                address = process.stdout.readline().removeprefix("serving at ").strip()
                assert address.startswith("http://127.0.0.1:")
                assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
                assert httpx.get(f"{address}/about").status_code == 401
                headers = {"authorization": "Bearer s3cret"}
                answer = httpx.post(f"{address}/search", json={"text": "a dog"}, headers=headers, timeout=30)
                assert len(answer.json()["hits"]) == 6
                assert httpx.get(f"{address}/healthz", headers={"host": "evil.example"}).status_code == 400
            finally:
                process.terminate()
            assert process.wait(30) in (-15, 143)
