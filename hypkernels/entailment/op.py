"""Registration of the entailment loss of each row as a ``torch.ops.hypkernels`` operator."""

from hypkernels.entailment import closed_form, reference
from hypkernels.pair_geometry import SPLIT_SUMS, of_split
from hypkernels.rowwise import register_rowwise

KERNELS = "hypkernels.entailment.kernel"

entailment_loss = register_rowwise(
    "entailment_loss",
    of_split(closed_form.pair_entailment_loss),
    closed_form.entailment_loss_gradient,
    points=2,
    returns="scalar",
    sums=SPLIT_SUMS,
    options=("aperture_scale", "min_radius", "margin", "leak"),
    definition=reference.entailment_loss,
    kernels=KERNELS,
)
