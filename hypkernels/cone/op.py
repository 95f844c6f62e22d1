"""Registration of the cone's functions as ``torch.ops.hypkernels`` operators."""

from hypkernels.checks import check_positive
from hypkernels.cone import closed_form, reference, smooth
from hypkernels.pair_geometry import NORM, SPLIT_SUMS, of_split
from hypkernels.rowwise import BySums, RowwiseOp

KERNELS = "hypkernels.cone.kernel"

half_aperture = RowwiseOp(
    "half_aperture",
    closed_form.half_aperture,
    closed_form.half_aperture_gradient,
    points=1,
    returns="scalar",
    options={"min_radius": check_positive},
    by_sums=BySums(NORM, closed_form.half_aperture_by_norm),
    definition=reference.half_aperture,
    smooth=smooth.half_aperture,
    kernels=KERNELS,
)
oxy_angle = RowwiseOp(
    "oxy_angle",
    closed_form.oxy_angle,
    closed_form.oxy_angle_gradient,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_angle)),
    definition=reference.oxy_angle,
    smooth=smooth.oxy_angle,
    kernels=KERNELS,
)
