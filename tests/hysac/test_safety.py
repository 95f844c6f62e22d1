"""Scores, bounds and traversal against brute force, NumPy and formulas written out again."""

import json
import math
import re

import numpy as np
import pytest
import torch

from hysac.embeddings import Embeddings
from hysac.safety import (
    Bounds,
    ClassBounds,
    Traversal,
    calibrate_threshold,
    calibrate_thresholds,
    classification_rates,
    fit_bounds,
    roc_auc,
    traverse,
    unsafe_score,
)

CURVATURES = (0.1, 1.0, 10.0)
BOUND = ClassBounds(low_05=0.4, avg=0.45, up_95=0.5, max=0.6)


def points(*shape, norm=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return norm * x / x.norm(dim=-1, keepdim=True)


def at_distances(distances, curv, width=5, seed=0):
    """Points of the given distances from the origin: the space norm is sinh(sqrt(c) d) / sqrt(c)."""
    distances = torch.as_tensor(distances, dtype=torch.float64)
    radius = torch.sinh(math.sqrt(curv) * distances) / math.sqrt(curv)
    return radius.unsqueeze(-1) * points(*distances.shape, width, seed=seed)


def distance0(x, curv):
    return torch.asinh(math.sqrt(curv) * x.norm(dim=-1)) / math.sqrt(curv)


def distance(x, y, curv):
    inner = (x * y).sum(-1) - ((1 / curv + (x * x).sum(-1)) * (1 / curv + (y * y).sum(-1))).sqrt()
    return torch.acosh(-curv * inner) / math.sqrt(curv)


def embeddings(curv=1.0, size=400, images=True):
    def spread(center, seed):
        generator = torch.Generator().manual_seed(100 + seed)
        drawn = center + 0.05 * torch.randn(size, generator=generator, dtype=torch.float64)
        return at_distances(drawn, curv, seed=seed)

    return Embeddings(
        safe_text=spread(0.4, 1),
        safe_image=spread(0.5, 2) if images else None,
        unsafe_text=spread(0.6, 3),
        unsafe_image=spread(0.7, 4) if images else None,
        curv=curv,
    )


class TestTraverse:
    @pytest.mark.parametrize("curv", CURVATURES)
    def test_reaches_the_distance_itself_along_the_geodesic_to_the_origin(self, curv):
        x = at_distances([1.5, 0.9, 0.7001], curv)
        moved = traverse(x, 0.7, curv)
        torch.testing.assert_close(
            distance0(moved, curv), torch.full((3,), 0.7, dtype=torch.float64), rtol=1e-12, atol=0
        )
        # On the geodesic: the two parts add up to the whole, and for Lorentz points only there.
        torch.testing.assert_close(
            distance(x[:2], moved[:2], curv) + 0.7, distance0(x[:2], curv), rtol=1e-7, atol=0
        )
        torch.testing.assert_close(torch.cosine_similarity(x, moved), torch.ones(3).double())

    @pytest.mark.parametrize("mode", ["geodesic", "paper"])
    def test_near_points_and_the_origin_are_returned_as_they_are(self, mode):
        x = torch.cat([at_distances([0.01, 0.4, 0.499], 0.1), torch.zeros(1, 5).double()])
        assert torch.equal(traverse(x, 0.5, 0.1, mode), x)

    def test_any_leading_dimensions(self):
        x = at_distances(torch.linspace(0.1, 2, 24).reshape(2, 3, 4), 1.0)
        moved = traverse(x, 0.8)
        assert moved.shape == x.shape
        torch.testing.assert_close(distance0(moved, 1.0), distance0(x, 1.0).clamp(max=0.8))
        one_by_one = torch.stack([traverse(row, 0.8) for row in x.reshape(-1, 5)]).reshape(x.shape)
        assert torch.equal(moved, one_by_one)

    def test_one_bound_per_point(self):
        x = at_distances([1.0, 1.0, 1.0], 2.0)
        bound = torch.tensor([0.3, 0.6, 5.0], dtype=torch.float64)
        torch.testing.assert_close(
            distance0(traverse(x, bound, 2.0), 2.0), torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
        )

    @pytest.mark.parametrize("margin", [0.1, -0.2, -0.7])
    def test_margin_is_a_geodesic_length(self, margin):
        x = at_distances([1.0], 10.0)
        bound = torch.tensor(0.5, dtype=torch.float64)
        reached = distance0(traverse(x, bound, 10.0, margin=margin), 10.0)
        torch.testing.assert_close(reached.item(), max(0.5 + margin, 0.0))

    @pytest.mark.parametrize(
        ("curv", "bound", "tau"),
        [(0.1, 0.45, 0.4518), (0.1, 0.52, 0.5274), (1.0, 0.5, 1.2087), (10.0, 0.56, 1.536)],
    )
    def test_paper_mode_sets_the_euclidean_norm(self, curv, bound, tau):
        x = at_distances([3.0], curv)
        moved = traverse(x, bound, curv, "paper")
        assert moved.norm().item() == pytest.approx(tau, abs=6e-4 if curv == 10 else 6e-5)
        exact = bound + math.tanh((bound - 0.8) / curv) + 1
        assert moved.norm().item() == pytest.approx(exact, rel=1e-12)
        assert distance0(moved, curv).item() < exact

    def test_paper_mode_known_example_and_alpha(self):
        x = at_distances([3.0], 1.0)
        assert distance0(traverse(x, 0.5, 1.0, "paper"), 1.0).item() == pytest.approx(1.0215, abs=5e-5)
        stricter = traverse(at_distances([3.0], 0.1), 0.52, 0.1, "paper", alpha=1.0)
        assert stricter.norm().item() == pytest.approx(0.520, abs=5e-4)

    @pytest.mark.parametrize("mode", ["geodesic", "paper"])
    def test_gradients(self, mode):
        x = at_distances([2.5, 0.3, 2.8, 0.1], 0.7).requires_grad_()
        bound = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64, requires_grad=True)
        curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *a: traverse(a[0], a[1], a[2], mode), (x, bound, curv))

    @pytest.mark.parametrize("mode", ["geodesic", "paper"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_no_nan_at_the_origin_or_for_a_huge_bound(self, mode, dtype):
        x = torch.cat([torch.zeros(2, 5), at_distances([0.2, 9.0], 1.0).float()]).to(dtype).requires_grad_()
        bound = torch.tensor([0.3, 1e30, 1e30, 0.3], requires_grad=True)
        curv = torch.tensor(1.0, requires_grad=True)
        moved = traverse(x, bound, curv, mode)
        assert moved.dtype == dtype
        moved.float().square().sum().backward()
        for tensor in (moved, x.grad, bound.grad, curv.grad):
            assert torch.isfinite(tensor).all()
        assert torch.equal(moved[:3], x[:3])

    def test_compiles_without_a_graph_break(self):
        x = at_distances([0.2, 1.0], 1.0)
        bound = torch.tensor(0.5, dtype=torch.float64)
        compiled = torch.compile(traverse, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, bound, torch.tensor(1.0)), traverse(x, bound, 1.0))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((torch.ones(3), 0.0), ValueError, "bound must be positive"),
            ((torch.ones(3), math.nan), ValueError, "bound must be positive"),
            ((torch.ones(3), 0.5, -1.0), ValueError, "curv must be positive"),
            ((torch.ones(3), 0.5, 1.0, "euclidean"), ValueError, "euclidean"),
            ((torch.ones(3).long(), 0.5), TypeError, "x must be a floating tensor"),
            (([1.0], 0.5), TypeError, "got list"),
        ],
    )
    def test_bad_input(self, arguments, error, message):
        with pytest.raises(error, match=message):
            traverse(*arguments)

    def test_a_margin_that_leaves_nothing(self):
        with pytest.raises(ValueError, match=r"margin=-0\.5"):
            traverse(torch.ones(3), 0.5, margin=-0.5)


class TestTraversal:
    def rule(self, curv=0.1, **options):
        return Traversal(Bounds({"S": BOUND, "V": BOUND, "U": BOUND, "G": BOUND}, curv), **options)

    @pytest.mark.parametrize("statistic", ["low_05", "avg", "up_95"])
    @pytest.mark.parametrize(("search", "letter"), [("image", "V"), ("text", "S")])
    def test_moves_to_the_safe_class_of_what_is_searched(self, search, letter, statistic):
        bounds = fit_bounds(embeddings(curv=2.0))
        x = at_distances([1.0], 2.0)
        moved = Traversal(bounds, statistic).redirect(x, search, 2.0)
        wanted = getattr(bounds[letter], statistic)
        torch.testing.assert_close(distance0(moved, 2.0).item(), wanted)

    def test_warns_when_it_can_move_nothing(self):
        x = at_distances([0.58], 1.0)
        with pytest.warns(UserWarning, match=r"moves nothing.*geodesic"):
            assert torch.equal(self.rule(1.0, mode="paper").redirect(x, "image", 1.0), x)
        with pytest.warns(UserWarning, match=r"boundary 0\.7 .* 0\.6"):
            self.rule(1.0, statistic="up_95", margin=0.2).redirect(x, "text", 1.0)

    @pytest.mark.filterwarnings("error")
    def test_warns_about_the_class_that_queries(self):
        far = ClassBounds(0.5, 0.6, 0.7, max=0.9)
        rule = Traversal(Bounds({"S": BOUND, "V": BOUND, "U": BOUND, "G": far}), margin=0.2)
        rule.redirect(at_distances([0.8], 1.0), "text", 1.0)
        with pytest.warns(UserWarning, match="moves nothing"):
            rule.redirect(at_distances([0.8], 1.0), "image", 1.0)

    @pytest.mark.filterwarnings("error")
    def test_does_not_warn_where_it_works_or_cannot_tell(self):
        x = at_distances([0.58], 0.1)
        assert not torch.equal(self.rule(mode="paper").redirect(x, "image", 0.1), x)
        published = Bounds({"V": ClassBounds(0.4, 0.45, 0.5)})
        Traversal(published, mode="paper").redirect(x, "image", 1.0)

    def test_bounds_of_another_curvature_are_refused(self):
        with pytest.raises(ValueError, match=r"curv=0\.1 and the points have curv=1\.0"):
            self.rule().redirect(points(2, 5), "image", 1.0)

    def test_bad_options(self):
        with pytest.raises(ValueError, match="median"):
            self.rule(statistic="median")
        with pytest.raises(ValueError, match="linear"):
            self.rule(mode="linear")
        with pytest.raises(ValueError, match="audio"):
            self.rule().redirect(points(2, 5), "audio", 0.1)


class TestBounds:
    def test_fit_matches_numpy(self):
        curv = 3.0
        bounds = fit_bounds(embeddings(curv))
        assert bounds.curv == curv
        for letter in "SVUG":
            distances = distance0(embeddings(curv)[letter], curv).numpy()
            fitted = bounds[letter]
            assert fitted.low_05 == pytest.approx(np.percentile(distances, 5), rel=1e-12)
            assert fitted.up_95 == pytest.approx(np.percentile(distances, 95), rel=1e-12)
            assert fitted.avg == pytest.approx(distances.mean(), rel=1e-12)
            assert fitted.max == pytest.approx(distances.max(), rel=1e-12)

    def test_fit_text_only(self):
        bounds = fit_bounds(embeddings(images=False))
        assert set(bounds.classes) == {"S", "U"}
        with pytest.raises(ValueError, match="no bounds for class 'V'; there are S, U"):
            bounds["V"]

    @pytest.mark.filterwarnings("error")
    def test_fit_of_a_single_distance(self):
        x = at_distances([0.3] * 7, 1.0)
        bounds = fit_bounds(Embeddings(None, None, x, x, curv=1.0))
        assert bounds["S"].low_05 == pytest.approx(0.3)
        assert bounds["S"].up_95 == pytest.approx(0.3)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("rounding", [-1e-9, 1e-9])
    def test_a_mean_rounded_beyond_the_percentiles_is_none_of_skewed_distances(self, rounding):
        ClassBounds(low_05=0.3, avg=0.3 * (1 + rounding), up_95=0.3)

    def test_fit_at_the_origin_is_refused(self):
        with pytest.raises(ValueError, match="low_05 must be positive"):
            fit_bounds(Embeddings(None, None, torch.zeros(4, 3), torch.zeros(4, 3), curv=1.0))

    def test_round_trip_is_exact(self, tmp_path):
        bounds = fit_bounds(embeddings(0.3))
        bounds.save(tmp_path / "new" / "bounds.json")
        assert Bounds.load(tmp_path / "new" / "bounds.json") == bounds

    def test_the_published_shape(self, tmp_path):
        data = {letter: {"up_95": 0.5, "low_05": 0.4, "avg": 0.45} for letter in "SVUG"}
        path = tmp_path / "hysac_bounds.json"
        path.write_text(json.dumps(data))
        bounds = Bounds.load(path)
        assert bounds.curv is None
        assert bounds["V"] == ClassBounds(low_05=0.4, avg=0.45, up_95=0.5)
        assert bounds.to_dict() == data

    def test_saving_is_all_or_nothing(self, tmp_path, monkeypatch):
        path = tmp_path / "bounds.json"
        bounds = fit_bounds(embeddings())
        bounds.save(path)
        before = path.read_text()

        def fail(descriptor):
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            bounds.save(path)
        assert path.read_text() == before
        assert [file.name for file in tmp_path.iterdir()] == ["bounds.json"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[]", "bounds must be a mapping of classes, got list"),
            ("null", "bounds must be a mapping of classes"),
            ('{"V": []}', "bounds of class V must be a mapping, got list"),
            (
                '{"V": {"low_05": null, "avg": 1, "up_95": 1}}',
                "bounds of class V: low_05 must be a number, got None",
            ),
            (
                '{"V": {"low_05": true, "avg": 1, "up_95": 1}}',
                "bounds of class V: low_05 must be a number, got True",
            ),
            (
                '{"V": {"low_05": 1, "avg": 1, "up_95": 1%s}}' % ("0" * 400),
                "bounds of class V: up_95 must be positive and",
            ),
            (
                '{"V": {"low_05": 1, "avg": NaN, "up_95": 1}}',
                "bounds of class V: avg must be positive and finite, got nan",
            ),
            ('{"V": {"low_05": 1, "avg": 1, "up_95": 1}, "curv": []}', r"curv must be a number, got \[\]"),
            ('{"V": {"low_05": 1, "avg": 1, "up_95": 1}, "curv": true}', "curv must be a number, got True"),
        ],
    )
    def test_a_file_of_another_shape_is_named(self, tmp_path, content, message):
        (tmp_path / "bounds.json").write_text(content)
        with pytest.raises(ValueError, match=rf"bounds\.json: {message}"):
            Bounds.load(tmp_path / "bounds.json")

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            ({}, ValueError, "some of S, V, U, G, got none"),
            ([], TypeError, "mapping of classes, got list"),
            ({"V": 0.5}, TypeError, "class V must be a mapping"),
            ({"V": {"avg": 0.5}}, ValueError, "class V lack low_05, up_95"),
            (
                {"V": {"low_05": 0.6, "avg": 0.5, "up_95": 0.5}},
                ValueError,
                "class V: low_05 must not exceed up_95",
            ),
            ({"V": {"low_05": 0.0, "avg": 0.5, "up_95": 0.5}}, ValueError, "low_05 must be positive"),
            (
                {"V": {"low_05": 0.4, "avg": math.nan, "up_95": 0.5}},
                ValueError,
                "avg must be positive and finite",
            ),
            (
                {"V": {"low_05": 0.4, "avg": "0.45", "up_95": 0.5}},
                TypeError,
                "avg must be a number, got '0.45'",
            ),
            (
                {"V": {"low_05": 0.4, "avg": 0.45, "up_95": 0.5, "max": 0.49}},
                ValueError,
                "max must not be less",
            ),
            (
                {"V": {"low_05": 0.4, "avg": 0.45, "up_95": 0.5}, "curv": 0.0},
                ValueError,
                "curv must be positive",
            ),
        ],
    )
    def test_impossible_bounds(self, data, error, message):
        with pytest.raises(error, match=message):
            Bounds.from_dict(data)

    def test_mixed_up_fields_warn(self):
        with pytest.warns(UserWarning, match="mixed up"):
            ClassBounds(low_05=0.4, avg=0.5, up_95=0.45)

    def test_not_json(self, tmp_path):
        (tmp_path / "bounds.json").write_text("{")
        with pytest.raises(ValueError, match=r"bounds\.json is not JSON"):
            Bounds.load(tmp_path / "bounds.json")


class TestScores:
    @pytest.mark.parametrize("curv", CURVATURES)
    def test_unsafe_score_is_the_distance_to_the_origin(self, curv):
        wanted = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
        torch.testing.assert_close(unsafe_score(at_distances(wanted, curv), curv), wanted, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("levels", [4, 1000])
    def test_auc_counts_pairs(self, levels):
        generator = torch.Generator().manual_seed(1)
        safe = torch.randint(levels, (37,), generator=generator).float()
        unsafe = (torch.randint(levels, (23,), generator=generator) + levels // 4).float()
        difference = unsafe[:, None] - safe[None]
        wanted = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
        assert roc_auc(safe, unsafe) == pytest.approx(wanted, rel=1e-12)
        assert roc_auc(unsafe, safe) == pytest.approx(1 - wanted, rel=1e-12)

    def test_auc_of_a_collapsed_model_is_one_half(self):
        assert roc_auc(torch.ones(5), torch.ones(3)) == 0.5

    @pytest.mark.parametrize("seed", range(5))
    def test_threshold_has_the_greatest_balanced_accuracy(self, seed):
        generator = torch.Generator().manual_seed(seed)
        safe = torch.randint(20, (31,), generator=generator).double()
        unsafe = torch.randint(8, 28, (11,), generator=generator).double()

        def balanced(threshold):
            return ((safe <= threshold).double().mean() + (unsafe > threshold).double().mean()).item() / 2

        threshold = calibrate_threshold(safe, unsafe)
        best = max(balanced(value) for value in torch.arange(-0.5, 28, 0.5).tolist())
        assert balanced(threshold) == pytest.approx(best, rel=1e-12)

    def test_threshold_is_midway_and_ignores_class_sizes(self):
        assert calibrate_threshold(torch.tensor([1.0, 2.0]), torch.tensor([5.0])) == 3.5
        safe, unsafe = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([4.0, 8.0])
        threshold = calibrate_threshold(safe, unsafe)
        assert calibrate_threshold(safe.repeat(50), unsafe) == threshold

    @pytest.mark.parametrize(("share", "threshold"), [(1e-5, 9.5), (0.1, 8.5), (0.29, 7.5), (0.3, 6.5)])
    def test_threshold_at_a_false_positive_rate(self, share, threshold):
        safe = torch.arange(10.0)
        unsafe = torch.tensor([10.0, 11.0])
        found = calibrate_threshold(safe, unsafe, f"fpr={share:g}")
        assert found == threshold
        assert classification_rates(safe, unsafe, found)["fpr"] <= share

    def test_a_rate_that_is_met_exactly_counts(self):
        """0.29 * 100 is less than 29 in floating point; 29 / 100 is not more than 0.29."""
        scores = torch.arange(100.0)
        assert calibrate_threshold(scores, scores, "fpr=0.29") == 70.5
        assert calibrate_threshold(scores, scores, "fnr=0.29") == 28.5

    def test_rates(self):
        safe, unsafe = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 5.0])
        assert classification_rates(safe, unsafe, 3.0) == {"accuracy": 4 / 6, "fpr": 0.25, "fnr": 0.5}

    def test_thresholds_per_modality(self):
        both, text = (calibrate_thresholds(embeddings(images=images)) for images in (True, False))
        assert both.keys() == {"text", "image"}
        assert text == {"text": both["text"]}
        assert both["text"] == pytest.approx(0.5, abs=0.02)
        assert both["image"] == pytest.approx(0.6, abs=0.02)

    @pytest.mark.parametrize("function", [roc_auc, calibrate_threshold])
    def test_bad_scores(self, function):
        good = torch.ones(3)
        with pytest.raises(ValueError, match=r"unsafe_scores.*\(0,\)"):
            function(good, good[:0])
        with pytest.raises(ValueError, match="safe_scores has entries that are not finite"):
            function(torch.tensor([math.nan]), good)
        with pytest.raises(TypeError, match="got list"):
            function([1.0], good)

    @pytest.mark.parametrize("target", ["fpr", "fpr=", "fpr=1", "fnr=0", "fpr=nan", "f1", "youden=0.5", ""])
    def test_bad_target(self, target):
        with pytest.raises(ValueError, match=re.escape(f"X in (0, 1), got {target!r}")):
            calibrate_threshold(torch.ones(2), torch.ones(2), target)
