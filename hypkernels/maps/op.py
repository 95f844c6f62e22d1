"""Registration of the maps as ``torch.ops.hypkernels`` operators."""

from hypkernels.maps import closed_form, reference
from hypkernels.rowwise import register_rowwise

KERNELS = "hypkernels.maps.kernel"

exp_map0 = register_rowwise(
    "exp_map0",
    closed_form.exp_map0,
    closed_form.exp_map0_gradient,
    points=1,
    returns="point",
    definition=reference.exp_map0,
    kernels=KERNELS,
)
scaled_exp_map0 = register_rowwise(
    "scaled_exp_map0",
    closed_form.scaled_exp_map0,
    closed_form.scaled_exp_map0_gradient,
    points=1,
    returns="point",
    scalars=("scale", "curv"),
    definition=reference.scaled_exp_map0,
    kernels=KERNELS,
)
log_map0 = register_rowwise(
    "log_map0",
    closed_form.log_map0,
    closed_form.log_map0_gradient,
    points=1,
    returns="point",
    definition=reference.log_map0,
    kernels=KERNELS,
)
exp_map = register_rowwise(
    "exp_map",
    closed_form.exp_map,
    closed_form.exp_map_gradient,
    points=2,
    returns="point",
    definition=reference.exp_map,
    kernels=KERNELS,
)
log_map = register_rowwise(
    "log_map",
    closed_form.log_map,
    closed_form.log_map_gradient,
    points=2,
    returns="point",
    definition=reference.log_map,
    kernels=KERNELS,
)
