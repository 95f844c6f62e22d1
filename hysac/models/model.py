"""HySAC: an open_clip model whose features are points of hyperbolic space.

The two towers are open_clip's, unchanged. Their Euclidean features ``f`` are scaled and lifted by the
exponential map at the origin, ``x = exp_0(alpha f)``, on a hyperboloid of learnable curvature ``-c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

import hypkernels as hk

if TYPE_CHECKING:  # the interface of both classes at the end of this file, which mix this one in
    from open_clip import CLIP as OpenClipModel  # noqa: N811
else:
    OpenClipModel = nn.Module

SCALARS = ("curv", "visual_alpha", "textual_alpha", "logit_scale")
"""The four learnable scalars, stored as logarithms: the three HySAC adds and open_clip's own."""

MIN_SCALE, MAX_SCALE = 1 / 0.07, 100.0
CURVATURE_RANGE = 10.0


class _Bounded(torch.autograd.Function):
    """``clamp`` whose gradient vanishes only for a value that is outside and would move further out.

    A value on its bound still receives the whole gradient. So a training loop that projects after each step
    (:meth:`HySAC.clamp_parameters_`) does exact projected gradient descent, also when the gradient is a sum
    over micro-batches or ranks; one that does not project can overshoot by a step, and never gets stuck.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:  # type: ignore[override]
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        value, ctx.low, ctx.high = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (value,) = ctx.saved_tensors
        leaving = ((value < ctx.low) & (grad > 0)) | ((value > ctx.high) & (grad < 0))
        return grad.masked_fill(leaving, 0.0), None, None


class HySAC(OpenClipModel):
    """Hyperbolic Safety-Aware CLIP: open_clip's towers and a learnable hyperboloid (arXiv 2503.12127).

    :meth:`from_clip` or :func:`hysac.create_model` makes it of an open_clip model. It stays an instance
    of open_clip's ``CLIP`` or ``CustomTextCLIP``. Its state dict is open_clip's plus three names::

        points = model.encode_text(tokens, normalize=True)  # (B, D), space components on the hyperboloid
        scores = hysac.unsafe_score(points, model.curvature)  # (B,), distances to the origin

    =================  ==============================  ===========================  ===================
    parameter (log)    what it is                      range of its exponential     initial value
    =================  ==============================  ===========================  ===================
    ``curv``           curvature ``c``                 ``[c0 / 10, 10 c0]``         ``c0 = curv_init``
    ``visual_alpha``   factor of the image features    ``(0, 1]``                   ``1 / sqrt(D)``
    ``textual_alpha``  factor of the text features     ``(0, 1]``                   ``1 / sqrt(D)``
    ``logit_scale``    inverse temperature             ``[1 / 0.07, 100]``          ``1 / 0.07``
    =================  ==============================  ===========================  ===================

    All four are 0-d and float32 whatever the towers' precision. The forward pass uses them within their
    ranges and never writes them; :meth:`clamp_parameters_` brings the stored values back after a step.

    Inputs may have any leading dimensions before ``(3, H, W)`` or ``(L,)``. A batch of quadruplets is
    ``(B, 2, ...)`` with index 0 safe and 1 unsafe, and passes each tower once, as ``2 B`` items.
    """

    curv: nn.Parameter
    visual_alpha: nn.Parameter
    textual_alpha: nn.Parameter
    curv_init: float
    embed_dim: int
    model_cfg: dict[str, Any] | None
    tokenizer_source: str | None  # the directory it came from, which has its tokenizer, too
    scalar_ranges: dict[str, tuple[float, float]]

    def __init__(self) -> None:
        raise TypeError(
            "HySAC takes over an open_clip model: use HySAC.from_clip(clip) or hysac.create_model(name)"
        )

    @staticmethod
    def from_clip(
        clip: CLIP | CustomTextCLIP,
        *,
        curv_init: float = 1.0,
        learn_curv: bool = True,
        scale_init: float | None = MIN_SCALE,
        model_cfg: dict[str, Any] | None = None,
    ) -> HySAC:
        """Turn an open_clip model into a HySAC model, in place, and return it.

        Args:
            clip: an open_clip ``CLIP`` or ``CustomTextCLIP``. A ``logit_bias`` (sigmoid-loss models) is
                dropped: one bias for all logits cancels in HySAC's softmax and in every ranking.
            curv_init: initial curvature ``c0 > 0``, the centre of the curvature's range.
            learn_curv: whether the curvature is trained.
            scale_init: initial inverse temperature, in ``[1 / 0.07, 100]``. ``None`` keeps that of ``clip``,
                which was trained for cosines and is rarely right for distances.
            model_cfg: open_clip's configuration of the model, which :func:`hysac.save_pretrained` writes.

        Raises:
            TypeError: ``clip`` is not one of the two open_clip classes.
            ValueError: an initial value out of its range, or ``clip`` is a HySAC model already.
        """
        if isinstance(clip, HySAC):
            raise ValueError("clip is a HySAC model already")
        if type(clip) not in _HYSAC_CLASS:
            raise TypeError(f"clip must be an open_clip CLIP or CustomTextCLIP, got {type(clip).__name__}")
        if not (curv_init > 0 and math.isfinite(curv_init)):
            raise ValueError(f"curv_init must be positive and finite, got {curv_init}")
        if scale_init is not None and not MIN_SCALE <= scale_init <= MAX_SCALE:
            raise ValueError(f"scale_init must be in [1/0.07, {MAX_SCALE:g}], got {scale_init}")
        if clip.logit_scale.numel() != 1:
            raise ValueError(f"clip.logit_scale must have one element, got {tuple(clip.logit_scale.shape)}")

        clip.__class__ = _HYSAC_CLASS[type(clip)]
        clip.curv_init = float(curv_init)
        clip.embed_dim = width_of(clip)
        clip.model_cfg = model_cfg
        clip.tokenizer_source = None
        clip.scalar_ranges = _log_ranges(curv_init)
        clip.logit_bias = None
        device = clip.logit_scale.device
        log_scale = clip.logit_scale.item() if scale_init is None else math.log(scale_init)
        log_alpha = -0.5 * math.log(clip.embed_dim)
        clip.logit_scale = _log_scalar(log_scale, device, clip.logit_scale.requires_grad)
        clip.curv = _log_scalar(math.log(curv_init), device, learn_curv)
        clip.visual_alpha = _log_scalar(log_alpha, device)
        clip.textual_alpha = _log_scalar(log_alpha, device)
        return clip

    @property
    def curvature(self) -> Tensor:
        """The positive curvature ``c``, 0-d, within ``[c0 / 10, 10 c0]``; differentiable."""
        return self._scalar("curv")

    @property
    def scale(self) -> Tensor:
        """The inverse temperature ``exp(logit_scale)``, 0-d, within ``[1 / 0.07, 100]``; differentiable."""
        return self._scalar("logit_scale")

    def factor(self, modality: str) -> Tensor:
        """The factor of the features of ``"image"`` or ``"text"`` before the lift, 0-d, in ``(0, 1]``."""
        return self._scalar("visual_alpha" if modality == "image" else "textual_alpha")

    def _scalar(self, name: str) -> Tensor:
        return _Bounded.apply(_of_all_processes(getattr(self, name)), *self.scalar_ranges[name]).exp()

    @torch.no_grad()
    def clamp_parameters_(self) -> None:
        """Bring the four scalars back into their ranges, in place; call it after ``optimizer.step()``."""
        for name, (low, high) in self.scalar_ranges.items():
            getattr(self, name).clamp_(low, high)

    def encode_image(self, image: Tensor, normalize: bool = False, project: bool | None = None) -> Tensor:
        """Features of preprocessed images ``(..., 3, H, W)``.

        Args:
            image: floating pixels, normalised as ``visual.preprocess_cfg`` says; cast to the tower's dtype.
                There may be none: ``(0, 3, H, W)`` gives ``(0, D)``.
            normalize: False gives open_clip's Euclidean features ``(..., D)``. True lifts them: space
                components ``(..., D)``, float32, at curvature :attr:`curvature`.
            project: another name for ``normalize``.

        Raises:
            TypeError, ValueError: a wrong dtype or shape, or ``normalize`` contradicting ``project``.
        """
        return self._encode_image(image, _wants_lift(normalize, project))

    def _encode_image(self, image: Tensor, lift: bool) -> Tensor:
        """For ``forward``, which has the parameters that the public method of a sharded model gathers."""
        self._check_image(image)
        features = _over_leading(self._image_features, image.to(self._image_dtype()), 3)
        return self._lift(features, "visual_alpha") if lift else features

    def encode_text(self, text: Tensor, normalize: bool = False, project: bool | None = None) -> Tensor:
        """Features of tokens ``(..., L)``; never writes to its input.

        Args:
            text: integer tokens as :func:`hysac.get_tokenizer` makes them.
            normalize: False gives open_clip's Euclidean features ``(..., D)``. True lifts them: space
                components ``(..., D)``, float32, at curvature :attr:`curvature`.
            project: another name for ``normalize``.

        Raises:
            TypeError, ValueError: a wrong dtype or shape, or ``normalize`` contradicting ``project``.
        """
        return self._encode_text(text, _wants_lift(normalize, project))

    def _encode_text(self, text: Tensor, lift: bool) -> Tensor:
        self._check_text(text)
        features = _over_leading(super().encode_text, text, 1)
        return self._lift(features, "textual_alpha") if lift else features

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """What open_clip's ``forward`` returns, on the **unit** hyperboloid.

        Distances and angles there carry the curvature, so that a loss needs no curvature argument:
        ``d_c(x, y) = d_1(sqrt(c) x, sqrt(c) y) / sqrt(c)``.

        Args:
            image: ``(B, 3, H, W)``, or quadruplets ``(B, 2, 3, H, W)``.
            text: ``(B, L)``, or quadruplets ``(B, 2, L)``.

        Returns:
            ``image_features = sqrt(c) x`` and ``text_features = sqrt(c) y``, float32, each None without its
            input, and ``logit_scale = exp(s) / sqrt(c)``: a dict if ``output_dict``, else a tuple.

            The dict of a model in training mode has a fourth entry, ``unit_hyperboloid``, one element for
            this forward pass. A loss of dot products, such as ``open_clip.ClipLoss``, does not take that
            argument: calling it is an error, instead of training something else. The losses of this
            package count by it how many passes were joined, as open_clip does with ``--accum-freq``.
        """
        root = self.curvature.sqrt()
        image_features = None if image is None else root * self._encode_image(image, lift=True)
        text_features = None if text is None else root * self._encode_text(text, lift=True)
        logit_scale = self.scale / root
        if self.output_dict:
            output = {
                "image_features": image_features,
                "text_features": text_features,
                "logit_scale": logit_scale,
            }
            return output | {"unit_hyperboloid": root.new_ones(1)} if self.training else output
        return image_features, text_features, logit_scale

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``-exp(s) d(x_i, y_j)`` of images ``(B1, 3, H, W)`` and texts ``(B2, L)``, and its transpose."""
        x = self._encode_image(image, lift=True)
        y = self._encode_text(text, lift=True)
        image_logits = self._logits(x, y)
        return image_logits, image_logits.T

    def forward_intermediates(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        *,
        normalize: bool = True,
        intermediates_only: bool = False,
        output_logits: bool = False,
        output_logit_scale_bias: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """open_clip's ``forward_intermediates``; ``normalize`` lifts the final features.

        They are then space components at curvature :attr:`curvature`, and ``output_logits`` gives
        ``-exp(s)`` times their distance. The other options are open_clip's.
        """
        if output_logits and not intermediates_only and (image is None or text is None or not normalize):
            raise ValueError("output_logits needs an image, a text and normalize=True")
        output = super().forward_intermediates(
            image, text, normalize=False, intermediates_only=intermediates_only, **options
        )
        if normalize and not intermediates_only:
            for features, alpha in (("image_features", "visual_alpha"), ("text_features", "textual_alpha")):
                if features in output:
                    output[features] = self._lift(output[features], alpha)
        if output_logits and not intermediates_only:
            output["image_logits"] = self._logits(output["image_features"], output["text_features"])
            output["text_logits"] = output["image_logits"].T
        if output_logit_scale_bias:
            output["logit_scale"] = self.scale
        return output

    def _lift(self, features: Tensor, alpha: str) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return hk.scaled_exp_map0(_at_least_float32(features), self._scalar(alpha), self.curvature)

    def _logits(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return -self.scale * hk.pairwise_dist(x, y, self.curvature)

    def _image_features(self, images: Tensor) -> Tensor:
        """Features of ``(B, 3, H, W)``. open_clip's ViT cannot reshape no images: ``B = 0`` takes one."""
        if images.shape[0] or not isinstance(self.visual, VisionTransformer):
            return super().encode_image(images)
        return super().encode_image(images.new_zeros(1, *images.shape[1:]))[:0]

    def _image_dtype(self) -> torch.dtype:
        """The dtype of the patch embedding; in open_clip's bf16 and fp16 modes other weights differ."""
        weights = (p.dtype for p in self.visual.parameters() if p.dim() == 4)
        return next(weights, torch.float32)

    def _check_image(self, image: Tensor) -> None:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"image must be a floating tensor of preprocessed pixels, got {got}")
        fixed_size = isinstance(self.visual, VisionTransformer)
        size = tuple(self.visual.image_size) if fixed_size else tuple(image.shape[-2:])
        if image.dim() < 3 or image.shape[-3:] != (3, *size) or 0 in size:
            expected = f"(..., 3, {size[0]}, {size[1]})" if fixed_size else "(..., 3, H, W)"
            raise ValueError(f"image must have shape {expected}, got {tuple(image.shape)}")

    def _check_text(self, text: Tensor) -> None:
        if not isinstance(text, Tensor) or text.dtype not in (torch.int64, torch.int32):
            got = text.dtype if isinstance(text, Tensor) else type(text).__name__
            raise TypeError(f"text must be an int64 or int32 tensor of tokens, got {got}")
        length = text.shape[-1] if text.dim() else 0
        fixed = self._needs_full_length()
        too_short = fixed and length < self.context_length
        if not 0 < length <= self.context_length or too_short:
            expected = f"(..., {self.context_length})" if fixed else f"(..., 0 < L <= {self.context_length})"
            raise ValueError(f"text must have shape {expected}, got {tuple(text.shape)}")

    def _needs_full_length(self) -> bool:
        """Whether the text tower adds positions or a causal mask of the full context to its input."""
        if isinstance(self, CLIP):
            return True
        tower = self.text
        return isinstance(tower, TextTransformer) and tower.attn_mask is not None and tower.cls_emb is None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HySAC:
        """Let ``.to``, ``.half`` and the like move the scalars, and not narrow them."""

        def moved(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            if tensor.dim() == 0 and tensor.dtype == torch.float32 and out.dtype.itemsize < 4:
                return tensor.to(out.device)
            return out

        return super()._apply(moved, recurse)


class HySACCLIP(HySAC, CLIP):
    """HySAC over open_clip's ``CLIP``, whose text tower is inlined."""


class HySACCustomTextCLIP(HySAC, CustomTextCLIP):
    """HySAC over open_clip's ``CustomTextCLIP``, whose text tower is the submodule ``text``."""


_HYSAC_CLASS: dict[type, type[HySAC]] = {CLIP: HySACCLIP, CustomTextCLIP: HySACCustomTextCLIP}


def _log_scalar(value: float, device: torch.device, requires_grad: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device), requires_grad)


def _of_all_processes(scalar: Any) -> Tensor:
    """A scalar of a model that is sharded (:mod:`hysac.models.sharded`), as a tensor of this process.

    Its gradient is the mean over processes: FSDP averages those of the parameters that it shards, and no
    others.
    """
    if not hasattr(scalar, "to_local"):
        return scalar
    from torch.distributed.tensor import Partial

    mesh = scalar.device_mesh
    # Redistribute even to the same placements: its backward pass sums partial gradients.
    local = scalar.redistribute(placements=scalar.placements).to_local(
        grad_placements=[Partial()] * mesh.ndim
    )
    return local.detach() + (local - local.detach()) / mesh.size()


def _log_ranges(curv_init: float) -> dict[str, tuple[float, float]]:
    """Ranges of the logarithms, in float32: a clamped parameter compares equal to its bound."""
    ranges = {
        "curv": (math.log(curv_init / CURVATURE_RANGE), math.log(curv_init * CURVATURE_RANGE)),
        "visual_alpha": (-math.inf, 0.0),
        "textual_alpha": (-math.inf, 0.0),
        "logit_scale": (math.log(MIN_SCALE), math.log(MAX_SCALE)),
    }
    return {name: (float(np.float32(low)), float(np.float32(high))) for name, (low, high) in ranges.items()}


def width_of(clip: CLIP | CustomTextCLIP) -> int:
    """The width of the features of an open_clip model."""
    tower = getattr(clip, "text", clip)
    if not hasattr(tower, "text_projection"):  # a Hugging Face encoder
        return tower.output_dim
    projection = tower.text_projection
    if projection is None:
        return tower.ln_final.weight.shape[0]
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def _wants_lift(normalize: bool, project: bool | None) -> bool:
    if normalize and project is False:
        raise ValueError("normalize=True contradicts project=False: they are two names of one option")
    return bool(normalize or project)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _over_leading(encode: Callable[[Tensor], Tensor], batch: Tensor, item_dims: int) -> Tensor:
    """Encode a batch with any leading dimensions in one call of the tower."""
    leading, item = batch.shape[:-item_dims], batch.shape[-item_dims:]
    features = encode(batch.reshape(math.prod(leading), *item))
    return features.reshape(*leading, features.shape[-1])
