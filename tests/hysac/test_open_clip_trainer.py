"""open_clip's own training program with a hyperbolic model: ``python -m hysac.open_clip_trainer``."""

import copy
import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from test_model import CFG, distances

import hysac
from hysac.cli import main as hysac_command
from hysac.data import write_toy
from hysac.models.model import SCALARS, HySAC
from hysac.open_clip_trainer.flags import check_flags, split_flags
from hysac.open_clip_trainer.launcher import command, main
from hysac.open_clip_trainer.replacing import replaced
from hysac.open_clip_trainer.runs import load_checkpoint
from hysac.open_clip_trainer.validation import retrieval_metrics

program = pytest.importorskip(
    "open_clip_train.main", reason="what open_clip_train needs is missing: pip install webdataset"
)
PAIRS = 12
COLOURS = ("red", "green", "blue", "grey", "white", "black")
FUNCTIONS = ("create_model_and_transforms", "create_loss", "evaluate", "get_data")
THEIRS = [getattr(program, name) for name in FUNCTIONS]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The directory of an untrained model, small, with open_clip's tokenizer, of curvature 0.5."""
    cfg = copy.deepcopy(CFG)
    cfg["text_cfg"] |= {"vocab_size": 49408, "context_length": 8}
    torch.manual_seed(0)
    model = HySAC.from_clip(open_clip.CLIP(**cfg), curv_init=0.5, scale_init=30.0, model_cfg=cfg)
    return hysac.save_pretrained(model, tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A table of images of two colours and their captions."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["filepath,title"]
    for number in range(PAIRS):
        one, other = COLOURS[number % 6], COLOURS[(number + 1 + number // 6) % 6]
        image = Image.new("RGB", (16, 16), one)
        image.paste(Image.new("RGB", (8, 16), other), (8, 0))
        image.save(folder / f"{number}.png")
        rows.append(f"{folder / str(number)}.png,{one} beside {other}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return str(folder / "pairs.csv")


def flags(start, logs, name, *others, objective="--lorentz", **changes):
    """Of a small run on the CPU."""
    given = {
        "model": f"local-dir:{start}",
        "logs": str(logs),
        "name": name,
        "device": "cpu",
        "precision": "fp32",
        "workers": "0",
        "batch-size": "4",
        "epochs": "2",
        "lr": "0.01",
        "lr-scheduler": "const",
        "warmup": "0",
        "csv-separator": ",",
    } | {key.replace("_", "-"): str(value) for key, value in changes.items()}
    return [objective, *others, *(part for key, value in given.items() for part in (f"--{key}", value))]


@pytest.fixture(scope="module")
def run(start, pairs, tmp_path_factory):
    """A run of two epochs on pairs, validated on the same."""
    logs = tmp_path_factory.mktemp("logs")
    arguments = flags(start, logs, "run", train_data=pairs, val_data=pairs, entail_weight=0.3)
    assert main(arguments) == 0
    return logs / "run"


def results_of(run):
    return [json.loads(line) for line in (run / "checkpoints/results.jsonl").read_text().splitlines()]


def state(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def encoded(model, pairs):
    """Points of a table's images and captions, ``(12, D)`` each."""
    rows = [line.split(",") for line in Path(pairs).read_text().splitlines()[1:]]
    transform, tokenizer = hysac.transforms(model)[1], open_clip.get_tokenizer("ViT-B-32", context_length=8)
    with torch.no_grad():
        images = torch.stack([transform(Image.open(path)) for path, _ in rows])
        texts = tokenizer([caption for _, caption in rows])
        return model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)


def test_a_run_trains_and_leaves_what_open_clip_leaves(run):
    first, last = (state(run / f"checkpoints/epoch_{epoch}.pt") for epoch in (1, 2))
    for name in (*SCALARS, "visual.proj", "text_projection"):
        assert not torch.equal(first[name], last[name]), name
    losses = [metrics["clip_val_loss"] for metrics in results_of(run)]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 1.1 * math.log(4)
    assert (run / "params.txt").is_file()
    assert "Entailment_loss" in (run / "out.log").read_text()


def test_the_initial_curvature_is_that_of_the_model(run):
    assert hysac.from_pretrained(run).curv_init == 0.5
    assert json.loads((run / "hysac_run.json").read_text())["entail_weight"] == 0.3


def test_the_directory_of_a_run_is_its_last_checkpoint(run):
    model = hysac.from_pretrained(run)
    last = state(run / "checkpoints/epoch_2.pt")
    assert set(model.state_dict()) == set(last)
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())


def test_validation_is_by_distance(run, pairs):
    model = hysac.from_pretrained(run)
    image, text = encoded(model, pairs)
    last = results_of(run)[-1]
    near = distances(image, text, model.curvature.item())
    ranks = (near < near.diagonal()[:, None]).sum(1).double() + 1
    assert last["image_to_text_mean_rank"] == pytest.approx(ranks.mean().item())
    assert last["image_to_text_R@5"] == pytest.approx((ranks <= 5).double().mean().item())
    assert last["curvature"] == pytest.approx(model.curvature.item())
    logits = -model.scale.item() * near
    parts = [logits[i : i + 4, i : i + 4] for i in range(0, PAIRS, 4)]
    target = torch.arange(4)
    wanted = [torch.nn.functional.cross_entropy(p, target) for part in parts for p in (part, part.T)]
    assert last["clip_val_loss"] == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-5)
    assert last["num_samples"] == PAIRS


def test_ranks_differ_from_those_of_dot_products():
    """Of points at many radii; open_clip's own function has another mean rank, and no error."""
    from open_clip_train.train import get_clip_metrics

    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(40, 8, generator=generator) for _ in range(2))
    image = image * torch.rand(40, 1, generator=generator) * 3
    text = image + 0.8 * text
    got, theirs = retrieval_metrics(image, text), get_clip_metrics(image, text, torch.tensor(1.0))
    assert set(got) == set(theirs)
    near = distances(image, text, 1.0)
    for name, table in (("image_to_text", near), ("text_to_image", near.T)):
        ranks = table.numpy().argsort(axis=1).argsort(axis=1).diagonal()
        assert got[f"{name}_mean_rank"] == pytest.approx(ranks.mean() + 1)
        assert got[f"{name}_median_rank"] == math.floor(np.median(ranks)) + 1
        for k in (1, 5, 10):
            assert got[f"{name}_R@{k}"] == pytest.approx((ranks < k).mean())
        assert abs(theirs[f"{name}_mean_rank"] - got[f"{name}_mean_rank"]) > 0.5


def test_items_as_near_as_the_true_one_give_chance():
    same = torch.ones(10, 3)
    metrics = retrieval_metrics(same, same)
    assert metrics["image_to_text_mean_rank"] == 5.5
    assert metrics["text_to_image_R@1"] == pytest.approx(0.1)


def test_a_run_is_resumed_where_it_stopped(run, start, pairs, tmp_path):
    """With a learning rate of 0 the third epoch is the second: weights, scalars and optimizer came along."""
    last = run / "checkpoints/epoch_2.pt"
    arguments = flags(start, tmp_path, "more", train_data=pairs, epochs=3, lr=0, resume=last)
    assert main(arguments) == 0
    after = torch.load(tmp_path / "more/checkpoints/epoch_3.pt", weights_only=True)
    before = torch.load(last, weights_only=True)
    assert after["epoch"] == 3
    assert set(after["state_dict"]) == set(before["state_dict"])
    assert all(torch.equal(after["state_dict"][name], one) for name, one in before["state_dict"].items())
    steps = [{int(s["step"]) for s in c["optimizer"]["state"].values()} for c in (before, after)]
    assert steps == [{6}, {9}]
    assert not (tmp_path / "more/checkpoints/epoch_1.pt").exists()


def test_another_initial_curvature_than_the_run_to_resume_is_refused(run, start, pairs):
    arguments = flags(start, run.parent, "run", train_data=pairs, curv_init=2.0, resume="latest")
    with pytest.raises(ValueError, match=r"--curv-init must be 0\.5, that of .*; got 2\.0"):
        main(arguments)


def test_another_scale_than_that_of_the_model_is_refused(start, pairs, tmp_path):
    arguments = flags(start, tmp_path, "run", train_data=pairs, scale_init=20)
    with pytest.raises(ValueError, match="--scale-init must be left out: the model's is 30, got 20"):
        main(arguments)


def test_the_scalars_stay_in_their_ranges(start, pairs, tmp_path):
    """Also those that open_clip's loop does not clamp."""
    arguments = flags(
        start, tmp_path, "far", train_data=pairs, lr=5, epochs=1, opt="timm/sgd", save_most_recent=""
    )
    arguments.remove("")
    assert main(arguments) == 0
    trained = state(tmp_path / "far/checkpoints/epoch_1.pt")
    ranges = hysac.from_pretrained(start).scalar_ranges
    for name in SCALARS:
        low, high = ranges[name]
        assert low <= trained[name].item() <= high, name
    assert any(trained[name].item() in ranges[name] for name in SCALARS)


def test_accumulation_is_one_large_batch(start, pairs, tmp_path):
    """A step of gradient descent on 8 pairs, at once and in parts."""
    trained = []
    for name, size in (("whole", 8), ("parts", 2)):
        options = {"batch_size": size, "accum_freq": 8 // size, "epochs": 1, "opt": "timm/sgd", "lr": 0.1}
        assert main(flags(start, tmp_path, name, train_data=pairs, **options)) == 0
        trained.append(state(tmp_path / f"{name}/checkpoints/epoch_1.pt"))
    before = hysac.from_pretrained(start).state_dict()
    for name in (*SCALARS, "visual.proj", "text_projection"):
        change = [(one[name] - before[name]).norm().item() for one in trained]
        assert change[0] > 1e-5, name
        assert (trained[0][name] - trained[1][name]).norm().item() <= 1e-6, name


def test_open_clip_is_as_it_was(run, start, pairs, tmp_path):
    """After a run, and after one that fails on the way; logging, too."""
    logger = logging.getLogger("hysac.test")
    logger.setLevel(logging.ERROR)
    before = logging.root.level, list(logging.root.handlers)
    with pytest.raises(ValueError, match="model_name 'no-such-model' is unknown"):
        main(flags(start, tmp_path, "bad", train_data=pairs, model="no-such-model"))
    assert [getattr(program, name) for name in FUNCTIONS] == THEIRS
    from torch.optim import optimizer

    assert not optimizer._global_optimizer_post_hooks
    assert (logging.root.level, list(logging.root.handlers)) == before
    assert logger.level == logging.ERROR


def test_a_run_that_exists_is_refused_as_by_open_clip(run, start, pairs):
    before = (run / "hysac_run.json").read_bytes()
    assert main(flags(start, run.parent, "run", train_data=pairs, entail_weight=0.9)) == 1
    assert (run / "hysac_run.json").read_bytes() == before


def test_a_module_of_another_version_is_refused():
    with (
        pytest.raises(RuntimeError, match=r"has no no_such_function: .* open_clip_torch 3\.3"),
        replaced(program, create_loss=None, no_such_function=None),
    ):
        pass
    assert program.create_loss is THEIRS[1]


# -- quadruplets -------------------------------------------------------------------------------------------


def test_quadruplets_train_on_hysacs_loss(start, tmp_path):
    manifests = write_toy(tmp_path / "toy", train_size=8, val_size=4, progress=False)
    data = {"train_data": manifests["train"], "val_data": manifests["val"]}
    arguments = flags(start, tmp_path, "run", objective="--hysac", epochs=1, **data)
    assert main(arguments) == 0
    assert "Entailment_safe_image_unsafe_text_loss" in (tmp_path / "run/out.log").read_text()
    (results,) = results_of(tmp_path / "run")
    model = hysac.from_pretrained(tmp_path / "run")
    dataset = hysac.data.open_dataset(
        manifests["val"], "val", hysac.transforms(model)[1], hysac.get_tokenizer(f"local-dir:{start}")
    )
    loader = hysac.data.Batches(dataset, batch_size=4)
    table = hysac.evaluate(model, loader, progress=False, ks=(1,)).retrieval
    assert {f"{column} R@1" for column in table} <= set(results)
    for column, recalls in table.items():
        assert results[f"{column} R@1"] == pytest.approx(recalls["R@1"]), column


def test_the_order_of_quadruplets_is_the_epochs(start, tmp_path):
    from hysac.open_clip_trainer.quadruplets import quadruplet_data

    manifests = write_toy(tmp_path, train_size=8, val_size=4, progress=False)
    model = hysac.from_pretrained(start)
    tokenizer = hysac.get_tokenizer(f"local-dir:{start}")
    options, others = split_flags(
        flags(start, tmp_path, "x", objective="--hysac", train_data=manifests["train"])
    )
    args = program.parse_args(others)
    args.world_size, args.rank = 2, 0

    def texts(epoch):
        data = quadruplet_data(options, args, (hysac.transforms(model)[1],) * 2, tokenizer)["train"]
        data.set_epoch(epoch)
        assert (data.dataloader.num_samples, data.dataloader.num_batches) == (8, 1)
        return next(iter(data.dataloader))[1]

    assert texts(1).shape == (4, 2, 8)
    assert torch.equal(texts(1), texts(1))
    assert not torch.equal(texts(0), texts(1))


# -- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lorentz", "--siglip"], "--siglip does not go with --lorentz"),
        (["--hysac", "--distill-model", "ViT-B-32"], "--distill-model does not go with --hysac"),
        (["--lorentz", "--horovod"], "--horovod .* use torchrun"),
        (["--lorentz", "--torchscript"], "--torchscript .* --torchcompile"),
        (["--lorentz", "--local-loss"], "local_loss=True needs gather_with_grad=True"),
        (["--lorentz", "--entail-weight", "-1"], "entail_weight must be finite and not negative"),
        (["--lorentz", "--accum-freq", "0"], "accum_freq must be at least 1"),
        (["--hysac", "--dataset-type", "synthetic"], "--dataset-type synthetic does not go with --hysac"),
        (["--lorentz", "--csv-unsafe-img-key", "x"], "--csv-unsafe-img-key is for --hysac"),
    ],
)
def test_flags_that_do_not_fit(given, message):
    options, others = split_flags(given)
    with pytest.raises(ValueError, match=message):
        check_flags(options, program.parse_args(others))


def test_flags_of_open_clip_stay_in_their_order():
    options, others = split_flags(
        ["--lr", "1", "--lorentz", "--curv-init", "2", "--no-learn-curv", "--lo", "x"]
    )
    assert (options.objective, options.curv_init, options.learn_curv) == ("lorentz", 2.0, False)
    assert others == ["--lr", "1", "--lo", "x"]


def test_an_objective_is_needed(capsys):
    with pytest.raises(SystemExit):
        split_flags(["--lr", "1"])
    assert "one of the arguments --lorentz --hysac is required" in capsys.readouterr().err


def test_errors_are_told_in_one_line(capsys):
    assert command(["--lorentz", "--siglip"]) == 2
    assert capsys.readouterr().err.startswith("hysac.open_clip_trainer: error: --siglip")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip_train.main", None)
    monkeypatch.delattr(sys.modules["open_clip_train"], "main")
    with pytest.raises(ImportError, match=r"pip install 'hysac\[open-clip-trainer\]'"):
        main(["--lorentz"])


# -- checkpoints -------------------------------------------------------------------------------------------


def test_any_checkpoint_converts_to_a_directory(run, tmp_path, capsys):
    checkpoint = run / "checkpoints/epoch_1.pt"
    assert hysac_command(["convert", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    model, wanted = hysac.from_pretrained(tmp_path / "out"), state(checkpoint)
    assert model.curv_init == 0.5
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert open_clip.create_model(f"local-dir:{tmp_path / 'out'}").visual.image_size == (16, 16)
    assert hysac_command(["convert", str(checkpoint), "--out", str(tmp_path), "--quick-gelu"]) == 2
    assert "--quick-gelu is not for a checkpoint of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_another_process_layout_loads(run, tmp_path):
    """Of DDP, whose names have a prefix; beside the file must be the run's."""
    saved = torch.load(run / "checkpoints/epoch_2.pt", weights_only=True)
    wanted = dict(saved["state_dict"])
    saved["state_dict"] = {f"module.{name}": tensor for name, tensor in wanted.items()}
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints/epoch_2.pt"
    torch.save(saved, path)
    with pytest.raises(FileNotFoundError, match=r"no hysac_run\.json two levels up"):
        load_checkpoint(path)
    for name in ("hysac_run.json", "open_clip_config.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert all(torch.equal(one, wanted[name]) for name, one in load_checkpoint(path).state_dict().items())
    settings = json.loads((tmp_path / "hysac_run.json").read_text())
    (tmp_path / "hysac_run.json").write_text(json.dumps(settings | {"format_version": 2}))
    with pytest.raises(ValueError, match="format_version must be 1"):
        load_checkpoint(path)


# -- zero-shot classification ------------------------------------------------------------------------------

CLASSNAMES = [f"{colour} paper" for colour in COLOURS]
TEMPLATES = ["a photo of {}.", lambda name: f"much {name} and nothing else"]


def test_zero_shot_imagenet_is_by_distance(run, start, tmp_path, monkeypatch):
    """Its six classes are the colours; the model comes from a checkpoint, and nothing is trained."""
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", CLASSNAMES)
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", TEMPLATES)
    target = []
    for number in range(len(COLOURS)):
        folder = tmp_path / "imagenet" / f"{number}"
        folder.mkdir(parents=True)
        for other in range(2):
            Image.new("RGB", (16, 16), COLOURS[(number + other) % 6]).save(folder / f"{other}.png")
            target.append(number)
    arguments = flags(start, tmp_path, "eval", imagenet_val=tmp_path / "imagenet")
    arguments += ["--resume", str(run / "checkpoints/epoch_2.pt")]
    got = {}
    evaluate = program.train_one_epoch.__globals__["evaluate"]
    monkeypatch.setitem(
        evaluate.__globals__, "evaluate", lambda *a, **k: got.update(evaluate(*a, **k)) or got
    )
    assert main(arguments) == 0
    model = hysac.from_pretrained(run)
    transform = hysac.transforms(model)[1]
    files = sorted((tmp_path / "imagenet").rglob("*.png"))
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(Image.open(f)) for f in files]), normalize=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=8)
    classifier = hysac.build_zero_shot_classifier(model, tokenizer, CLASSNAMES, TEMPLATES)
    order = (-classifier(images)).argsort(1)
    wanted = order == torch.tensor(target)[:, None]
    assert got["imagenet-zeroshot-val-top1"] == pytest.approx(wanted[:, :1].sum().item() / 12)
    assert got["imagenet-zeroshot-val-top5"] == pytest.approx(wanted[:, :5].sum().item() / 12)
