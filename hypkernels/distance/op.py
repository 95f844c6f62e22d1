"""Registration of the row-wise inner product and distances as ``torch.ops.hypkernels`` operators."""

from hypkernels.distance import closed_form, reference, smooth
from hypkernels.pair_geometry import NORM, SPLIT_SUMS, of_split
from hypkernels.rowwise import BySums, Family, RowwiseOp

FAMILY = Family(closed_form, reference, smooth, "hypkernels.distance.kernel")

elementwise_inner = RowwiseOp(
    "elementwise_inner",
    FAMILY,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_inner)),
)
elementwise_dist = RowwiseOp(
    "elementwise_dist",
    FAMILY,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_dist)),
)
dist0 = RowwiseOp(
    "dist0",
    FAMILY,
    points=1,
    returns="scalar",
    by_sums=BySums(NORM, closed_form.dist0_by_norm),
)
