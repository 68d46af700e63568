// Lists our operators, and registers them with ONNX Runtime.
#include "ops/domain.h"

#include "ops/attention_op.h"
#include "ops/gather_op.h"
#include "ops/matmul_op.h"

namespace blip2rt {

const std::vector<OperatorType>& operator_types() {
  static const std::vector<OperatorType> types = [] {
    std::vector<OperatorType> all = attention_types();
    for (const OperatorType& type : matmul_types()) all.push_back(type);
    all.push_back(gather_row_type());
    return all;
  }();
  return types;
}

void add_domain(OrtSessionOptions* options) {
  // There is one domain per process, because sessions keep a pointer to it.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain(kDomain, &made));
    for (const OperatorType& type : operator_types()) check(ort().CustomOpDomain_Add(made, type.custom_op()));
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

}  // namespace blip2rt
