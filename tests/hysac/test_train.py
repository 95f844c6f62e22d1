"""The training loop and its parts: against big batches, closed formulas and one another."""

import inspect
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from hysac import HySACLoss, add_lora, create_model, from_pretrained, save_pretrained
from hysac.data import write_toy
from hysac.training.checkpoint import Checkpoint, checkpoint_paths
from hysac.training.config import TrainConfig
from hysac.training.gradient_cache import backward
from hysac.training.loop import _Run, _Window, build_model, train
from hysac.training.optim import learning_rate, make_optimizer
from hysac.training.processes import Processes
from hysac.training.run_log import RunLog, read_log
from hysac.training.sampler import SeededItems, StepSampler
from hysac.training.selection import METRICS, Selection

TRAIN, VAL = 24, 8


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"), train_size=TRAIN, val_size=VAL, progress=False)


@pytest.fixture
def config(toy, tmp_path):
    """Three steps an epoch, six in all."""
    return TrainConfig(
        train_data=str(toy["train"]),
        val_data=str(toy["val"]),
        model="hysac-toy",
        batch_size=8,
        epochs=2,
        lr=1e-3,
        workers=0,
        log_every_n_steps=2,
        logs=str(tmp_path),
        name="run",
    )


def quadruplets(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 2, 3, 32, 32, generator=generator)
    texts = torch.randint(1, 49405, (count, 2, 24), generator=generator)
    texts[..., 0], texts[..., -1] = 49406, 49407
    return images, texts


def model_and_gradients(make, micro_batches, **options):
    model = make()
    terms = backward(model, HySACLoss(entail_weight=0.7), micro_batches, **options)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, terms


def toy_model(**options):
    torch.manual_seed(3)
    return create_model("hysac-toy", output_dict=True, **options)


def dropout_model():
    model = toy_model()
    model.visual.transformer.resblocks[0].mlp.append(nn.Dropout(0.5))
    return model


class TestGradientCache:
    @pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (5, 3)])
    def test_gradients_and_terms_are_those_of_the_big_batch(self, sizes):
        images, texts = quadruplets(8)
        parts = list(zip(images.split(sizes), texts.split(sizes), strict=True))
        wanted, terms = model_and_gradients(toy_model, [(images, texts)])
        got, cached_terms = model_and_gradients(toy_model, parts)
        assert {"curv", "logit_scale", "visual_alpha", "textual_alpha"} <= wanted.keys() == got.keys()
        for name, gradient in wanted.items():
            assert (got[name] - gradient).norm() <= 2e-5 * gradient.norm(), name
        for name, term in terms.items():
            assert cached_terms[name] == pytest.approx(term.item(), rel=1e-5)

    def test_random_layers_draw_the_same_numbers_twice(self):
        """Against one graph over both micro-batches, made from the same random state."""
        images, texts = quadruplets(8)
        parts = list(zip(images.split(4), texts.split(4), strict=True))
        model = dropout_model()
        torch.manual_seed(11)
        outputs = [model(*part) for part in parts]
        after = torch.get_rng_state()
        whole = {name: torch.cat([o[name] for o in outputs]) for name in ("image_features", "text_features")}
        HySACLoss(entail_weight=0.7)(**whole, logit_scale=outputs[0]["logit_scale"]).backward()

        def seeded():
            model = dropout_model()
            torch.manual_seed(11)
            return model

        got, _ = model_and_gradients(seeded, parts)
        for name, parameter in model.named_parameters():
            assert (got[name] - parameter.grad).norm() <= 2e-5 * parameter.grad.norm(), name
        assert torch.equal(torch.get_rng_state(), after)

    def test_scaled_loss_scales_the_gradients(self):
        images, texts = quadruplets(6)
        parts = list(zip(images.split(3), texts.split(3), strict=True))
        wanted, _ = model_and_gradients(toy_model, parts)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        got, _ = model_and_gradients(toy_model, parts, scaler=scaler)
        for name, gradient in wanted.items():
            assert (got[name] - 8 * gradient).norm() <= 1e-5 * (8 * gradient).norm(), name

    def test_autocast_reaches_the_towers_in_both_passes(self):
        """A weight that autocast has cast without a graph must not be reused with one."""
        images, texts = quadruplets(6)

        def autocast():
            return torch.autocast("cpu", torch.bfloat16)

        wanted, _ = model_and_gradients(toy_model, [(images, texts)], autocast=autocast)
        got, _ = model_and_gradients(
            toy_model, [(images[:3], texts[:3]), (images[3:], texts[3:])], autocast=autocast
        )
        assert wanted.keys() == got.keys()
        for name, gradient in wanted.items():
            assert (got[name] - gradient).norm() <= 0.05 * gradient.norm(), name


class TestOptimizer:
    def test_matrices_decay_and_vectors_and_scalars_do_not(self):
        model = toy_model()
        optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        for name, parameter in model.named_parameters():
            factor = 1 - 0.1 * 0.5 if parameter.dim() >= 2 else 1
            torch.testing.assert_close(parameter, factor * before[name], msg=name)
        assert {"curv", "logit_scale", "visual.ln_pre.weight"} <= before.keys()

    def test_no_decay_means_none(self):
        optimizer = make_optimizer(toy_model(), lr=0.1, weight_decay=0.0)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}

    def test_only_adapters_and_scalars_with_lora(self):
        model = add_lora(toy_model(), r=2)
        optimizer = make_optimizer(model, lr=0.1, weight_decay=0.0)
        counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        assert counted == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) + 4

    def test_nothing_to_train(self):
        with pytest.raises(ValueError, match="no trainable parameters"):
            make_optimizer(toy_model().requires_grad_(False), lr=0.1, weight_decay=0.0)

    def test_schedule(self):
        def rates(schedule):
            return [learning_rate(s, peak=2.0, warmup=4, total=10, schedule=schedule) for s in range(10)]

        assert rates("const") == [0.5, 1.0, 1.5, 2.0] + [2.0] * 6
        cosine = [2.0 * math.cos(math.pi * s / 12) ** 2 for s in range(6)]
        assert rates("cosine") == pytest.approx([0.5, 1.0, 1.5, 2.0, *cosine])
        assert learning_rate(0, peak=2.0, warmup=0, total=10) == 2.0


class TestSampler:
    def keys(self, **options):
        return list(StepSampler(20, **{"batch_size": 3, "stop": 12, **options}))

    def test_each_epoch_is_another_permutation_without_the_rest(self):
        batches = self.keys()
        assert [len(batch) for batch in batches] == [3] * 12
        epochs = [[key for batch in batches[e * 6 : e * 6 + 6] for key in batch] for e in range(2)]
        for number, epoch in enumerate(epochs):
            assert {key[0] for key in epoch} == {number}
            rows = [key[1] for key in epoch]
            assert len(set(rows)) == 18
            assert set(rows) <= set(range(20))
            assert rows != sorted(rows)
        assert [key[1] for key in epochs[0]] != [key[1] for key in epochs[1]]

    def test_starts_anywhere(self):
        assert self.keys(start=5) == self.keys()[5:]
        assert self.keys(seed=1) != self.keys()
        assert len(StepSampler(20, batch_size=3, accum_freq=2, start=2, stop=5)) == 6

    def test_a_step_is_the_same_however_it_is_divided(self):
        whole = list(StepSampler(50, batch_size=12, stop=8))
        for world_size, accum_freq in [(2, 1), (1, 3), (2, 2), (3, 2)]:
            size = 12 // (world_size * accum_freq)
            shares = [
                list(
                    StepSampler(
                        50,
                        batch_size=size,
                        accum_freq=accum_freq,
                        rank=rank,
                        world_size=world_size,
                        stop=8,
                    )
                )
                for rank in range(world_size)
            ]
            for step, wanted in enumerate(whole):
                parts = [
                    batch
                    for share in shares
                    for batch in share[step * accum_freq : step * accum_freq + accum_freq]
                ]
                assert all(len(part) == size for part in parts)
                assert [key for part in parts for key in part] == wanted

    def test_too_few(self):
        with pytest.raises(
            ValueError, match=r"has 20 quadruplets, fewer than the 24 .* 4 x .* 3 x 2 processes"
        ):
            StepSampler(20, batch_size=4, accum_freq=3, world_size=2)

    def test_augmentation_depends_on_the_item_and_the_epoch_alone(self):
        class Noise(torch.utils.data.Dataset):
            def __getitem__(self, index):
                import random

                import numpy as np

                return torch.rand(2).tolist(), random.random(), np.random.rand()

        items = SeededItems(Noise(), seed=5)
        state = torch.get_rng_state()
        first = items[0, 7]
        assert items[1, 7] != first
        assert items[0, 8] != first
        assert SeededItems(Noise(), seed=6)[0, 7] != first
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert items[0, 7] == first


class TestSelection:
    def test_greater_is_better_and_equal_is_not(self):
        selection = Selection()
        assert not selection.improved
        history = []
        for step, value in enumerate([0.5, 0.4, 0.5, 0.6, 0.1], start=1):
            selection, reported = selection.update({"a": value, "b": 0.0}, ("a", "b"), step)
            assert reported == value / 2
            history.append((selection.best, selection.best_step, selection.stale))
        assert history == [(0.25, 1, 0), (0.25, 1, 1), (0.25, 1, 2), (0.3, 4, 0), (0.3, 4, 1)]

    def test_less_loss_is_better(self):
        selection, _ = Selection().update({"loss": 3.0}, ("loss",), 1)
        selection, _ = selection.update({"loss": 2.0}, ("loss",), 2)
        assert (selection.best, selection.improved) == (2.0, True)

    def test_the_default_includes_the_redirected_columns(self):
        names = TrainConfig(train_data="toy", model="hysac-toy").select_metric
        assert set(names) <= set(METRICS)
        assert sum("(traversed)" in name for name in names) == 2


class TestConfig:
    @pytest.mark.parametrize(
        ("name", "value", "error", "told"),
        [
            ("batch_size", 0, ValueError, "batch_size must be greater than 0, got 0"),
            ("batch_size", 2.5, TypeError, "batch_size must be of type int, got 2.5"),
            ("epochs", True, TypeError, "epochs must be of type int, got True"),
            ("lr", float("nan"), ValueError, "lr must be finite"),
            ("lr", "fast", TypeError, "lr must be of type float, got 'fast'"),
            ("wd", -0.1, ValueError, "wd must be at least 0"),
            ("beta2", 1.0, ValueError, "beta2 must be less than 1"),
            ("precision", "fp8", ValueError, "precision must be one of fp32, "),
            ("precision", "bf16", ValueError, "adapters"),
            ("lora_targets", ("qkv",), ValueError, "lora_targets must be one of q, k"),
            ("lora_targets", ["q"], TypeError, "lora_targets must be a tuple of strings"),
            ("lora_r", 0, ValueError, "lora_r must be greater than 0"),
            ("on_bad_image", "ignore", ValueError, "on_bad_image must be one of raise, skip"),
            (
                "select_metric",
                ("R@1",),
                ValueError,
                "select_metric must be 'loss' alone, or some of 'T->I R@1'",
            ),
            ("select_metric", ("loss", "T->I R@1"), ValueError, "got 'loss'"),
            ("gather_with_grad", False, ValueError, "local_loss needs gather_with_grad"),
            ("resume", "latest", ValueError, "resume 'latest' needs the name"),
            ("name", "../x", ValueError, "name must lie within logs, without '..', got '../x'"),
            ("name", "/tmp/x", ValueError, "name must lie within logs"),
            ("name", " ", ValueError, "name must not be blank"),
            ("name", ".", ValueError, "name must lie within logs"),
            ("verify_images", False, None, None),
        ],
    )
    def test_checked_before_any_work(self, name, value, error, told):
        settings = {"train_data": "toy", "model": "hysac-toy", name: value}
        if error is None:
            assert getattr(TrainConfig(**settings), name) == value
            return
        with pytest.raises(error) as caught:
            TrainConfig(**settings)
        assert told in str(caught.value)

    def test_zero_is_a_value(self):
        config = TrainConfig(
            train_data="toy", model="hysac-toy", wd=0.0, warmup=0, entail_weight=0, workers=0
        )
        assert (config.wd, config.warmup, config.entail_weight, config.workers) == (0.0, 0, 0, 0)

    def test_json_round_trip(self):
        config = TrainConfig(train_data="a", model="b", lora_r=4, lora_targets=("q", "k"), lr=3e-3)
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class TestRun:
    @pytest.mark.slow
    def test_what_a_run_leaves(self, config):
        result = train(config)
        assert (result.status, result.step, result.signal) == ("finished", 6, None)
        records = read_log(result.run_dir / "metrics.jsonl")
        assert [r["step"] for r in records if r["kind"] == "train"] == [2, 3, 4, 6]
        assert [r["step"] for r in records if r["kind"] == "val"] == [3, 6]
        for record in records[:1]:
            terms = [value for name, value in record.items() if name.endswith("_loss")]
            assert len(terms) == 7
            assert record["loss"] == pytest.approx(sum(terms), rel=1e-6)
            assert record["epoch"] == pytest.approx(2 / 3)
            assert record["logit_scale"] == pytest.approx(1 / 0.07, rel=0.05)
            assert {"lr", "curvature", "visual_alpha", "textual_alpha"} <= record.keys()
            assert record["grad_norm"] > 0
            assert record["samples_per_second"] > 0
        assert TrainConfig.from_dict(json.loads((result.run_dir / "config.json").read_text())).lr == config.lr
        assert [p.name for p in checkpoint_paths(result.run_dir / "checkpoints")] == [
            "step-00000003.pt",
            "step-00000006.pt",
        ]
        best = max((r for r in records if r["kind"] == "val"), key=lambda r: (r["selection"], -r["step"]))
        assert (result.selection.best, result.selection.best_step) == (best["selection"], best["step"])
        assert best["selection"] == pytest.approx(sum(best[n] for n in config.select_metric) / 4)
        stored = Checkpoint.load(result.run_dir / f"checkpoints/step-{best['step']:08d}.pt")
        kept = load_file(result.model_dir / "open_clip_model.safetensors")
        assert torch.equal(kept["visual.proj"], stored.model["visual.proj"])
        bounds = json.loads((result.model_dir / "bounds.json").read_text())
        assert bounds["curv"] == from_pretrained(result.model_dir).curvature.item()
        assert bounds["V"]["avg"] == pytest.approx(best["distance V"])

    @pytest.mark.slow
    def test_training_lowers_the_loss(self, config):
        result = train(replace(config, epochs=12, val_data=None, log_every_n_steps=3))
        losses = [record["loss"] for record in read_log(result.run_dir / "metrics.jsonl")]
        assert losses[-1] < 0.8 * losses[0]
        assert result.selection == Selection()
        assert result.metrics == {}
        assert not (result.model_dir / "bounds.json").exists()

    @pytest.mark.slow
    def test_a_step_is_adamw_on_the_loss(self, config):
        """One step against autograd and torch's own optimizer on the same batch."""
        config = replace(
            config, epochs=1, batch_size=TRAIN, lr_scheduler="const", warmup=0, wd=0.1, val_data=None
        )
        result = train(config)
        run = _Run(
            replace(config, name="other"), Processes(0, 1, torch.device("cpu")), Path(config.logs) / "other"
        )
        ((images, texts),) = next(iter(run._steps()))
        model = build_model(config)
        HySACLoss()(**model(images, texts)).backward()
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        others = [p for p in model.parameters() if p.dim() < 2]
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(0.9, 0.98),
            eps=1e-8,
            foreach=False,
        ).step()
        model.clamp_parameters_()
        trained = Checkpoint.load(result.run_dir / "checkpoints/step-00000001.pt").model
        initial = dict(build_model(config).named_parameters())
        for name, wanted in model.named_parameters():
            # Where the gradient is as small as eps and rounding, AdamW's first step is rounding too.
            clear = wanted.grad.abs() > 1e-5 * wanted.grad.abs().max()
            moved, step = trained[name] - initial[name], (wanted - initial[name]).detach()
            assert (moved - step)[clear].norm() <= 2e-3 * step[clear].norm(), name

    @pytest.mark.slow
    def test_accumulation_gives_the_big_batch(self, config):
        def weights(name, **options):
            result = train(replace(config, name=name, val_data=None, eps=1e-4, **options))
            return Checkpoint.load(checkpoint_paths(result.run_dir / "checkpoints")[-1]).model

        initial = build_model(config).state_dict()
        big, small = weights("big"), weights("small", batch_size=2, accum_freq=4)
        for name, wanted in big.items():
            moved = (wanted - initial[name]).norm()
            assert (small[name] - wanted).norm() <= 2e-2 * moved, name

    def test_clipping_bounds_the_gradient(self, config):
        directory = Path(config.logs) / "run"
        run = _Run(replace(config, grad_clip_norm=0.01), Processes(0, 1, torch.device("cpu")), directory)
        run._train_step(next(iter(run._steps())), window := _Window())
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        assert torch.cat([g.flatten() for g in gradients]).norm().item() == pytest.approx(0.01, rel=1e-3)
        assert window.means(run.processes)["grad_norm"] > 0.1

    @pytest.mark.slow
    def test_a_step_never_waits_for_the_device(self, config, monkeypatch):
        run = _Run(config, Processes(0, 1, torch.device("cpu")), Path(config.logs) / "run")
        steps = run._steps()
        batches = [next(steps), next(steps)]

        def refuse(method):
            def wrapper(self, *args):
                # hypkernels checks the curvature's value where that costs nothing, on a CPU.
                if any("hypkernels" in frame.filename for frame in inspect.stack(0)):
                    return method(self, *args)
                raise AssertionError("reads a tensor's value on the host")

            return wrapper

        window = _Window()
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                patch.setattr(torch.Tensor, name, refuse(getattr(torch.Tensor, name)))
            for batch in batches:
                run._train_step(batch, window)
            with pytest.raises(AssertionError, match="on the host"):
                window.means(run.processes)
        assert window.steps == 2

    @pytest.mark.slow
    def test_scalars_are_clamped_after_the_step(self, config):
        result = train(replace(config, lr=3.0, epochs=1, warmup=0, val_data=None, grad_clip_norm=1.0))
        model = from_pretrained(result.model_dir)
        assert 0.1 - 1e-6 <= model.curv.exp().item() <= 10 + 1e-5
        assert 1 / 0.07 - 1e-4 <= model.logit_scale.exp().item() <= 100 + 1e-4
        assert model.visual_alpha.item() <= 0

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["amp_bf16", "amp"])
    def test_mixed_precision_keeps_float32_weights(self, config, precision):
        result = train(replace(config, precision=precision, epochs=1))
        stored = Checkpoint.load(checkpoint_paths(result.run_dir / "checkpoints")[-1])
        assert {tensor.dtype for tensor in stored.model.values()} == {torch.float32}
        assert bool(stored.scaler) == (precision == "amp")
        assert math.isfinite(result.metrics["loss"])

    @pytest.mark.slow
    def test_adapters_train_alone(self, config):
        # Away from the ends of its range: there the scale may be held back.
        config = replace(
            config, lora_r=2, lora_alpha=4.0, lora_targets=("v", "c_fc"), lr=1e-2, scale_init=40.0
        )
        result = train(config)
        stored = Checkpoint.load(checkpoint_paths(result.run_dir / "checkpoints")[-1]).model
        initial = build_model(config)
        changed = {name for name, t in initial.state_dict().items() if not torch.equal(t, stored[name])}
        assert changed == {name for name, p in initial.named_parameters() if p.requires_grad}
        assert any("lora_B" in name for name in changed)

    def test_narrow_towers_with_adapters(self, config):
        result = train(replace(config, precision="pure_bf16", lora_r=2, epochs=1))
        stored = Checkpoint.load(checkpoint_paths(result.run_dir / "checkpoints")[-1]).model
        assert stored["visual.proj"].dtype == torch.bfloat16
        assert all(t.dtype == torch.float32 for name, t in stored.items() if "lora_" in name)

    @pytest.mark.slow
    def test_a_fixed_curvature_stays(self, config):
        result = train(replace(config, curv_init=0.3, learn_curv=False, lr=1e-2))
        assert from_pretrained(result.model_dir).curvature.item() == pytest.approx(0.3)

    @pytest.mark.slow
    def test_trains_on_from_a_model_directory(self, config, tmp_path):
        save_pretrained(toy_model(curv_init=0.5), tmp_path / "start")
        result = train(replace(config, model=f"local-dir:{tmp_path / 'start'}", epochs=1, lr=1e-7))
        assert from_pretrained(result.model_dir).curv_init == 0.5

    @pytest.mark.parametrize("change", [{"batch_size": 64}, {"train_data": "gone.jsonl"}])
    def test_data_is_found_wrong_before_a_model_is_made(self, config, monkeypatch, change):
        monkeypatch.setattr("hysac.training.loop.build_model", lambda *_: pytest.fail("a model was made"))
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"fewer than the 64 of one step|gone\.jsonl"
        ):
            train(replace(config, **change))

    @pytest.mark.slow
    def test_divergence_is_told(self, config):
        message = (
            r"step \d: 1 step was skipped, 3 in a row now: not finite: image features of 8 of 8 "
            r"quadruplets \('train-\d+', .*\. Scale [\d.]+, largest radius .*\. Curvature .*"
            r"That is --max-bad-steps 3: lower lr"
        )
        with pytest.raises(FloatingPointError, match=message):
            train(replace(config, val_data=None, lr=1e30, warmup=0, max_bad_steps=3, log_every_n_steps=1))

    @pytest.mark.slow
    def test_a_bad_step_is_skipped_and_told(self, config, caplog, monkeypatch):
        """The third step's gradient is made infinite: the weights stay, and training goes on."""
        norms, weights = [], []
        clip = _Run._clip

        def spoiled(run):
            weights.append(run.model.visual.proj.detach().clone())
            norm = clip(run)
            norms.append(norm * math.inf if len(norms) == 2 else norm)
            if len(norms) == 3:
                run.model.visual.proj.grad.fill_(math.nan)
            return norms[-1]

        monkeypatch.setattr(_Run, "_clip", spoiled)
        result = train(replace(config, log_every_n_steps=1))
        assert torch.equal(weights[2], weights[3]), "the third step is not taken"
        assert not torch.equal(weights[1], weights[2])
        assert not torch.equal(weights[3], weights[4])
        told = "step 3: 1 step was skipped, 1 in a row now: not finite: only the gradient. Scale"
        assert told in caplog.text
        log = read_log(result.run_dir / "metrics.jsonl")
        records = [record for record in log if record["kind"] == "train"]
        assert [record["skipped_steps"] for record in records] == [0, 0, 1, 0, 0, 0]
        assert ["loss" in record for record in records] == [True, True, False, True, True, True]

    @pytest.mark.slow
    def test_patience(self, config):
        result = train(replace(config, epochs=9, patience=2, lr=1e-12))
        assert (result.status, result.step, result.selection.best_step) == ("stopped early", 9, 3)
        again = train(replace(config, epochs=9, patience=2, lr=1e-12, resume="latest"))
        assert (again.status, again.step) == ("stopped early", 9)

    @pytest.mark.slow
    def test_max_steps_ends_the_schedule(self, config):
        result = train(replace(config, epochs=100, max_steps=4, log_every_n_steps=1, warmup=0, lr=1e-3))
        rates = [r["lr"] for r in read_log(result.run_dir / "metrics.jsonl") if r["kind"] == "train"]
        assert rates == pytest.approx([1e-3 * math.cos(math.pi * s / 8) ** 2 for s in range(4)])
        assert result.metrics

    @pytest.mark.slow
    def test_what_a_killed_process_left_half_done_is_undone(self, config):
        """Between the two renames of a model directory, and while files were written."""
        first = train(replace(config, max_steps=1))
        first.model_dir.rename(first.run_dir / "model.old")
        leftovers = [
            first.run_dir / ".config.json.1.tmp",
            first.run_dir / "checkpoints" / ".step-00000001.pt.1.tmp",
        ]
        for path in leftovers:
            path.touch()
        again = train(replace(config, max_steps=1, resume="latest"))
        assert again.model_dir == first.model_dir
        assert not any(path.exists() for path in leftovers)
        assert from_pretrained(again.model_dir).curv_init == 1.0

    @pytest.mark.slow
    def test_tensorboard(self, config):
        result = train(replace(config, epochs=1, report_to="tensorboard"))
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(result.run_dir / "tensorboard"))
        events.Reload()
        (record,) = [r for r in read_log(result.run_dir / "metrics.jsonl") if r["kind"] == "val"]
        assert events.Scalars("val/loss")[0].value == pytest.approx(record["loss"])
        assert [e.step for e in events.Scalars("train/curvature")] == [2, 3]


class TestRefusals:
    @pytest.mark.slow
    def test_a_directory_with_another_run(self, config):
        train(replace(config, max_steps=1))
        with pytest.raises(ValueError, match="holds a run already"):
            train(config)

    def test_text_only_data(self, config, tmp_path):
        path = tmp_path / "texts.jsonl"
        path.write_text(json.dumps({"safe_caption": "a dog", "unsafe_caption": "a bad dog"}) + "\n")
        with pytest.raises(ValueError, match="text-only"):
            train(replace(config, train_data=str(path)))
        with pytest.raises(ValueError, match="text-only"):
            train(replace(config, val_data=str(path)))

    def test_too_little_data(self, config):
        with pytest.raises(ValueError, match="fewer than the 64 of one step"):
            train(replace(config, batch_size=64))

    def test_unknown_names(self, config):
        with pytest.raises(ValueError, match="model_name 'ViT-Z' is unknown"):
            train(replace(config, model="ViT-Z"))
        with pytest.raises(ValueError, match=r"cannot make model 'ViT-B-32'.*no-such-tag"):
            train(replace(config, model="ViT-B-32", pretrained="no-such-tag"))
        with pytest.raises(ValueError, match="device"):
            train(replace(config, device="warp"))
        with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
            train(replace(config, train_data="missing.jsonl"))


class TestRunLog:
    def test_a_resumed_log_has_every_step_once(self, tmp_path):
        log = RunLog(tmp_path)
        for step in (2, 4, 6):
            log.write("train", step, {"loss": step / 2})
        log.close()
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "train", "step": 8, "lo')  # a process killed while it wrote
        log = RunLog(tmp_path, step=4)
        log.write("train", 6, {"loss": 9.0})
        log.close()
        assert [(r["step"], r["loss"]) for r in read_log(tmp_path / "metrics.jsonl")] == [
            (2, 1.0),
            (4, 2.0),
            (6, 9.0),
        ]

    def test_a_damaged_line_is_named(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n')
        with pytest.raises(ValueError, match="line 2 is not JSON"):
            read_log(tmp_path / "metrics.jsonl")


def parallel_worker(rank, port, configs, directory):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    import hysac.training.loop

    trained = {}

    class Spy(hysac.training.loop._Run):
        def _finish(self, number):
            trained[self.config.name] = {n: t.clone() for n, t in self.model.state_dict().items()}
            return super()._finish(number)

    hysac.training.loop._Run = Spy
    results = {}
    for config in configs:
        result = train(config)
        results[config.name] = (result.status, result.step, result.selection.to_dict(), result.metrics)
    torch.save((trained, results), f"{directory}/{rank}.pt")


@pytest.fixture(scope="module")
def parallel(toy, tmp_path_factory):
    """Two processes: a run, one with accumulation, and one that stops early."""
    directory = tmp_path_factory.mktemp("parallel")
    base = TrainConfig(
        train_data=str(toy["train"]),
        val_data=str(toy["val"]),
        model="hysac-toy",
        batch_size=4,
        epochs=2,
        lr=1e-3,
        eps=1e-4,
        scale_init=30.0,
        workers=0,
        log_every_n_steps=2,
        logs=str(directory),
        name="plain",
    )
    configs = [
        base,
        replace(base, name="accumulated", batch_size=2, accum_freq=2),
        replace(base, name="stopped", epochs=9, patience=1, lr=1e-12),
    ]
    port = 29500 + os.getpid() % 2000
    mp.spawn(parallel_worker, (port, configs, str(directory)), nprocs=2)
    ranks = [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]
    single = train(replace(base, name="single", batch_size=8))
    return ranks, single, directory, base


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("name", ["plain", "accumulated", "stopped"])
    def test_every_process_has_the_same_model(self, parallel, name):
        (first, _), (second, _) = parallel[0]
        for key, tensor in first[name].items():
            assert torch.equal(tensor, second[name][key]), key

    @pytest.mark.parametrize("name", ["plain", "accumulated"])
    def test_the_model_is_that_of_one_process_with_the_whole_batch(self, parallel, name):
        ranks, single, _, base = parallel
        initial = build_model(base).state_dict()
        wanted = Checkpoint.load(checkpoint_paths(single.run_dir / "checkpoints")[-1]).model
        for key, tensor in ranks[0][0][name].items():
            moved = (wanted[key] - initial[key]).norm()
            assert moved > 0, key
            assert (tensor - wanted[key]).norm() <= 2e-2 * moved, key

    def test_decisions_are_shared(self, parallel):
        (_, first), (_, second) = parallel[0]
        assert first == second
        assert first["stopped"][:2] == ("stopped early", 6)

    def test_validation_and_log_are_those_of_one_process(self, parallel):
        ranks, single, directory, _ = parallel
        for name, value in single.metrics.items():
            assert ranks[0][1]["plain"][3][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
        one, two = (read_log(directory / name / "metrics.jsonl") for name in ("single", "plain"))
        assert len(one) == len(two)
        for wanted, got in zip(one, two, strict=True):
            assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
            assert got["step"] == wanted["step"]

    def test_only_the_main_process_writes(self, parallel):
        _, _, directory, _ = parallel
        stored = Checkpoint.load(checkpoint_paths(directory / "plain/checkpoints")[-1])
        assert len(stored.random_states) == 2
        assert sorted(p.name for p in (directory / "plain").iterdir()) == [
            ".lock",
            "checkpoints",
            "config.json",
            "metrics.jsonl",
            "model",
        ]
