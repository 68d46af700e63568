// Grows, splits and cuts the trees of what was read.
#include "loop/prefix_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace blip2rt {

PrefixStore::Memory::Memory(PrefixStore& store, int count_)
    : owner(store), count(count_), values(new float[store.bytes_of(count_) / sizeof(float)]) {
  owner.bytes_ += owner.bytes_of(count);
}

PrefixStore::Memory::~Memory() { owner.bytes_ -= owner.bytes_of(count); }

PrefixStore::PrefixStore(KvCache& cache, size_t most_bytes) : cache_(cache), most_bytes_(most_bytes) {}

PrefixStore::~PrefixStore() { roots_.clear(); }

size_t PrefixStore::bytes_of(int count) const {
  return static_cast<size_t>(count) * cache_.floats_each() * sizeof(float);
}

// Follows `tokens` down a tree, and marks what it passes as used.
PrefixStore::Way PrefixStore::way_of(Node& root, const std::vector<int64_t>& tokens, int most) {
  Way way;
  Node* node = &root;
  node->used = ++clock_;
  way.nodes.push_back(node);
  while (way.length < most) {
    const int64_t next = tokens[static_cast<size_t>(way.length)];
    const auto child = std::find_if(node->children.begin(), node->children.end(),
                                    [next](const Node& one) { return one.tokens.front() == next; });
    if (child == node->children.end()) break;
    node = &*child;
    node->used = clock_;
    way.nodes.push_back(node);
    const int size = static_cast<int>(node->tokens.size());
    way.of_last = 0;
    while (way.of_last < size && way.length < most &&
           node->tokens[static_cast<size_t>(way.of_last)] == tokens[static_cast<size_t>(way.length)]) {
      ++way.of_last;
      ++way.length;
    }
    if (way.of_last < size) break;
  }
  return way;
}

int PrefixStore::load(const std::string& image, const std::vector<int64_t>& tokens, int position, int most) {
  const auto root = roots_.find(image);
  if (root == roots_.end()) return 0;
  const Way way = way_of(root->second, tokens, most);
  int done = 0;
  for (size_t i = 1; i < way.nodes.size(); ++i) {
    const Node& node = *way.nodes[i];
    const bool is_last = i + 1 == way.nodes.size();
    const int count = is_last ? way.of_last : static_cast<int>(node.tokens.size());
    cache_.load(0, position + done, node.first, count, node.memory->count, node.memory->values.get());
    done += count;
  }
  return done;
}

void PrefixStore::save(const std::string& image, const std::vector<int64_t>& tokens, int position) {
  const int length = static_cast<int>(tokens.size());
  if (length == 0 || bytes_of(length) > most_bytes_) return;
  Way way = way_of(roots_[image], tokens, length);
  if (way.length == length) return;
  Node* last = way.nodes.back();
  if (way.nodes.size() > 1 && way.of_last < static_cast<int>(last->tokens.size())) split(*last, way.of_last);
  const int count = length - way.length;
  if (!make_room(bytes_of(count))) return;
  Node fresh;
  fresh.memory = std::make_shared<Memory>(*this, count);
  fresh.tokens.assign(tokens.begin() + way.length, tokens.end());
  fresh.used = clock_;
  cache_.save(0, position + way.length, count, fresh.memory->values.get());
  last->children.push_back(std::move(fresh));
}

// Makes a node end before its token number `at`; the rest becomes its child. Both share the memory.
void PrefixStore::split(Node& node, int at) const {
  Node rest;
  rest.tokens.assign(node.tokens.begin() + at, node.tokens.end());
  rest.memory = node.memory;
  rest.first = node.first + at;
  rest.used = node.used - 1;  // what was passed ends before it
  rest.children = std::move(node.children);
  node.tokens.resize(static_cast<size_t>(at));
  node.children.clear();
  node.children.push_back(std::move(rest));
}

// Drops ends of branches until `bytes` more fit. Returns whether they do: what was just used stays.
bool PrefixStore::make_room(size_t bytes) {
  while (bytes_ + bytes > most_bytes_) {
    Node *oldest = nullptr, *parent = nullptr;
    auto of = roots_.end();
    for (auto root = roots_.begin(); root != roots_.end(); ++root) {
      Node* above = nullptr;
      Node* found = oldest_end(root->second, above);
      if (oldest != nullptr && found->used >= oldest->used) continue;
      oldest = found;
      parent = above;
      of = root;
    }
    if (oldest == nullptr || oldest->used == clock_) return false;
    if (parent == nullptr) {
      roots_.erase(of);
    } else {
      parent->children.remove_if([oldest](const Node& child) { return &child == oldest; });
    }
  }
  return true;
}

// Returns the end of a branch that was not used for longest, and its parent.
PrefixStore::Node* PrefixStore::oldest_end(Node& node, Node*& parent) {
  Node* oldest = nullptr;
  for (Node& child : node.children) {
    Node* above = &node;
    Node* found = oldest_end(child, above);
    if (oldest != nullptr && found->used >= oldest->used) continue;
    oldest = found;
    parent = above;
  }
  return oldest == nullptr ? &node : oldest;
}

}  // namespace blip2rt
