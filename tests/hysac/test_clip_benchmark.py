"""A model in clip_benchmark: its vectors, and its figures where it is installed."""

import math

import pytest
import torch
from PIL import Image
from test_classifier import CLASSNAMES, tokenizer
from test_model import CFG, distances, images, make_model, spread_scalars, tokens
from torch.nn.functional import normalize

import hysac
from hysac.evaluation.clip_benchmark import RADIUS, AsCosines, load_hysac, registered

ITEMS = 12


def benchmark(part):
    return pytest.importorskip(
        f"clip_benchmark.{part}",
        reason="clip_benchmark is not installed: pip install 'hysac[clip-benchmark]'",
    )


@pytest.fixture(scope="module")
def model():
    """With points at many radii."""
    model = spread_scalars(make_model()).eval()
    with torch.no_grad():
        model.visual.proj.mul_(3)
        model.text_projection.mul_(3)
    return model


def test_cosines_are_those_of_distances(model):
    adapter = AsCosines(model)
    with torch.no_grad():
        x, y = model.encode_image(images(6), normalize=True), model.encode_text(tokens(5), normalize=True)
        u, v = normalize(adapter.encode_image(images(6))), normalize(adapter.encode_text(tokens(5)))
    wanted = -torch.cosh(math.sqrt(0.4) * distances(x, y, 0.4)) / RADIUS**2
    torch.testing.assert_close(u @ v.T, wanted, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normalize(u) @ v.T, u @ v.T)
        assert (u @ v.T).dtype == torch.float64


def test_the_prompts_of_a_class_are_one_vector(model):
    rows = AsCosines(model, classes=True).encode_text(tokens(5))
    one = hysac.build_zero_shot_classifier(model, lambda prompts: tokens(5), ["a"], ["{}"] * 5)
    assert torch.equal(rows, rows[:1].expand_as(rows))
    torch.testing.assert_close(rows[0, :12].float(), math.sqrt(0.4) * one.points[0], rtol=1e-5, atol=1e-7)


def test_points_too_far_away_are_refused(model):
    far = make_model()
    with torch.no_grad():
        far.visual_alpha.fill_(0.0)
        far.visual.proj.mul_(1e3)
    with pytest.raises(ValueError, match=r"must be finite, with sqrt\(c\)\|x\| below 1024, got "):
        AsCosines(far).encode_image(images(2))


class Captioned(torch.utils.data.Dataset):
    """What clip_benchmark reads: images with several captions, or with a class."""

    classes, templates = CLASSNAMES, ["a photo of {c}.", "much {c}"]

    def __init__(self, has_labels):
        self.images, self.has_labels = images(ITEMS), has_labels

    def __len__(self):
        return ITEMS

    def __getitem__(self, index):
        captions = [f"thing {index}", f"{index} of them"]
        return self.images[index], index % len(CLASSNAMES) if self.has_labels else captions


def loader(has_labels):
    def collate(batch):
        inputs, targets = zip(*batch, strict=True)
        return torch.stack(inputs), torch.tensor(targets) if has_labels else list(targets)

    return torch.utils.data.DataLoader(Captioned(has_labels), batch_size=5, collate_fn=collate)


def test_retrieval_is_by_distance(model):
    retrieval = benchmark("metrics.zeroshot_retrieval")
    data = loader(has_labels=False)
    got = retrieval.evaluate(AsCosines(model), data, tokenizer, "cpu", amp=False, recall_k_list=[1, 3])
    captions = [text for _, rows in data for row in rows for text in row]
    with torch.no_grad():
        image = torch.cat([model.encode_image(x, normalize=True) for x, _ in data])
        text = model.encode_text(tokenizer(captions), normalize=True)
    near, own = distances(text, image, 0.4), torch.arange(2 * ITEMS) // 2
    for k in (1, 3):
        found = (near.argsort(1)[:, :k] == own[:, None]).any(1)
        back = (own[near.T.argsort(1)[:, :k]] == torch.arange(ITEMS)[:, None]).any(1)
        assert got[f"image_retrieval_recall@{k}"] == pytest.approx(found.double().mean().item())
        assert got[f"text_retrieval_recall@{k}"] == pytest.approx(back.double().mean().item())


def test_classification_is_by_distance(model):
    classification = benchmark("metrics.zeroshot_classification")
    data, adapter = loader(has_labels=True), AsCosines(model, classes=True)
    options = {"device": "cpu", "amp": False}
    matrix = classification.zero_shot_classifier(
        adapter, tokenizer, CLASSNAMES, Captioned.templates, **options
    )
    logits, _ = classification.run_classification(adapter, matrix, data, **options)
    templates = [template.replace("{c}", "{}") for template in Captioned.templates]
    ours = hysac.build_zero_shot_classifier(model, tokenizer, CLASSNAMES, templates)
    with torch.no_grad():
        wanted = ours(model.encode_image(images(ITEMS), normalize=True))
    assert torch.equal(logits.argsort(1), wanted.argsort(1))


def test_both_types_are_there_for_a_while(model, tmp_path):
    models = benchmark("models")
    cfg = CFG | {"text_cfg": CFG["text_cfg"] | {"vocab_size": 49408}}
    saved = hysac.HySAC.from_clip(hysac.models.model.CLIP(**cfg), model_cfg=cfg)
    hysac.save_pretrained(saved, tmp_path)
    before = list(models.MODEL_TYPES), dict(models.TYPE2FUNC)
    with registered():
        for name, classes in (("hysac", False), ("hysac_classes", True)):
            adapter, transform, tokenize = models.load_clip(name, str(tmp_path), "", None, "cpu")
            assert adapter.classes == classes
            assert transform(Image.new("P", (40, 30))).shape == (3, 16, 16)
            assert tokenize(["a cat"]).shape == (1, 6)
    assert (list(models.MODEL_TYPES), dict(models.TYPE2FUNC)) == before


def test_a_name_is_a_model_too():
    adapter, transform, tokenize = load_hysac("hysac-toy")
    assert not adapter.training
    assert transform.transforms
    assert tokenize(["a cat"]).dtype == torch.int64
