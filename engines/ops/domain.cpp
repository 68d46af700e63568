// Registers the custom operators with ONNX Runtime.
#include "ops/domain.h"

#include "ops/attention_op.h"
#include "ops/gather_op.h"
#include "ops/matmul_op.h"

namespace blip2rt {

void add_domain(OrtSessionOptions* options) {
  // There is one domain per process, because sessions keep a pointer to it.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain(kDomain, &made));
    add_matmul_ops(made);
    add_attention_ops(made);
    add_gather_op(made);
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

}  // namespace blip2rt
