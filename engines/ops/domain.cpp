// Registers our operators with ONNX Runtime.
#include "ops/domain.h"

#include "ops/attention_op.h"
#include "ops/matmul_op.h"

namespace blip2rt {

void add_domain(OrtSessionOptions* options) {
  // The process has one domain, because sessions keep pointing to it.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain(kDomain, &made));
    add_matmul_ops(made);
    add_attention_ops(made);
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

}  // namespace blip2rt
