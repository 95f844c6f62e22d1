"""Registration of the entailment loss of each row as a ``torch.ops.hypkernels`` operator."""

from hypkernels.entailment import closed_form, reference
from hypkernels.rowwise import register_rowwise

KERNELS = "hypkernels.entailment.kernel"

entailment_loss = register_rowwise(
    "entailment_loss",
    closed_form.entailment_loss,
    closed_form.entailment_loss_gradient,
    points=2,
    returns="scalar",
    options=("aperture_scale", "min_radius", "margin", "leak"),
    definition=reference.entailment_loss,
    kernels=KERNELS,
)
