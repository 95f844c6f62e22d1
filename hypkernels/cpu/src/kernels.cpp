// All kernels, compiled once for each instruction set; HK_API names the copy.
#include "cone.h"
#include "contrastive.h"
#include "distance.h"
#include "glibc.h"
#include "horosphere.h"
#include "maps.h"
#include "pairwise.h"
#include "retrieval.h"

namespace {

template <class Op>
void of_dtype(const Rows& q) {
  switch (q.dtype) {
    case FLOAT64: return run_rows<Op, double>(q);
    case FLOAT32: return run_rows<Op, float>(q);
    case BFLOAT16: return run_rows<Op, Bfloat16>(q);
    case FLOAT16: return run_rows<Op, Float16>(q);
  }
}

void rows(const Rows& q) {
  switch (q.op) {
    case EXP_MAP0: return of_dtype<ExpMap0>(q);
    case LOG_MAP0: return of_dtype<LogMap0>(q);
    case EXP_MAP: return of_dtype<ExpMap>(q);
    case LOG_MAP: return of_dtype<LogMap>(q);
    case INNER: return of_dtype<Inner>(q);
    case DIST: return of_dtype<Dist>(q);
    case DIST0: return of_dtype<Dist0>(q);
    case HALF_APERTURE: return of_dtype<HalfAperture>(q);
    case OXY_ANGLE: return of_dtype<OxyAngle>(q);
    case ENTAILMENT: return of_dtype<Entailment>(q);
    case BUSEMANN: return of_dtype<Busemann>(q);
  }
}

}  // namespace

extern const Api HK_API = {rows, contrastive_forward, contrastive_backward, pairwise, search};
