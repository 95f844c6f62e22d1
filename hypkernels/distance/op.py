"""Registration of the row-wise inner product and distances as ``torch.ops.hypkernels`` operators."""

from hypkernels.distance import closed_form, reference, smooth
from hypkernels.pair_geometry import NORM, SPLIT_SUMS, of_split
from hypkernels.rowwise import RowwiseOp

KERNELS = "hypkernels.distance.kernel"

elementwise_inner = RowwiseOp(
    "elementwise_inner",
    of_split(closed_form.pair_inner),
    closed_form.elementwise_inner_gradient,
    points=2,
    returns="scalar",
    sums=SPLIT_SUMS,
    definition=reference.elementwise_inner,
    smooth=smooth.elementwise_inner,
    kernels=KERNELS,
)
elementwise_dist = RowwiseOp(
    "elementwise_dist",
    of_split(closed_form.pair_dist),
    closed_form.elementwise_dist_gradient,
    points=2,
    returns="scalar",
    sums=SPLIT_SUMS,
    definition=reference.elementwise_dist,
    smooth=smooth.elementwise_dist,
    kernels=KERNELS,
)
dist0 = RowwiseOp(
    "dist0",
    closed_form.dist0_by_norm,
    closed_form.dist0_gradient,
    points=1,
    returns="scalar",
    sums=NORM,
    definition=reference.dist0,
    smooth=smooth.dist0,
    kernels=KERNELS,
)
