// The one domain of our operators.
#include "ops/domain.h"

namespace blip2rt {

void add_own_ops(OrtSessionOptions* options) {
  // One for the process, as sessions keep pointing to it.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain(kOwnDomain, &made));
    add_own_products(made);
    add_own_attention(made);
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

}  // namespace blip2rt
