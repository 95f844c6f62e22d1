"""A model with an index, and a server of both, for the tests of the server."""

import base64
import io
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import torch
import uvicorn
from PIL import Image
from scoring import calibrate, make_model, pictures

from hysac.index import Index
from hysac.models.pretrained import model_directory
from hysac.scoring import SafetyScorer
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import find_items
from hysac.scoring.streaming import encode_items

WORDS = ["dog", "cat", "bird", "house", "tree", "storm", "boat", "road", "river", "lamp", "hill", "cloud"]
CAPTIONS = [f"a {colour} {word}" for colour in ("red", "small") for word in WORDS]


def make_index(directory):
    """A calibrated model in ``directory``, with an index of six images and 24 captions, half unsafe."""
    model_dir = make_model(directory / "model")
    pictures(directory / "secret-photos", 6)
    scorer = SafetyScorer.from_pretrained(model_dir)
    index = Index.create(
        directory / "photos.index",
        model=weights_digest(model_directory(model_dir)),
        model_dir=str(model_dir),
        curv=float(scorer.model.curvature.detach()),
        width=scorer.model.embed_dim,
    )
    index.add(encode_items(scorer, find_items([str(directory / "secret-photos")], texts=CAPTIONS)))
    distances, images = index.distances(), index.is_image()
    middles = {"text": float(np.median(distances[~images])), "image": float(np.median(distances[images]))}
    calibrate(model_dir, **middles, spread=1e-3)
    return SafetyScorer.from_pretrained(model_dir), index


def extreme(scorer):
    """The captions that are nearest to and farthest from the origin: a safe and an unsafe one."""
    distances = [score.distance for score in scorer(texts=CAPTIONS)]
    return CAPTIONS[int(np.argmin(distances))], CAPTIONS[int(np.argmax(distances))]


def png(seed=0, size=(40, 36), mode="RGB"):
    """An image file in base64."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
    written = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


@contextmanager
def serving(app):
    """The address of a server in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
