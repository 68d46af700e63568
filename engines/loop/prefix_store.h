// A cache of keys and values by image and tokens: a tree for each image, whose branches share their prefixes. Its size
// is limited: the least recently used leaves are dropped first.
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
  // Copies from and to `cache`. max_bytes 0: store nothing.
  PrefixStore(KvCache& cache, size_t max_bytes);
  ~PrefixStore();

  // Copies the longest stored prefix of `tokens`, up to `max_count` of them, into the cache from `position` on. Returns
  // its length. The image's own positions count as tokens: any number that is always the same.
  int load(const std::string& image, const std::vector<int64_t>& tokens, int position, int max_count);

  // Stores `tokens`, whose keys and values lie in the cache from `position` on, unless they exceed the size limit.
  void save(const std::string& image, const std::vector<int64_t>& tokens, int position);

  size_t bytes() const { return bytes_; }

 private:
  // Keys and values of a run of tokens, shared by the nodes that a node was split into.
  struct Values {
    Values(PrefixStore& store, int count);
    ~Values();
    PrefixStore& owner;
    int count;
    std::unique_ptr<char[]> data;  // (layers * 2, heads, count, head_dim)
  };

  struct Node {
    std::vector<int64_t> tokens;
    std::shared_ptr<Values> values;
    int first = 0;  // of the tokens that `values` has
    uint64_t last_used = 0;
    std::list<Node> children;
  };

  // The path from the root along the longest stored prefix.
  struct Path {
    std::vector<Node*> nodes;  // the last one may match in part
    int length = 0;            // matching tokens
    int last_length = 0;       // matching tokens of the last node
  };

  Path find(Node& root, const std::vector<int64_t>& tokens, int max_count);
  void split(Node& node, int at) const;
  bool make_room(size_t bytes);
  Node* oldest_leaf(Node& node, Node*& parent);
  size_t bytes_of(int count) const;

  KvCache& cache_;
  size_t max_bytes_, bytes_ = 0;
  uint64_t clock_ = 0;
  std::unordered_map<std::string, Node> roots_;
};

}  // namespace blip2rt
