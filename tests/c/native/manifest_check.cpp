// Reads the manifests whose paths come from standard input. Writes "ok", or the faults, a line for each.
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "base/utf8.h"
#include "model/manifest.h"

int main() {
  using namespace blip2rt;
  for (std::string path; std::getline(std::cin, path);) {
    std::ifstream file(path, std::ios::binary);
    try {
      read_manifest({std::istreambuf_iterator<char>(file), {}}, path);
      std::cout << "ok\n";
    } catch (const Error& error) {
      std::cout << single_line(error.what()) << '\n';
    }
  }
}
