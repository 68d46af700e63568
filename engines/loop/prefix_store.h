// Keeps keys and values of what was read, by image and tokens, as trees whose branches share their beginnings. Bounded
// in bytes: ends of branches that were not used for longest go first. Knows tokens and numbers; not what reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "loop/kv_cache.h"

namespace blip2rt {

class PrefixStore {
 public:
  // `cache`: the one that is copied from and to, in its row 0. 0 bytes keep nothing.
  PrefixStore(KvCache& cache, size_t most_bytes);
  ~PrefixStore();

  // Copies what is known of `tokens`, which follow the image called `image`, into the cache from `position` on; `most`
  // tokens at most. Returns how many there were. An image's own positions count as tokens: any number, always the same.
  int load(const std::string& image, const std::vector<int64_t>& tokens, int position, int most);

  // Keeps `tokens`, whose keys and values lie in the cache from `position` on. Keeps nothing where they alone are more
  // than all that may be kept.
  void save(const std::string& image, const std::vector<int64_t>& tokens, int position);

  size_t bytes() const { return bytes_; }

 private:
  // Keys and values of a run of tokens. Nodes that were one once share them.
  struct Memory {
    Memory(PrefixStore& store, int count);
    ~Memory();
    PrefixStore& owner;
    int count;
    std::unique_ptr<float[]> values;  // (layers * 2, heads, count, head_dim)
  };

  struct Node {
    std::vector<int64_t> tokens;
    std::shared_ptr<Memory> memory;
    int first = 0;  // of the memory's tokens
    uint64_t used = 0;
    std::list<Node> children;
  };

  // How far a way down a tree goes.
  struct Way {
    std::vector<Node*> nodes;  // from the root on; of the last one some tokens may be left
    int length = 0;            // tokens that are known
    int of_last = 0;           // tokens of the last node that are known
  };

  Way way_of(Node& root, const std::vector<int64_t>& tokens, int most);
  void split(Node& node, int at) const;
  bool make_room(size_t bytes);
  Node* oldest_end(Node& node, Node*& parent);
  size_t bytes_of(int count) const;

  KvCache& cache_;
  size_t most_bytes_, bytes_ = 0;
  uint64_t clock_ = 0;
  std::unordered_map<std::string, Node> roots_;
};

}  // namespace blip2rt
