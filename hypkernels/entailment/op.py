"""Registration of the entailment loss of each row as a ``torch.ops.hypkernels`` operator."""

from hypkernels.entailment import closed_form, reference, smooth
from hypkernels.pair_geometry import SPLIT_SUMS, of_split
from hypkernels.rowwise import RowwiseOp

KERNELS = "hypkernels.entailment.kernel"

entailment_loss = RowwiseOp(
    "entailment_loss",
    of_split(closed_form.pair_entailment_loss),
    closed_form.entailment_loss_gradient,
    points=2,
    returns="scalar",
    sums=SPLIT_SUMS,
    options=("aperture_scale", "min_radius", "margin", "leak"),
    definition=reference.entailment_loss,
    smooth=smooth.entailment_loss,
    kernels=KERNELS,
)
