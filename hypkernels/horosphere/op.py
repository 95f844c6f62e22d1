"""Registration of the Busemann function as a ``torch.ops.hypkernels`` operator."""

from hypkernels.horosphere import closed_form, reference, smooth
from hypkernels.pair_geometry import SPLIT_SUMS
from hypkernels.rowwise import BySums, Family, RowwiseOp

FAMILY = Family(closed_form, reference, smooth, "hypkernels.horosphere.kernel")

busemann = RowwiseOp(
    "busemann",
    FAMILY,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, closed_form.busemann_by_sums),
)
