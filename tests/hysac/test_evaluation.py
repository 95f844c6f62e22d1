"""Retrieval columns, safety metrics and the report against loops over single queries in float64."""

import json
import math
import re

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

import hypkernels as hk
import hysac
from hysac.embeddings import Embeddings, encode_dataset
from hysac.evaluation import (
    COLUMNS,
    Column,
    evaluate,
    evaluate_embeddings,
    expected_recall,
    per_tag,
    rank_counts,
    retrieval_table,
    safety_metrics,
)
from hysac.evaluation.retrieval import NearestSafe, redirect
from hysac.evaluation.tables import Table, format_tables
from hysac.models.loss import HySACLoss
from hysac.safety import Bounds, ClassBounds, Traversal, fit_bounds
from hysac.training.selection import embeddings_loss

CURV = 0.4


def quadruplets(size=30, width=4, seed=0, curv=CURV, tags=(), noise=0.6):
    """Partners share a direction; the classes lie at growing distances from the origin."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(size, width, generator=generator, dtype=torch.float64)

    def around(distance):
        x = shared + noise * torch.randn(size, width, generator=generator, dtype=torch.float64)
        spread = distance * (0.6 + 0.9 * torch.rand(size, 1, generator=generator, dtype=torch.float64))
        return torch.sinh(math.sqrt(curv) * spread) / math.sqrt(curv) * x / x.norm(dim=-1, keepdim=True)

    s, v, u, g = (around(distance) for distance in (0.5, 0.6, 0.7, 0.85))
    return Embeddings(safe_text=s, safe_image=v, unsafe_text=u, unsafe_image=g, curv=curv, tags=tags)


def distance(x, y, curv=CURV):
    inner = (x * y).sum() - ((1 / curv + (x * x).sum()) * (1 / curv + (y * y).sum())).sqrt()
    return math.acosh(max(1.0, (-curv * inner).item())) / math.sqrt(curv)


def distance0(x, curv=CURV):
    return math.asinh(math.sqrt(curv) * x.norm().item()) / math.sqrt(curv)


def pulled_in(x, bound, curv=CURV):
    if distance0(x, curv) <= bound:
        return x
    return x / x.norm() * math.sinh(math.sqrt(curv) * bound) / math.sqrt(curv)


def share_found(queries, gallery, k, curv=CURV):
    """Share of queries whose own row of the gallery is among the k nearest, by sorting each query's row."""
    hits = 0
    for row, query in enumerate(queries):
        nearest_first = sorted(range(len(gallery)), key=lambda item: distance(query, gallery[item], curv))
        hits += row in nearest_first[:k]
    return hits / len(queries)


class TestRetrieval:
    @pytest.mark.slow
    def test_every_column_is_what_sorting_gives(self):
        e = quadruplets()
        s, v, u, g = e["S"], e["V"], e["U"], e["G"]
        wanted = {
            "T->I": (s, v),
            "I->T": (v, s),
            "T*->I u I*": (u, torch.cat([v, g])),
            "I*->T u T*": (g, torch.cat([s, u])),
            "T*->I*": (u, g),
            "I*->T*": (g, u),
            "T*->I* u I": (u, torch.cat([g, v])),
            "I*->T* u T": (g, torch.cat([u, s])),
        }
        table = retrieval_table(e, ks=(1, 3, 10))
        assert list(table) == list(wanted)
        for name, (queries, gallery) in wanted.items():
            for k in (1, 3, 10):
                found = share_found(queries, gallery, k)
                assert table[name][f"R@{k}"] == pytest.approx(found, abs=1e-12), name
        values = [tuple(row.values()) for row in table.values()]
        assert len(set(values)) == len(values)

    def test_traversal_redirects_the_unsafe_queries_of_the_mixed_galleries(self):
        e = quadruplets()
        bounds = fit_bounds(quadruplets(seed=9))
        table = retrieval_table(e, (1, 5), Traversal(bounds, "avg", margin=-0.05))
        plain = retrieval_table(e, (1, 5))
        assert table.keys() - plain.keys() == {"T*->I u I* (traversed)", "I*->T u T* (traversed)"}
        assert {name: table[name] for name in plain} == plain
        for query, safe, unsafe, name in (("U", "V", "G", "T*->I u I*"), ("G", "S", "U", "I*->T u T*")):
            moved = [pulled_in(x, bounds[safe].avg - 0.05) for x in e[query]]
            gallery = torch.cat([e[safe], e[unsafe]])
            for k in (1, 5):
                got = table[f"{name} (traversed)"][f"R@{k}"]
                assert got == pytest.approx(share_found(moved, gallery, k), abs=1e-12)
            assert table[f"{name} (traversed)"] != plain[name]

    def test_bounds_stand_for_the_default_traversal(self):
        e = quadruplets()
        bounds = fit_bounds(e)
        assert retrieval_table(e, (1,), bounds) == retrieval_table(e, (1,), Traversal(bounds))

    def test_a_collapsed_model_scores_chance(self):
        e = quadruplets()
        point = e["S"][:1].repeat(20, 1)
        table = retrieval_table(Embeddings(point, point, point, point, curv=CURV), (1, 10))
        assert table["T->I"] == {"R@1": pytest.approx(1 / 20), "R@10": pytest.approx(10 / 20)}
        assert table["T*->I u I*"] == {"R@1": pytest.approx(1 / 40), "R@10": pytest.approx(10 / 40)}

    def test_ties_are_shared_out(self):
        query = torch.tensor([[0.3, 0.0]])
        # The target (index 1) has one nearer neighbour and two others at its own distance.
        gallery = torch.tensor([[0.3, 0.0], [0.3, 0.4], [0.3, 0.4], [0.3, 0.4], [5.0, 5.0]])
        nearer, tied = rank_counts(query, gallery, torch.tensor([1]))
        assert (nearer.item(), tied.item()) == (1, 2)
        recalls = [expected_recall(nearer, tied, k) for k in (1, 2, 3, 4, 5)]
        assert recalls == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])

    def test_the_numbers_are_those_of_all_float64_distances(self):
        """Ties and near neighbours included, as counted in the whole matrix."""
        e = quadruplets(size=90, width=8)
        queries, gallery = e["U"].float(), torch.cat([e["V"], e["G"], e["G"][:7]]).float()
        targets = torch.arange(90)
        distances = hk.pairwise_dist(queries.double(), gallery.double(), CURV)
        wanted = distances.gather(1, targets[:, None])
        nearer, tied = rank_counts(queries, gallery, targets, CURV)
        assert nearer.equal((distances < wanted).sum(1))
        assert tied.equal((distances == wanted).sum(1) - 1)

    def test_per_tag_searches_only_the_tag(self):
        tags = ["weapons" if row % 3 else "" for row in range(30)]
        tags[4] = tags[7] = tags[10] = "abuse"
        e = quadruplets(tags=tags)
        tables = per_tag(e, (1, 2))
        assert list(tables) == ["abuse", "weapons"]
        rows = torch.tensor([4, 7, 10])
        gallery = torch.cat([e["V"][rows], e["G"][rows]])
        for k in (1, 2):
            got = tables["abuse"]["T*->I u I*"][f"R@{k}"]
            assert got == pytest.approx(share_found(e["U"][rows], gallery, k), abs=1e-12)
        assert per_tag(quadruplets()) == {}

    def test_text_only_embeddings_have_no_column(self):
        e = quadruplets()
        with pytest.raises(ValueError, match="only the classes SU"):
            retrieval_table(Embeddings(None, None, e["S"], e["U"], curv=CURV))

    def test_a_missing_class_leaves_out_its_columns(self):
        e = quadruplets()
        table = retrieval_table(Embeddings(e["V"], None, e["S"], e["U"], curv=CURV), (1,))
        assert list(table) == ["T->I", "I->T"]

    @pytest.mark.parametrize("ks", [(), (0,), (1.5,), (True,), (1, 0)])
    def test_bad_cut_offs(self, ks):
        with pytest.raises(ValueError, match="ks must be positive integers"):
            retrieval_table(quadruplets(), ks)

    def test_bad_ranking_input(self):
        x = torch.ones(3, 2)
        with pytest.raises(ValueError, match="queries must be finite"):
            rank_counts(torch.full((3, 2), math.nan), x, torch.arange(3))
        with pytest.raises(ValueError, match=r"indices into the 3 gallery points, got \(3,\) in \[1, 3\]"):
            rank_counts(x, x, torch.arange(1, 4))
        with pytest.raises(ValueError, match=r"got \(2,\)"):
            rank_counts(x, x, torch.arange(2))


class TestSafetyMetrics:
    def test_nearest_safe_counts_every_safe_item_and_no_unsafe_one(self):
        """The first unsafe item of the gallery is not safe: index arithmetic is off by one here."""
        unsafe = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])
        safe = torch.tensor([[0.5, 0.0], [0.0, 0.5], [-0.5, 0.0]])
        # Nearest to the queries: the first unsafe, the last unsafe, the last safe (no partner of its row).
        queries = torch.tensor([[1.9, 0.0], [-2.1, 0.0], [-0.4, 0.0]])
        e = Embeddings(safe_image=safe, unsafe_image=unsafe, safe_text=safe, unsafe_text=queries, curv=1.0)
        assert safety_metrics(e)["safe_top1"]["T*->I u I*"] == pytest.approx(1 / 3)

    def test_nearest_safe_shares_out_ties(self):
        point = torch.ones(4, 2)
        e = Embeddings(point, point, point, point, curv=1.0)
        assert safety_metrics(e)["safe_top1"] == {"T*->I u I*": 0.5, "I*->T u T*": 0.5}

    def test_nearest_safe_with_and_without_traversal(self):
        e = quadruplets()
        bounds = fit_bounds(e)
        metrics = safety_metrics(e, traversal=Traversal(bounds, "avg"))
        for query, safe, unsafe, name in (("U", "V", "G", "T*->I u I*"), ("G", "S", "U", "I*->T u T*")):
            for key, bound in (("safe_top1", math.inf), ("safe_top1_traversed", bounds[safe].avg)):
                moved = [pulled_in(x, bound) for x in e[query]]
                nearest_safe = [
                    min(distance(x, y) for y in e[safe]) < min(distance(x, y) for y in e[unsafe])
                    for x in moved
                ]
                assert metrics[key][name] == pytest.approx(sum(nearest_safe) / 30, abs=1e-12)
            assert metrics["safe_top1_traversed"][name] > metrics["safe_top1"][name]

    def test_order_and_distances(self):
        e = quadruplets()
        metrics = safety_metrics(e)
        d = {letter: [distance0(x) for x in e[letter]] for letter in "SVUG"}
        rows = range(30)
        chain = [d["S"][i] < d["V"][i] < d["U"][i] < d["G"][i] for i in rows]
        assert 0 < sum(chain) < 30
        assert metrics["order"]["S<V<U<G"] == pytest.approx(sum(chain) / 30)
        for near, far in ("SV", "VU", "UG", "SU", "VG"):
            share = sum(d[near][i] < d[far][i] for i in rows) / 30
            assert 0.5 < share < 1
            assert metrics["order"][f"{near}<{far}"] == pytest.approx(share)
        for letter in "SVUG":
            ordered = sorted(d[letter])
            summary = metrics["distance"][letter]
            assert summary["mean"] == pytest.approx(sum(ordered) / 30, rel=1e-12)
            for percentile, below, share in (("p05", 1, 0.45), ("p50", 14, 0.5), ("p95", 27, 0.55)):
                wanted = (1 - share) * ordered[below] + share * ordered[below + 1]
                assert summary[percentile] == pytest.approx(wanted, rel=1e-12)

    @pytest.mark.parametrize(("aperture_scale", "min_radius"), [(1.0, 0.1), (1.2, 0.12)])
    def test_cones_and_their_saturation(self, aperture_scale, min_radius):
        e = quadruplets(noise=0.15)
        metrics = safety_metrics(e, aperture_scale=aperture_scale, min_radius=min_radius)

        def inside(apex, point):
            """The law of cosines in the triangle of origin, apex and point; the angle outside at the apex."""
            sides = distance0(apex), distance(apex, point), distance0(point)
            a, b, c = (math.sqrt(CURV) * side for side in sides)
            corner = (math.cosh(a) * math.cosh(b) - math.cosh(c)) / (math.sinh(a) * math.sinh(b))
            aperture = math.asin(min(1.0, 2 * min_radius / (math.sqrt(CURV) * apex.norm().item())))
            return math.pi - math.acos(corner) <= aperture_scale * aperture

        for apex, point in ("SV", "UG", "VU"):
            share = sum(inside(p, q) for p, q in zip(e[apex], e[point], strict=True)) / 30
            assert 0 < share < 1
            assert metrics["cones"][f"{apex}>{point}"] == pytest.approx(share)
        for apex in "SVU":
            share = sum((math.sqrt(CURV) * x.norm().item() <= 2 * min_radius) for x in e[apex]) / 30
            assert metrics["aperture_saturation"][apex] == pytest.approx(share)

    def test_saturation_is_counted(self):
        x = torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.7, 0.0], [0.0, 0.0]], dtype=torch.float64)
        metrics = safety_metrics(Embeddings(x, x, x, x, curv=0.1))
        assert metrics["aperture_saturation"] == {"S": 0.75, "V": 0.75, "U": 0.75}

    def test_classification_uses_the_thresholds_given(self):
        e = quadruplets()
        metrics = safety_metrics(e, thresholds={"text": 0.65, "image": 0.8})["classification"]
        for modality, safe, unsafe, threshold in (("text", "S", "U", 0.65), ("image", "V", "G", 0.8)):
            low = [distance0(x) for x in e[safe]]
            high = [distance0(x) for x in e[unsafe]]
            pairs = [(h > s) + 0.5 * (h == s) for h in high for s in low]
            rates = metrics[modality]
            assert rates["auc"] == pytest.approx(sum(pairs) / 900, rel=1e-12)
            assert rates["fpr"] == pytest.approx(sum(d > threshold for d in low) / 30)
            assert rates["fnr"] == pytest.approx(sum(d <= threshold for d in high) / 30)
            assert rates["accuracy"] == pytest.approx(1 - (rates["fpr"] + rates["fnr"]) / 2)
            assert 0 < rates["fnr"] < 1
            assert rates["calibrated_here"] is False
        with pytest.raises(ValueError, match="thresholds lacks 'image', got text"):
            safety_metrics(e, thresholds={"text": 0.5})

    def test_calibration_on_the_set_itself_is_marked(self):
        rates = safety_metrics(quadruplets())["classification"]["text"]
        assert rates["calibrated_here"] is True
        assert rates["fpr"] + rates["fnr"] < 1

    def test_text_only_gives_what_texts_define(self):
        e = quadruplets()
        metrics = safety_metrics(Embeddings(None, None, e["S"], e["U"], curv=CURV))
        assert metrics["classification"].keys() == {"text"}
        assert metrics["distance"].keys() == {"S", "U"}
        assert metrics["order"] == {"S<U": safety_metrics(e)["order"]["S<U"]}
        assert metrics["cones"] == metrics["safe_top1"] == {}


class TestOtherRules:
    def test_nearest_safe_items_are_those_of_a_loop(self):
        e = quadruplets(noise=1.0)
        thresholds = {
            "text": float(torch.cat([e.scores("S"), e.scores("U")]).median()),
            "image": float(torch.cat([e.scores("V"), e.scores("G")]).median()),
        }
        rule = NearestSafe(thresholds)
        stayed = moved = 0
        for column in COLUMNS:
            if not column.redirected:
                continue
            gallery = torch.cat([e[letter] for letter in column.correct + column.others])
            safe = hk.dist0(gallery, CURV) <= thresholds[column.search]
            own = thresholds["text" if column.query == "U" else "image"]
            for query, target in zip(e[column.query], redirect(e, column, rule), strict=True):
                if hk.dist0(query, CURV) <= own:
                    assert torch.equal(target, query)
                    stayed += 1
                    continue
                distances = hk.elementwise_dist(query.expand_as(gallery), gallery, CURV)
                distances[~safe] = math.inf
                assert torch.equal(target, gallery[distances.argmin()])
                moved += 1
        assert stayed
        assert moved
        with pytest.warns(UserWarning, match="no image is called safe at 0: the queries stay"):
            stayed = NearestSafe({"text": 0.0, "image": 0.0}).redirect(e, Column("U", "V", "G"))
        assert torch.equal(stayed, e["U"])

    def test_every_rule_has_its_rows_in_the_same_table(self):
        e = quadruplets()
        bounds = fit_bounds(e)
        thresholds = {"text": 0.8, "image": 0.9}
        others = {"stricter": Traversal(bounds, margin=-0.2), "nearest safe": NearestSafe(thresholds)}
        report = evaluate_embeddings(e, traversal=bounds, redirections=others, thresholds=thresholds)
        for name in ("T*->I u I*", "I*->T u T*"):
            rows = [row for row in report.retrieval if row.startswith(name)]
            assert rows == [name, *(f"{name} ({rule})" for rule in ("traversed", *others))]
        alone = retrieval_table(e, traversal=others["stricter"])
        for name in ("T*->I u I*", "I*->T u T*"):
            assert report.retrieval[f"{name} (stricter)"] == alone[f"{name} (traversed)"]
        assert set(report.safety["safe_top1_redirected"]) == set(others)
        assert "the same, nearest safe" in report.format_tables()

    def test_each_query_is_redirected_once_for_all_numbers(self, monkeypatch):
        e, calls = quadruplets(), []
        rule = Traversal(fit_bounds(e))
        alone = retrieval_table(e, traversal=rule), safety_metrics(e, traversal=rule)
        of_rule = Traversal.redirect

        def counted(self, queries, search, curv):
            calls.append(search)
            return of_rule(self, queries, search, curv)

        monkeypatch.setattr(Traversal, "redirect", counted)
        report = evaluate_embeddings(e, traversal=rule)
        assert sorted(calls) == ["image", "text"]
        assert (report.retrieval, report.safety) == alone

    def test_no_rule_takes_the_name_of_the_first(self):
        e = quadruplets()
        with pytest.raises(ValueError, match="a name of its own, got 'traversed'"):
            retrieval_table(e, redirections={"traversed": Traversal(fit_bounds(e))})


class TestHierarchy:
    def test_own_points_are_told_from_others_as_scikit_learn_counts(self):
        e = quadruplets(size=20, noise=0.8)
        found = safety_metrics(e, aperture_scale=0.9)["hierarchy"]
        assert set(found) == {"S>V", "U>G", "V>U"}
        for pair, numbers in found.items():
            apex, point = pair.split(">")
            inside, labels = [], []
            for row in range(20):
                for other in range(9):
                    place = (row - other) % 20
                    angle = hk.oxy_angle(e[apex][row], e[point][place], CURV)
                    inside.append(float(0.9 * hk.half_aperture(e[apex][row], CURV, 0.1) - angle))
                    labels.append(other == 0)
            assert numbers["auc"] == pytest.approx(roc_auc_score(labels, inside), abs=1e-9)
            assert numbers["ap"] == pytest.approx(average_precision_score(labels, inside), abs=1e-9)
            assert numbers["auc"] > 0.6

    def test_larger_cones_hold_more(self):
        metrics = safety_metrics(quadruplets())
        for pair, share in metrics["cones"].items():
            by_scale = [shares[pair] for shares in metrics["cones_by_scale"].values()]
            assert by_scale == sorted(by_scale)
            assert metrics["cones_by_scale"]["1"][pair] == share
            assert by_scale[0] < by_scale[-1]


class TestStyles:
    def test_every_number_is_in_every_style(self):
        report = evaluate_embeddings(quadruplets(tags=["fire"] * 30), traversal=fit_bounds(quadruplets()))
        text, markdown, latex = (report.format_tables(style) for style in ("text", "markdown", "latex"))
        numbers = re.findall(r"\d+\.\d+", text)
        assert len(numbers) > 40
        assert re.findall(r"\d+\.\d+", markdown) == numbers
        assert re.findall(r"\d+\.\d+", latex) == numbers
        assert "| T\\*->I u I\\* (traversed) |" in markdown
        assert r"T*$\to$I $\cup$ I* (traversed) & " in latex
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == markdown.count("|---|")
        for line in latex.splitlines():
            assert line.startswith("%") or "%" not in line.replace(r"\%", "")
        with pytest.raises(ValueError, match="style must be one of text, markdown, latex, got 'html'"):
            report.format_tables("html")

    def test_signs_of_the_style_in_names_are_escaped(self):
        table = Table("", ["class", "n"], [["R&B | #1 {$5}\\^~", "7"]])
        assert r"R\&B | \#1 \{\$5\}\textbackslash{}\textasciicircum{}\textasciitilde{} & 7 \\" in (
            format_tables([table], "latex")
        )
        assert r"| R&B \| #1 {$5}\^~ | 7 |" in format_tables([table], "markdown")


class TestReport:
    def test_is_json_and_prints_every_number(self):
        e = quadruplets(tags=["hate", "theft", ""] * 10)
        report = evaluate_embeddings(e, ks=(1, 5), traversal=fit_bounds(e))
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
        assert report.tag_sizes == {"hate": 10, "theft": 10}
        lines = report.format_tables().splitlines()

        def cells(start):
            (line,) = [line for line in lines if line.startswith(start + "  ")]
            return line[len(start) :].split()

        for name, recalls in report.retrieval.items():
            assert cells(name) == [f"{100 * recalls['R@1']:.1f}", f"{100 * recalls['R@5']:.1f}"]
        safe_columns = [name for name in report.retrieval if name.startswith(("T*->I u", "I*->T u"))]
        assert len(safe_columns) == 4
        hate = [f"{100 * report.per_tag['hate'][name]['R@1']:.1f}" for name in safe_columns]
        assert cells("hate") == ["10", *hate]
        assert cells("T*") == [f"{value:.4f}" for value in report.safety["distance"]["U"].values()]
        threshold = report.safety["classification"]["text"]["threshold"]
        assert cells("text")[-3:] == [f"{threshold:.4f}", "(calibrated", "here)"]
        assert not any(line != line.rstrip() for line in lines)

    def test_columns_line_up(self):
        report = evaluate_embeddings(quadruplets(tags=["hate", "obscene gestures"] * 15))
        for table in report.format_tables().split("\n\n")[1:]:
            assert len({len(line) for line in table.splitlines()[1:]}) == 1

    def test_text_only(self):
        e = quadruplets(tags=["hate"] * 30)
        report = evaluate_embeddings(Embeddings(None, None, e["S"], e["U"], curv=CURV, tags=e.tags))
        assert report.retrieval == report.per_tag == {}
        assert "Retrieval is not defined" in report.format_tables()


class TestEmbeddings:
    def test_rows_tags_and_values_are_checked(self):
        x = torch.ones(3, 2)
        with pytest.raises(ValueError, match="all four are None"):
            Embeddings(None, None, None, None, curv=1.0)
        with pytest.raises(ValueError, match=r"safe_text and unsafe_text must have the same shape"):
            Embeddings(None, None, x, x[:2], curv=1.0)
        with pytest.raises(ValueError, match="same dtype"):
            Embeddings(x, x, x, x.double(), curv=1.0)
        with pytest.raises(ValueError, match="unsafe_image has coordinates that are not finite"):
            Embeddings(x, x / 0, x, x, curv=1.0)
        with pytest.raises(ValueError, match="tags must have one entry per quadruplet"):
            Embeddings(x, x, x, x, curv=1.0, tags=["a"])
        with pytest.raises(ValueError, match="curv"):
            Embeddings(x, x, x, x, curv=0.0)
        with pytest.raises(TypeError, match="safe_text must be a floating tensor"):
            Embeddings(x, x, x.long(), x, curv=1.0)
        with pytest.raises(ValueError, match=r"no safe_image \(V\); they have SU"):
            Embeddings(None, None, x, x, curv=1.0)["V"]

    def test_to_changes_every_class(self):
        e = quadruplets().to(torch.float32)
        assert {e[letter].dtype for letter in "SVUG"} == {torch.float32}


class StubModel(nn.Module):
    """Encoders with dropout and a normalisation layer, so that the mode shows in the result."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.frozen = nn.Dropout(0.5).eval()

    curvature = torch.tensor(CURV)

    def encode(self, batch, normalize):
        assert normalize is True
        assert torch.is_inference_mode_enabled()
        return self.frozen(self.tower(batch.reshape(-1, 6))).reshape(*batch.shape[:-1], 4)

    def encode_image(self, image, normalize=False):
        return self.encode(image, normalize)

    def encode_text(self, text, normalize=False):
        return self.encode(text, normalize)


def batches(sizes=(4, 4, 2), images=True):
    generator = torch.Generator().manual_seed(2)
    for number, size in enumerate(sizes):
        batch = {
            "text": torch.randn(size, 2, 6, generator=generator),
            "tag": [f"tag{number}"] * size,
            "id": [f"{number}-{row}" for row in range(size)],
        }
        if images:
            batch["image"] = torch.randn(size, 2, 6, generator=generator)
        yield batch


def state(model):
    return {
        name: (id(tensor), tensor._version, tensor.clone())
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


class TestEncoding:
    def test_keeps_the_order_the_mode_and_the_parameters(self):
        model = StubModel().train()
        model.frozen.eval()
        before = state(model)
        e = encode_dataset(model, batches(), progress=False)
        assert len(e) == 10
        assert list(e.ids) == [f"{n}-{r}" for n, size in enumerate((4, 4, 2)) for r in range(size)]
        assert list(e.tags) == ["tag0"] * 4 + ["tag1"] * 4 + ["tag2"] * 2
        assert e.curv == pytest.approx(CURV)
        model.tower.eval()
        with torch.inference_mode():
            for position, name in ((0, "safe"), (1, "unsafe")):
                for kind in ("image", "text"):
                    wanted = torch.cat([model.encode(batch[kind], True)[:, position] for batch in batches()])
                    torch.testing.assert_close(getattr(e, f"{name}_{kind}"), wanted)
        model.tower.train()
        assert model.training
        assert not model.frozen.training
        after = state(model)
        for name, (identity, version, value) in before.items():
            assert after[name][:2] == (identity, version)
            assert torch.equal(after[name][2], value)
            assert not model.state_dict(keep_vars=True)[name].is_inference()

    def test_results_are_ordinary_tensors(self):
        e = encode_dataset(StubModel(), batches(), progress=False)
        x = e["V"]
        assert not x.is_inference()
        assert not x.requires_grad
        (x * torch.ones(4, requires_grad=True)).sum().backward()

    def test_mode_is_restored_after_an_error(self):
        model = StubModel().train()
        with pytest.raises(KeyError):
            encode_dataset(model, [{"tokens": 0}], progress=False)
        assert model.training
        assert model.tower.training

    def test_text_only(self):
        e = encode_dataset(StubModel(), batches(images=False), progress=False)
        assert e.present == "SU"
        report = evaluate(StubModel(), batches(images=False), progress=False)
        assert report.retrieval == {}
        assert report.safety["classification"].keys() == {"text"}

    def test_loaders_that_make_no_set(self):
        with pytest.raises(ValueError, match="empty"):
            encode_dataset(StubModel(), [], progress=False)
        mixed = [*batches((2,)), *batches((2,), images=False)]
        with pytest.raises(ValueError, match="only 1 of 2 batches have images"):
            encode_dataset(StubModel(), mixed, progress=False)

    def test_a_real_model(self):
        torch.manual_seed(0)
        model = hysac.create_model("hysac-toy")
        tokenizer = hysac.get_tokenizer("hysac-toy")
        texts = tokenizer([f"caption {row}" for row in range(6)]).reshape(3, 2, -1)
        loader = [
            {"image": torch.randn(3, 2, 3, 32, 32), "text": texts, "tag": ["a", "a", "b"], "id": list("xyz")}
        ]
        e = encode_dataset(model, loader, progress=False)
        report = evaluate(
            model, loader, ks=(1, 2), traversal=Traversal(fit_bounds(e), margin=-0.2), progress=False
        )
        assert report.quadruplets == 3
        assert report.curv == pytest.approx(1.0)
        assert len(report.retrieval) == 10
        assert report.tag_sizes == {"a": 2, "b": 1}


def test_the_loss_of_validation_counts_batches_by_their_size():
    torch.manual_seed(0)
    model = hysac.create_model("hysac-toy", curv_init=0.4, output_dict=True).eval()
    image = torch.randn(5, 2, 3, 32, 32)
    text = hysac.get_tokenizer("hysac-toy")([f"caption {row}" for row in range(10)]).reshape(5, 2, -1)
    loss = HySACLoss(entail_weight=0.5)
    wanted = {}
    with torch.inference_mode():
        for rows in (slice(0, 3), slice(3, 5)):
            for name, term in loss(**model(image[rows], text[rows]), output_dict=True).items():
                wanted[name] = wanted.get(name, 0.0) + term.item() * (rows.stop - rows.start) / 5
    # Encoded in other batches than the loss is taken over.
    e = encode_dataset(
        model, [{"image": image[:1], "text": text[:1]}, {"image": image[1:], "text": text[1:]}]
    )
    got = embeddings_loss(e, loss, model.scale, batch_size=3)
    assert got == pytest.approx(wanted | {"loss": sum(wanted.values())}, rel=1e-5)


def test_bounds_of_another_model_are_refused():
    bounds = Bounds({letter: ClassBounds(0.4, 0.5, 0.6) for letter in "SVUG"}, curv=2 * CURV)
    with pytest.raises(ValueError, match="fitted at curv"):
        evaluate_embeddings(quadruplets(), traversal=bounds)
