"""Registration of the row-wise inner product and distances as ``torch.ops.hypkernels`` operators."""

from hypkernels.distance import closed_form, reference, smooth
from hypkernels.pair_geometry import NORM, SPLIT_SUMS, of_split
from hypkernels.rowwise import BySums, RowwiseOp

KERNELS = "hypkernels.distance.kernel"

elementwise_inner = RowwiseOp(
    "elementwise_inner",
    closed_form.elementwise_inner,
    closed_form.elementwise_inner_gradient,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_inner)),
    definition=reference.elementwise_inner,
    smooth=smooth.elementwise_inner,
    kernels=KERNELS,
)
elementwise_dist = RowwiseOp(
    "elementwise_dist",
    closed_form.elementwise_dist,
    closed_form.elementwise_dist_gradient,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_dist)),
    definition=reference.elementwise_dist,
    smooth=smooth.elementwise_dist,
    kernels=KERNELS,
)
dist0 = RowwiseOp(
    "dist0",
    closed_form.dist0,
    closed_form.dist0_gradient,
    points=1,
    returns="scalar",
    by_sums=BySums(NORM, closed_form.dist0_by_norm),
    definition=reference.dist0,
    smooth=smooth.dist0,
    kernels=KERNELS,
)
