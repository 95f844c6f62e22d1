"""Registration of the maps as ``torch.ops.hypkernels`` operators."""

from hypkernels.checks import check_finite
from hypkernels.maps import closed_form, reference, smooth
from hypkernels.rowwise import CURV, Family, RowwiseOp

FAMILY = Family(closed_form, reference, smooth, "hypkernels.maps.kernel")

exp_map0 = RowwiseOp("exp_map0", FAMILY, points=1, returns="point")
scaled_exp_map0 = RowwiseOp(
    "scaled_exp_map0",
    FAMILY,
    points=1,
    returns="point",
    scalars={"scale": check_finite, **CURV},
)
log_map0 = RowwiseOp("log_map0", FAMILY, points=1, returns="point")
exp_map = RowwiseOp("exp_map", FAMILY, points=2, returns="point")
log_map = RowwiseOp("log_map", FAMILY, points=2, returns="point")
