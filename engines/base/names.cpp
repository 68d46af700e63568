#include "base/names.h"

#include <cstring>
#include <random>

namespace blip2rt {
namespace {

constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;
__extension__ typedef unsigned __int128 Wide;

uint64_t random_key() {
  std::random_device source;
  return ((uint64_t{source()} << 32 | source()) % (kPrime - 2)) + 2;
}

}  // namespace

// A polynomial in the key, modulo a prime, whose coefficients are seven bytes each, and the length.
size_t NameHash::operator()(std::string_view name) const {
  static const uint64_t key = random_key();
  uint64_t hash = name.size();
  for (size_t at = 0; at < name.size(); at += 7) {
    uint64_t seven = 0;
    std::memcpy(&seven, name.data() + at, name.size() - at < 7 ? name.size() - at : 7);
    const Wide product = Wide{hash} * key + seven;
    hash = static_cast<uint64_t>(product & kPrime) + static_cast<uint64_t>(product >> 61);
    if (hash >= kPrime) hash -= kPrime;
  }
  return static_cast<size_t>(hash);
}

}  // namespace blip2rt
