"""Registration of the entailment loss of each row as a ``torch.ops.hypkernels`` operator."""

from hypkernels.checks import check_finite, check_not_negative, check_positive
from hypkernels.entailment import closed_form, reference, smooth
from hypkernels.pair_geometry import SPLIT_SUMS, of_split
from hypkernels.rowwise import BySums, Family, RowwiseOp

FAMILY = Family(closed_form, reference, smooth, "hypkernels.entailment.kernel")

entailment_loss = RowwiseOp(
    "entailment_loss",
    FAMILY,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, of_split(closed_form.pair_entailment_loss)),
    options={
        "aperture_scale": check_not_negative,
        "min_radius": check_positive,
        "margin": check_finite,
        "leak": check_not_negative,
    },
)
