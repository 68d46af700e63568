// std::from_chars of doubles, which Emscripten's C++ library lacks. Every file includes this.
#pragma once
#ifdef __cplusplus

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string>

#if _LIBCPP_VERSION < 200000
namespace std {

inline from_chars_result from_chars(const char* first, const char* last, double& value) {
  string digits(first, last);
  const size_t end = digits.find_first_not_of("0123456789+-.eE");
  digits = digits.substr(0, end);
  if (digits.empty() || digits[0] == '+') return {first, errc::invalid_argument};
  char* stop = nullptr;
  errno = 0;
  const double parsed = strtod(digits.c_str(), &stop);
  if (stop == digits.c_str()) return {first, errc::invalid_argument};
  first += stop - digits.c_str();
  if (errno == ERANGE && (parsed == 0 || isinf(parsed))) return {first, errc::result_out_of_range};
  value = parsed;
  return {first, errc()};
}

}  // namespace std
#endif
#endif
