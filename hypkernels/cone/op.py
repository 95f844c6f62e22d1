"""Registration of the cone's functions as ``torch.ops.hypkernels`` operators."""

from hypkernels.checks import check_positive
from hypkernels.cone import closed_form, reference, smooth
from hypkernels.pair_geometry import NORM, SPLIT_SUMS, of_split
from hypkernels.rowwise import BySums, Family, RowwiseOp

FAMILY = Family(closed_form, reference, smooth, "hypkernels.cone.kernel")

half_aperture = RowwiseOp(
    "half_aperture",
    FAMILY,
    points=1,
    returns="scalar",
    options={"min_radius": check_positive},
    by_sums=BySums(NORM, closed_form.half_aperture_by_norm),
)
oxy_angle = RowwiseOp(
    "oxy_angle",
    FAMILY,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_angle)),
)
