"""Registration of the maps as ``torch.ops.hypkernels`` operators."""

from hypkernels.checks import check_finite
from hypkernels.maps import closed_form, reference, smooth
from hypkernels.rowwise import CURV, RowwiseOp

KERNELS = "hypkernels.maps.kernel"

exp_map0 = RowwiseOp(
    "exp_map0",
    closed_form.exp_map0,
    closed_form.exp_map0_gradient,
    points=1,
    returns="point",
    definition=reference.exp_map0,
    smooth=smooth.exp_map0,
    kernels=KERNELS,
)
scaled_exp_map0 = RowwiseOp(
    "scaled_exp_map0",
    closed_form.scaled_exp_map0,
    closed_form.scaled_exp_map0_gradient,
    points=1,
    returns="point",
    scalars={"scale": check_finite, **CURV},
    definition=reference.scaled_exp_map0,
    smooth=smooth.scaled_exp_map0,
    kernels=KERNELS,
)
log_map0 = RowwiseOp(
    "log_map0",
    closed_form.log_map0,
    closed_form.log_map0_gradient,
    points=1,
    returns="point",
    definition=reference.log_map0,
    smooth=smooth.log_map0,
    kernels=KERNELS,
)
exp_map = RowwiseOp(
    "exp_map",
    closed_form.exp_map,
    closed_form.exp_map_gradient,
    points=2,
    returns="point",
    definition=reference.exp_map,
    smooth=smooth.exp_map,
    kernels=KERNELS,
)
log_map = RowwiseOp(
    "log_map",
    closed_form.log_map,
    closed_form.log_map_gradient,
    points=2,
    returns="point",
    definition=reference.log_map,
    smooth=smooth.log_map,
    kernels=KERNELS,
)
