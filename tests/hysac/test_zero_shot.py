"""Zero-shot classification and what is kept of the starting CLIP, against open_clip's own and loops."""

import json
import math
from argparse import Namespace

import numpy as np
import open_clip
import pytest
import torch
from scipy.stats import bootstrap
from scoring import make_model, pictures
from torch.nn import functional as F

import hypkernels as hk
import hysac
from hysac.cli import main
from hysac.cli.start import load_start
from hysac.data import write_toy
from hysac.data.classes import load_class_images, read_names
from hysac.evaluation.retention import compared, retrieval_retention
from hysac.evaluation.zero_shot import (
    class_prototypes,
    hits,
    load_templates,
    prompts_of,
    tangent_mean,
    unit_mean,
    zero_shot_report,
)
from hysac.models.cosine import CosineModel
from hysac.training.config import TrainConfig
from hysac.training.loop import build_model

NAMES = ["dog", "small house", "boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero-shot")


@pytest.fixture(scope="module")
def run(folder):
    """A run whose model is the one it started from."""
    config = TrainConfig(train_data="toy", model="hysac-toy", seed=5, device="cpu")
    run = folder / "run"
    hysac.save_pretrained(build_model(config), run / "model")
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    return run


@pytest.fixture(scope="module")
def images(folder):
    """Three pictures of each of three classes."""
    pixels = pictures(folder / "pixels", 9)
    for number, path in enumerate(pixels):
        place = folder / "classes" / NAMES[number // 3].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    return folder / "classes"


@pytest.fixture(scope="module")
def stock(run):
    """The run's towers as stock open_clip loads them: model, preprocessing, tokenizer."""
    name = f"local-dir:{run / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


class TestMeans:
    @pytest.mark.parametrize("curv", [0.1, 1.0, 10.0])
    def test_the_tangent_mean_is_the_point_of_the_mean_feature(self, curv):
        features = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mean = 0.3 * features.mean(0)
        length = math.sqrt(curv) * mean.norm()
        wanted = torch.sinh(length) / length * mean
        points = hk.exp_map0(0.3 * features, curv)
        torch.testing.assert_close(tangent_mean(points, curv), wanted, rtol=1e-12, atol=0)
        torch.testing.assert_close(tangent_mean(points.float(), curv), wanted.float())

    def test_unit_vectors_that_cancel_have_no_mean(self):
        one = F.normalize(torch.randn(4), dim=0)
        torch.testing.assert_close(unit_mean(torch.stack([one, one])), one)
        with pytest.raises(ValueError, match="cancel each other"):
            unit_mean(torch.stack([one, -one]))

    def test_sizes_that_do_not_fit(self):
        for sizes in ([2, 2], [5, 0], []):
            with pytest.raises(ValueError, match="sizes must be positive and sum to the 5 points"):
                class_prototypes(torch.randn(5, 3), sizes, 1.0)


class TestCosineModel:
    def test_distances_are_in_the_order_of_cosines(self, run):
        model = CosineModel(hysac.from_pretrained(run / "model"))
        image = torch.randn(2, 2, 3, 32, 32)
        text = hysac.get_tokenizer("hysac-toy")(["a dog", "a cat", "two birds", "a house"]).view(2, 2, -1)
        with torch.no_grad():
            x, y = model.encode_image(image, normalize=True), model.encode_text(text, normalize=True)
            raw = model.encode_text(text)
        assert x.shape == y.shape == (2, 2, 96)
        torch.testing.assert_close(F.normalize(raw, dim=-1), y)
        distances = hk.pairwise_dist(x.flatten(0, 1).double(), y.flatten(0, 1).double(), 1.0)
        cosines = F.cosine_similarity(x.view(4, 1, -1).double(), y.view(1, 4, -1).double(), dim=-1)
        torch.testing.assert_close(distances.cosh(), 2 - cosines, rtol=1e-6, atol=1e-6)

    def test_a_plain_open_clip_model_will_do(self, stock, run):
        image = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            wanted = stock[0].encode_image(image, normalize=True)
            torch.testing.assert_close(CosineModel(stock[0]).encode_image(image, normalize=True), wanted)


class TestHits:
    def test_are_those_of_sorting(self):
        generator = torch.Generator().manual_seed(1)
        images, prototypes = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (40, 9))
        labels = torch.randint(9, (40,), generator=generator)
        found = hits(images, prototypes, labels, 0.7)
        order = hk.pairwise_dist(images, prototypes, 0.7).argsort(1)
        for k in (1, 5):
            wanted = (order[:, :k] == labels[:, None]).any(1)
            assert torch.equal(found[k], wanted.double())
        report = zero_shot_report([str(n) for n in range(10)], labels, found)
        per_class = {
            n: (order[labels == n][:, 0] == n).double().mean().item() for n in labels.unique().tolist()
        }
        assert report["per_class"] == {
            str(n): {
                "images": int((labels == n).sum()),
                "top1": pytest.approx(share),
                "top5": pytest.approx(found[5][labels == n].mean().item()),
            }
            for n, share in per_class.items()
        }
        assert report["mean_per_class"] == pytest.approx(np.mean(list(per_class.values())))

    def test_classes_that_tie_share_the_hit(self):
        point = torch.ones(1, 3)
        found = hits(point, point.repeat(4, 1), torch.tensor([2]), 1.0)
        assert {k: hit.tolist() for k, hit in found.items()} == {1: [0.25]}  # 5 of 4 classes say nothing


class TestCompared:
    def test_intervals_are_those_of_scipy(self):
        generator = np.random.default_rng(3)
        before = (generator.random(400) < 0.7).astype(float)
        after = np.where(generator.random(400) < 0.8, before, generator.random(400) < 0.5)
        found = compared(torch.from_numpy(before), torch.from_numpy(after))
        assert found["difference"] == pytest.approx(after.mean() - before.mean())
        assert found["ratio"] == pytest.approx(after.mean() / before.mean())
        for key, statistic in (
            ("difference_95", lambda a, b, axis: b.mean(axis) - a.mean(axis)),
            ("ratio_95", lambda a, b, axis: b.mean(axis) / a.mean(axis)),
        ):
            wanted = bootstrap(
                (before, after), statistic, paired=True, method="percentile", n_resamples=4000, rng=0
            ).confidence_interval
            np.testing.assert_allclose(found[key], wanted, atol=0.005)
        assert compared(torch.from_numpy(before), torch.from_numpy(after)) == found

    def test_what_nobody_finds_has_no_ratio(self):
        found = compared(torch.zeros(5), torch.ones(5))
        assert (found["difference"], found["ratio"], found["ratio_95"]) == (1, None, None)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (torch.zeros(2), torch.zeros(3), r"got \(2,\) and \(3,\)"),
            (torch.zeros(0), torch.zeros(0), "N >= 1"),
            (torch.tensor([2.0]), torch.tensor([0.0]), r"lie in \[0, 1\]"),
        ],
    )
    def test_bad_input(self, before, after, message):
        with pytest.raises(ValueError, match=message):
            compared(before, after)


class TestData:
    def test_folders_and_manifests_are_the_same(self, images, folder):
        data = load_class_images(images)
        assert data.classes == ("boat", "dog", "small_house")
        assert data.names == (("boat",), ("dog",), ("small house",))
        assert [path.parent.name for path in data.images] == [data.classes[label] for label in data.labels]
        manifest = folder / "classes.csv"
        rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in data.images]
        manifest.write_text("file,kind\n" + "\n".join(rows))
        assert load_class_images(manifest, image_column="file", class_column="kind") == data

    def test_names_may_be_several_and_of_more_classes(self, images, folder):
        path = folder / "names.json"
        path.write_text(json.dumps({"dog": ["dog", "hound"], "small_house": "hut", "boat": "b", "cat": "c"}))
        data = load_class_images(images, names=read_names(path))
        assert dict(zip(data.classes, data.names, strict=True))["dog"] == ("dog", "hound")
        assert "cat" in data.classes
        with pytest.raises(ValueError, match="names lacks boat, which"):
            load_class_images(images, names={"dog": "dog", "small_house": "hut"})
        path.write_text('{"dog": []}')
        with pytest.raises(ValueError, match="the name of 'dog' must be a text or a list of texts, got "):
            read_names(path)

    def test_bad_data(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="gone does not exist"):
            load_class_images(tmp_path / "gone")
        (tmp_path / "a").mkdir()
        with pytest.raises(ValueError, match="has no images"):
            load_class_images(tmp_path)
        pictures(tmp_path / "a", 1)
        with pytest.raises(ValueError, match="has one class, 'a'"):
            load_class_images(tmp_path)
        pictures(tmp_path, 1)
        with pytest.raises(ValueError, match=r"has the images 0.png beside the folders"):
            load_class_images(tmp_path)
        table = tmp_path / "t.csv"
        table.write_text("image,class\na/0.png,\n")
        with pytest.raises(ValueError, match="line 2: column 'class' must be text or an integer, got ''"):
            load_class_images(table)
        with pytest.raises(ValueError, match="no column 'kind'; the columns are image, class"):
            load_class_images(table, class_column="kind")

    def test_templates(self, tmp_path):
        assert len(load_templates("openai")) == 80
        assert len(load_templates("simple")) == 7
        path = tmp_path / "templates.txt"
        path.write_text("a photo of a {}.\n\na drawing of {}\n")
        assert prompts_of(["dog", "hound"], load_templates(str(path))) == [
            "a photo of a dog.",
            "a drawing of dog",
            "a photo of a hound.",
            "a drawing of hound",
        ]
        for wrong in ("a photo", "{} and {}", "{0}", "{} }"):
            path.write_text(wrong)
            with pytest.raises(ValueError, match=r"a template has \{\} once"):
                load_templates(str(path))


def zero_shot(*arguments):
    words = ["zero-shot", "--workers", "0", "--device", "cpu", *arguments]
    return main([str(word) for word in words])


class TestCommand:
    def test_the_start_is_what_open_clip_measures(self, run, images, stock, capsys):
        model, preprocess, tokenizer = stock
        data = load_class_images(images)
        templates = load_templates("simple")
        with torch.no_grad():
            weights = open_clip.build_zero_shot_classifier(
                model, tokenizer, [names[0] for names in data.names], templates
            )
            pixels = torch.stack([preprocess(hysac.data.load_image(path)) for path in data.images])
            logits = model.encode_image(pixels, normalize=True) @ weights
        right = logits.argmax(1) == torch.tensor(data.labels)
        assert 0 < right.sum() < len(right)
        assert zero_shot("--model-dir", run, "--data", images, "--templates", "simple", "--start") == 0
        told = capsys.readouterr().out
        report = json.loads((run / "model" / "zero_shot.json").read_text())
        assert report["start"]["top1"] == pytest.approx(right.double().mean().item())
        assert report["made_with"]["start"] == {
            "model": "hysac-toy",
            "pretrained": None,
            "compared_by": "cosine",
        }
        kept = report["retention"]["top1"]
        assert kept["before"] == report["start"]["top1"]
        assert kept["after"] == report["top1"]
        assert "start top1" in told
        assert "Kept of the starting model, %" in told

    def test_models_of_its_own_are_measured_by_distance(self, run, images, folder):
        other, out = make_model(folder / "other", seed=9), folder / "own.json"
        arguments = ("--model-dir", run, "--data", images, "--out", out, "--format", "latex")
        assert zero_shot(*arguments, "--start", other) == 0
        report = json.loads(out.read_text())
        assert report["made_with"]["start"]["compared_by"] == "distance"
        data = load_class_images(images)
        texts = hysac.get_tokenizer("hysac-toy")([f"a photo of a {names[0]}." for names in data.names])
        for directory, found in ((run, report["top1"]), (other, report["start"]["top1"])):
            model = hysac.from_pretrained(directory)
            preprocess = hysac.transforms(model)[1]
            pixels = torch.stack([preprocess(hysac.data.load_image(path)) for path in data.images])
            with torch.no_grad():
                logits, _ = model.get_logits(pixels, texts)
            right = logits.argmax(1) == torch.tensor(data.labels)
            assert found == pytest.approx(right.double().mean().item())

    @pytest.mark.slow
    def test_a_start_by_name(self, run, folder, caplog):
        weights = run / "model" / "open_clip_model.safetensors"
        args = Namespace(start="hysac-toy", start_pretrained=str(weights), device="cpu", verify=True)
        start = load_start(args, folder)
        assert start.told == {"model": "hysac-toy", "pretrained": str(weights), "compared_by": "cosine"}
        wanted = hysac.from_pretrained(run / "model").visual.state_dict()
        assert all(torch.equal(one, wanted[name]) for name, one in start.model.visual.state_dict().items())
        assert not caplog.records
        load_start(Namespace(**{**vars(args), "start_pretrained": None}), folder)
        assert "hysac-toy has random weights without --start-pretrained" in caplog.text

    def test_bad_input(self, run, images, folder, capsys):
        plain = make_model(folder / "plain")
        for arguments, message in (
            (
                ("--model-dir", plain, "--data", images, "--start"),
                "is in no run, whose config.json would say",
            ),
            (("--model-dir", run, "--data", images, "--start", "no-such-net"), "'no-such-net' is unknown"),
            (("--model-dir", run, "--data", images, "--start", images), f"--start local-dir:{images}"),
            (
                ("--model-dir", run, "--data", images, "--start", plain, "--start-pretrained", "x"),
                "--start-pretrained is for names of open_clip",
            ),
            (("--model-dir", run, "--data", folder / "gone"), "gone does not exist"),
            (("--model-dir", run, "--data", images, "--templates", "gone.txt"), "gone.txt"),
        ):
            assert zero_shot(*arguments) == 2
            assert message in capsys.readouterr().err


class TestRetrieval:
    def test_recalls_of_the_start_are_those_of_cosines(self, run, folder, stock, capsys):
        data = write_toy(folder / "toy", train_size=1, val_size=12)["val"]
        out = run / "evaluation.json"
        words = [
            "evaluate",
            "--model-dir",
            run,
            "--val-data",
            data,
            "--start",
            "--out",
            out,
            "--ks",
            "1",
            "3",
        ]
        assert main([str(word) for word in [*words, "--workers", "0", "--device", "cpu"]]) == 0
        assert "Kept of the starting model, %" in capsys.readouterr().out
        report = json.loads(out.read_text())
        model, preprocess, tokenizer = stock
        records = hysac.data.load_manifest(data).records
        with torch.no_grad():
            pixels = torch.stack([preprocess(hysac.data.load_image(one.safe_image)) for one in records])
            x = model.encode_image(pixels, normalize=True)
            y = model.encode_text(tokenizer([one.safe_caption for one in records]), normalize=True)
        own = torch.arange(len(records))[:, None]
        for name, similarity in (("T->I", y @ x.T), ("I->T", x @ y.T)):
            for k in (1, 3):
                row = report["retention"]["recalls"][f"{name} R@{k}"]
                found = (similarity.topk(k).indices == own).any(1).double().mean().item()
                assert row["before"] == pytest.approx(found)
                assert row["after"] == pytest.approx(report["retrieval"][name][f"R@{k}"])

    def test_the_same_model_keeps_everything(self):
        points = {name: torch.randn(9, 4) for name in ("safe_image", "safe_text")}
        embeddings = hysac.Embeddings(**points, unsafe_image=None, unsafe_text=None, curv=1.0)
        for row in retrieval_retention(embeddings, embeddings, (1, 2)).values():
            assert (row["difference"], row["difference_95"]) == (0, [0, 0])
        with pytest.raises(ValueError, match="the same quadruplets in the same order"):
            retrieval_retention(embeddings, embeddings.subset([0, 1]))
