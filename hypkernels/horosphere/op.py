"""Registration of the Busemann function as a ``torch.ops.hypkernels`` operator."""

from hypkernels.horosphere import closed_form, reference, smooth
from hypkernels.pair_geometry import SPLIT_SUMS
from hypkernels.rowwise import BySums, RowwiseOp

busemann = RowwiseOp(
    "busemann",
    closed_form.busemann,
    closed_form.busemann_gradient,
    points=2,
    returns="scalar",
    by_sums=BySums(SPLIT_SUMS, closed_form.busemann_by_sums),
    definition=reference.busemann,
    smooth=smooth.busemann,
    kernels="hypkernels.horosphere.kernel",
)
