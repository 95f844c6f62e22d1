"""HySACLoss against an independent dense float64 statement of its seven terms."""

import argparse
import math

import open_clip_train.train as open_clip_train
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hypkernels as hk
from hysac.models.loss import CONTRASTIVE_PAIRINGS, ENTAILMENT_CONES, HySACLoss

CLASSES = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")


def quadruplets(batch=6, width=8, seed=0, dtype=torch.float64):
    """Image and text features: well separated, outside the apertures' saturation, hinges on both sides."""
    generator = torch.Generator().manual_seed(seed)
    radius = {"safe_text": 0.5, "safe_image": 0.9, "unsafe_text": 1.3, "unsafe_image": 1.9}
    shared = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    points = {}
    for name, norm in radius.items():
        noise = torch.randn(batch, width, generator=generator, dtype=torch.float64)
        noise[: batch // 2] *= 0.02
        direction = shared + noise
        points[name] = norm * direction / direction.norm(dim=-1, keepdim=True)
    image = torch.stack([points["safe_image"], points["unsafe_image"]], 1).to(dtype).requires_grad_()
    text = torch.stack([points["safe_text"], points["unsafe_text"]], 1).to(dtype).requires_grad_()
    return image, text


def by_class(image, text):
    return dict(zip(CLASSES, (text[:, 0], text[:, 1], image[:, 0], image[:, 1]), strict=True))


def time(x):
    return (1 + (x * x).sum(-1)).sqrt()


def dense_contrastive(x, y, scale):
    logits = -scale * torch.acosh(time(x)[:, None] * time(y)[None] - x @ y.T)
    rows = (torch.logsumexp(logits, 1) - logits.diagonal()).mean()
    columns = (torch.logsumexp(logits, 0) - logits.diagonal()).mean()
    return (rows + columns) / 2


def dense_margin(apex, point, aperture_scale, min_radius):
    inner = (apex * point).sum(-1) - time(apex) * time(point)
    cosine = (time(point) + time(apex) * inner) / (apex.norm(dim=-1) * (inner * inner - 1).sqrt())
    return torch.acos(cosine) - aperture_scale * torch.asin(2 * min_radius / apex.norm(dim=-1))


def dense_terms(image, text, scale, entail_weight=1.0, aperture_scale=1.0, min_radius=0.1):
    s, u = text[:, 0], text[:, 1]
    v, g = image[:, 0], image[:, 1]

    def cone(apex, point):
        return entail_weight * dense_margin(apex, point, aperture_scale, min_radius).clamp_min(0).mean()

    return {
        "contrastive_safe_text_safe_image_loss": dense_contrastive(s, v, scale),
        "contrastive_unsafe_text_unsafe_image_loss": dense_contrastive(u, g, scale),
        "contrastive_safe_text_unsafe_image_loss": dense_contrastive(s, g, scale),
        "contrastive_unsafe_text_safe_image_loss": dense_contrastive(u, v, scale),
        "entailment_safe_text_safe_image_loss": cone(s, v),
        "entailment_unsafe_text_unsafe_image_loss": cone(u, g),
        "entailment_safe_image_unsafe_text_loss": cone(v, u),
    }


def scale_parameter(value=5.0, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"entail_weight": 0.3, "aperture_scale": 1.4, "min_radius": 0.05}],
    ids=["defaults", "all options"],
)
def test_every_term_and_its_gradient(options):
    image, text = quadruplets()
    scale = scale_parameter()
    terms = HySACLoss(**options)(image, text, scale, output_dict=True)
    expected = dense_terms(image, text, scale, **options)
    assert list(terms) == list(expected)
    for name, term in terms.items():
        assert term.shape == ()
        torch.testing.assert_close(term, expected[name], rtol=1e-11, atol=0)
        inputs = (image, text, scale) if name.startswith("contrastive") else (image, text)
        got = torch.autograd.grad(term, inputs, retain_graph=True)
        wanted = torch.autograd.grad(expected[name], inputs, retain_graph=True)
        for g, w in zip(got, wanted, strict=True):
            assert w.norm() > 1e-4
            assert (g - w).norm() <= 1e-9 * w.norm()


def test_the_points_of_these_tests_lie_on_both_sides_of_every_hinge():
    points = by_class(*quadruplets())
    for apex, point in ENTAILMENT_CONES:
        margin = dense_margin(points[apex], points[point], 1.0, 0.1)
        assert (margin > 1e-3).any()
        assert (margin < -1e-3).any()


def test_no_two_terms_and_no_reversed_cone_could_be_confused():
    image, text = quadruplets()
    values = list(dense_terms(image, text, 5.0).values())
    points = by_class(image, text)
    values += [dense_margin(points[p], points[a], 1.0, 0.1).clamp_min(0).mean() for a, p in ENTAILMENT_CONES]
    ordered = torch.stack(values).sort().values
    assert (ordered.diff() > 1e-3 * ordered[1:]).all()


def test_each_term_moves_exactly_its_own_two_classes():
    image, text = quadruplets()
    terms = HySACLoss()(image, text, 5.0, output_dict=True)
    for (name, term), pair in zip(terms.items(), CONTRASTIVE_PAIRINGS + ENTAILMENT_CONES, strict=True):
        assert "_".join(pair) in name
        gradients = by_class(*torch.autograd.grad(term, (image, text), retain_graph=True))
        assert {letter for letter, gradient in gradients.items() if gradient.any()} == set(pair)


def test_the_total_is_the_plain_sum_of_the_terms():
    image, text = quadruplets()
    scale = scale_parameter()
    total = HySACLoss(entail_weight=0.7)(image, text, scale)
    expected = sum(dense_terms(image, text, scale, entail_weight=0.7).values())
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=0)
    for g, w in zip(*(torch.autograd.grad(t, (image, text, scale)) for t in (total, expected)), strict=True):
        assert (g - w).norm() <= 1e-9 * w.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_computed_in_float32(dtype):
    image, text = quadruplets(dtype=dtype)
    terms = HySACLoss()(image, text, 5.0, output_dict=True)
    wide = HySACLoss()(image.detach().float(), text.detach().float(), 5.0, output_dict=True)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert torch.equal(term, wide[name])
    sum(terms.values()).backward()
    assert image.grad.dtype == dtype
    assert torch.isfinite(image.grad).all()


def test_autocast_is_off_around_the_geometry(monkeypatch):
    image, text = quadruplets(dtype=torch.float32)
    states = []
    for function in ("contrastive_losses", "entailment_losses"):
        original = getattr(hk, function)

        def recorded(*args, original=original, **options):
            states.append(torch.is_autocast_enabled("cpu"))
            return original(*args, **options)

        monkeypatch.setattr(hk, function, recorded)
    plain = HySACLoss()(image, text, 5.0, output_dict=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = HySACLoss()(image, text, 5.0, output_dict=True)
    assert all(torch.equal(plain[name], inside[name]) for name in plain)
    assert states == 2 * 2 * [False]  # one call for all pairings, one for all cones


def test_forms_of_the_scale_and_a_bias_that_cancels():
    image, text = quadruplets()
    wanted = HySACLoss()(image, text, 5.0)
    for scale in (scale_parameter(), torch.full((1,), 5.0, dtype=torch.float64)):
        got = HySACLoss()(image, text, scale, logit_bias=torch.tensor(-10.0))
        assert got.shape == ()
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


def test_coinciding_points_have_finite_gradients():
    image, _ = quadruplets()
    text = image.detach().clone().requires_grad_()
    scale = scale_parameter()
    HySACLoss()(image, text, scale).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (image, text, scale))


def test_compiles_without_a_graph_break():
    image, text = quadruplets(dtype=torch.float32)
    scale = scale_parameter(dtype=torch.float32)
    loss = HySACLoss(entail_weight=0.5, accum_freq=2)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    wanted = torch.autograd.grad(loss(image, text, scale), (image, text, scale))
    got = torch.autograd.grad(compiled(image, text, scale), (image, text, scale))
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-7 * w.abs().max().item())


def test_exports_for_batches_of_any_size():
    image, text = quadruplets(dtype=torch.float32)
    scale, rows = torch.tensor(5.0), torch.export.Dim("rows")
    shapes = ({0: rows}, {0: rows}, None)
    program = torch.export.export(HySACLoss(), (image, text, scale), dynamic_shapes=shapes).module()
    for size in (2, 6, 12):
        features = [one.detach().repeat(2, 1, 1)[:size] for one in (image, text)]
        torch.testing.assert_close(program(*features, scale), HySACLoss()(*features, scale))


def ensemble(members=3):
    """Image features, text features and a scale for each member."""
    generator = torch.Generator().manual_seed(1)
    features = (torch.randn(members, 4, 2, 6, generator=generator) for _ in range(2))
    return (*features, torch.linspace(3, 5, members))


def loss_gradients(inputs, run=lambda loss, *inputs: loss(*inputs)):
    inputs = [one.clone().requires_grad_() for one in inputs]
    return torch.autograd.grad(run(HySACLoss(accum_freq=2), *inputs), inputs)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_bit(reentrant):
    member = [one[0] for one in ensemble()]
    inputs = [one.clone().requires_grad_() for one in member]
    checkpoint(HySACLoss(accum_freq=2), *inputs, use_reentrant=reentrant).backward()
    assert equal([one.grad for one in inputs], loss_gradients(member))


def test_what_is_saved_may_lie_elsewhere():
    member = [one[0] for one in ensemble()]

    def saved_on_cpu(loss, *inputs):
        with torch.autograd.graph.save_on_cpu():
            return loss(*inputs)

    assert equal(loss_gradients(member, saved_on_cpu), loss_gradients(member))


def test_gradients_of_an_ensemble():
    """To the rounding of sums: outside of transforms one call adds the gradients of all cones."""
    inputs = ensemble()
    grad = torch.func.grad(HySACLoss(accum_freq=2), (0, 1, 2))
    alone = [loss_gradients(member) for member in zip(*inputs, strict=True)]
    assert_rounded(grad(*(one[0] for one in inputs)), alone[0])
    for together, each in zip(torch.vmap(grad)(*inputs), zip(*alone, strict=True), strict=True):
        assert_rounded([together], [torch.stack(each)])


def assert_rounded(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-7, atol=5e-7 * other.abs().max().item())


@pytest.mark.parametrize("argument", range(3))
def test_no_forward_mode(argument):
    member = [one[0] for one in ensemble()]

    def loss(one):
        return HySACLoss()(*member[:argument], one, *member[argument + 1 :])

    with pytest.raises(NotImplementedError, match=r"hypkernels\.contrastive_loss has no forward-mode"):
        torch.func.jvp(loss, (member[argument],), (member[argument],))


class TinyHySAC(nn.Module):
    """The interface of a HySAC model in float64: linear towers, the lift, and the four scalars."""

    def __init__(self, width=5):
        super().__init__()
        generator = torch.Generator().manual_seed(7)

        def weight(rows):
            return nn.Parameter(torch.randn(rows, width, generator=generator, dtype=torch.float64))

        self.visual, self.textual = weight(12), weight(9)
        scalars = {"curv": math.log(0.6), "logit_scale": math.log(4.0)}
        scalars |= {"visual_alpha": math.log(0.3), "textual_alpha": math.log(0.2)}
        for name, value in scalars.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, image, text):
        c = self.curv.exp()

        def lift(features, alpha):
            tangent = alpha.exp() * features
            norm = c.sqrt() * tangent.norm(dim=-1, keepdim=True)
            return c.sqrt() * norm.sinh() / norm * tangent

        return {
            "image_features": lift(image.double() @ self.visual, self.visual_alpha),
            "text_features": lift(text.double() @ self.textual, self.textual_alpha),
            "logit_scale": self.logit_scale.exp() / c.sqrt(),
        }


def tiny_data(batch):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 2, 12, generator=generator), torch.randn(batch, 2, 9, generator=generator)


def dense_gradients(images, texts):
    """Every parameter's gradient of the dense loss on the whole batch."""
    model = TinyHySAC()
    output = model(images, texts)
    terms = dense_terms(output["image_features"], output["text_features"], output["logit_scale"])
    sum(terms.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def open_clip_gradients(images, texts, parts, loss, model=None):
    """What open_clip's own train loop leaves in ``.grad`` with ``--accum-freq parts``."""
    model = TinyHySAC() if model is None else model

    class Loader(list):
        num_batches, num_samples = parts, len(images)

    data = argparse.Namespace(
        dataloader=Loader(zip(images.chunk(parts), texts.chunk(parts), strict=True)),
        set_epoch=lambda epoch: None,
    )
    args = argparse.Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=parts,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        log_local=False,
        world_size=1,
        batch_size=len(images) // parts,
        log_every_n_steps=1,
        wandb=False,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    open_clip_train.train_one_epoch(model, {"train": data}, loss, 0, optimizer, None, None, None, args)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulation_in_open_clips_train_loop_is_exact(parts):
    images, texts = tiny_data(batch=8)
    got = open_clip_gradients(images, texts, parts, HySACLoss(accum_freq=parts))
    for name, wanted in dense_gradients(images, texts).items():
        # open_clip casts the images to float32 anyway; the towers and the loss run in float64.
        assert (got[name] - wanted).norm() <= 1e-9 * wanted.norm(), name


def test_without_accum_freq_the_scalars_would_be_counted_again():
    images, texts = tiny_data(batch=8)
    got = open_clip_gradients(images, texts, 2, HySACLoss())
    wanted = dense_gradients(images, texts)
    torch.testing.assert_close(got["logit_scale"], 2 * wanted["logit_scale"], rtol=1e-9, atol=0)
    assert (got["curv"] - wanted["curv"]).abs() > 0.1 * wanted["curv"].abs()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_loss": True}, "gather_with_grad"),
        ({"ring": True, "gather_with_grad": True}, "ring=True gathers nothing"),
        ({"use_horovod": True}, "use_horovod"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"world_size": 0}, "world_size=0"),
        ({"entail_weight": -1.0}, "entail_weight"),
        ({"aperture_scale": 0.0}, "aperture_scale"),
        ({"min_radius": math.inf}, "min_radius"),
        ({"accum_freq": 0}, "accum_freq"),
        ({"entail_weight": 10**400}, "entail_weight must be finite and not negative, got inf"),
        ({"aperture_scale": 10**400}, "aperture_scale must be positive and finite, got inf"),
        ({"min_radius": -(10**400)}, "min_radius must be positive and finite, got -inf"),
        ({"min_radius": math.nan}, "min_radius must be positive and finite, got nan"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        HySACLoss(**options)


@pytest.mark.parametrize("value", [None, True, "1", torch.tensor(1.0), [1]])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "a number") for name in ("entail_weight", "aperture_scale", "min_radius")),
        *((name, "an integer") for name in ("rank", "world_size", "accum_freq")),
    ],
)
def test_options_of_the_wrong_type(name, expected, value):
    with pytest.raises(TypeError, match=f"{name} must be {expected}, got {type(value).__name__}"):
        HySACLoss(**{name: value})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda one: one.to_sparse(), "must be a dense tensor, got one of layout torch.sparse_coo"),
        (lambda one: torch.nested.nested_tensor(list(one)), "must be a dense tensor, got a nested tensor"),
        (lambda one: one.to(torch.float8_e4m3fn), "must be a floating tensor.* got torch.float8_e4m3fn"),
        (lambda one: one.to(torch.complex64), "must be a floating tensor.* got torch.complex64"),
        (lambda one: one.int(), "must be a floating tensor.* got torch.int32"),
    ],
)
def test_tensors_of_the_wrong_kind(changed, message):
    image, text = (one.detach() for one in quadruplets())
    loss = HySACLoss()
    with pytest.raises(TypeError, match=f"image_features {message}"):
        loss(changed(image), text, 5.0)
    with pytest.raises(TypeError, match=f"text_features {message}"):
        loss(image, changed(text), 5.0)
    with pytest.raises(TypeError, match=f"logit_scale {message}"):
        loss(image, text, changed(torch.tensor([5.0])))


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        ("5", TypeError, "logit_scale must be a number, got str"),
        (None, TypeError, "logit_scale must be a number, got NoneType"),
        (math.inf, ValueError, "logit_scale must be finite, got inf"),
        (torch.tensor(math.inf), ValueError, "logit_scale must be finite"),
        (torch.tensor(math.nan), ValueError, "logit_scale must be finite, got nan"),
        (torch.tensor(-1.0), ValueError, "logit_scale must not be negative, got -1.0"),
    ],
)
def test_impossible_scales(scale, error, message):
    with pytest.raises(error, match=message):
        HySACLoss()(*quadruplets(), scale)


def test_features_of_two_dtypes_are_computed_in_the_wider_one():
    image, text = (one.detach() for one in quadruplets())
    for narrow in (torch.float32, torch.bfloat16):
        mixed = HySACLoss()(image.to(narrow), text, 5.0)
        assert mixed.dtype == torch.float64
        assert torch.equal(mixed, HySACLoss()(image.to(narrow).double(), text, 5.0))


def test_features_that_do_not_fit():
    image, text = quadruplets()
    loss = HySACLoss()
    with pytest.raises(ValueError, match="image_features is None"):
        loss(None, text, 5.0)
    with pytest.raises(ValueError, match=r"\(B, 2, D\).*\(6, 8\)"):
        loss(image[:, 0], text, 5.0)
    with pytest.raises(ValueError, match=r"\(6, 2, 0\)"):
        loss(image[..., :0], text[..., :0], 5.0)
    with pytest.raises(ValueError, match="no quadruplets"):
        loss(image[:0], text[:0], 5.0)
    with pytest.raises(ValueError, match=r"same shape.*\(5, 2, 8\).*\(6, 2, 8\)"):
        loss(image[:5], text, 5.0)
    with pytest.raises(TypeError, match="floating"):
        loss(image, text.detach().long(), 5.0)
    with pytest.raises(TypeError, match="text_features must be a tensor"):
        loss(image, "text", 5.0)
    with pytest.raises(ValueError, match=r"one element.*\(2,\)"):
        loss(image, text, torch.ones(2))


def test_several_processes_need_a_process_group():
    image, text = quadruplets()
    with pytest.raises(RuntimeError, match="init_process_group"):
        HySACLoss(rank=0, world_size=2)(image, text, 5.0)
