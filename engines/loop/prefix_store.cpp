// Searches, extends, splits and prunes the trees of cached prefixes.
#include "loop/prefix_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace blip2rt {

PrefixStore::Values::Values(PrefixStore& store, int count_)
    : owner(store), count(count_), data(new char[store.bytes_of(count_)]) {
  owner.bytes_ += owner.bytes_of(count);
}

PrefixStore::Values::~Values() { owner.bytes_ -= owner.bytes_of(count); }

PrefixStore::PrefixStore(KvCache& cache, size_t max_bytes) : cache_(cache), max_bytes_(max_bytes) {}

PrefixStore::~PrefixStore() { roots_.clear(); }

size_t PrefixStore::bytes_of(int count) const { return static_cast<size_t>(count) * cache_.bytes_per_position(); }

// Follows `tokens` down a tree, and marks each node on the path as used.
PrefixStore::Path PrefixStore::find(Node& root, const std::vector<int64_t>& tokens, int max_count) {
  Path path;
  Node* node = &root;
  node->last_used = ++clock_;
  path.nodes.push_back(node);
  while (path.length < max_count) {
    const int64_t next = tokens[static_cast<size_t>(path.length)];
    const auto child = std::find_if(node->children.begin(), node->children.end(),
                                    [next](const Node& one) { return one.tokens.front() == next; });
    if (child == node->children.end()) break;
    node = &*child;
    node->last_used = clock_;
    path.nodes.push_back(node);
    const int size = static_cast<int>(node->tokens.size());
    path.last_length = 0;
    while (path.last_length < size && path.length < max_count &&
           node->tokens[static_cast<size_t>(path.last_length)] == tokens[static_cast<size_t>(path.length)]) {
      ++path.last_length;
      ++path.length;
    }
    if (path.last_length < size) break;
  }
  return path;
}

int PrefixStore::load(const std::string& image, const std::vector<int64_t>& tokens, int position, int max_count) {
  const auto root = roots_.find(image);
  if (root == roots_.end()) return 0;
  const Path path = find(root->second, tokens, max_count);
  int done = 0;
  for (size_t i = 1; i < path.nodes.size(); ++i) {
    const Node& node = *path.nodes[i];
    const bool is_last = i + 1 == path.nodes.size();
    const int count = is_last ? path.last_length : static_cast<int>(node.tokens.size());
    cache_.load(position + done, node.first, count, node.values->count, node.values->data.get());
    done += count;
  }
  return done;
}

void PrefixStore::save(const std::string& image, const std::vector<int64_t>& tokens, int position) {
  const int length = static_cast<int>(tokens.size());
  if (length == 0 || bytes_of(length) > max_bytes_) return;
  Path path = find(roots_[image], tokens, length);
  if (path.length == length) return;
  Node* last = path.nodes.back();
  if (path.nodes.size() > 1 && path.last_length < static_cast<int>(last->tokens.size())) split(*last, path.last_length);
  const int count = length - path.length;
  if (!make_room(bytes_of(count))) return;
  Node fresh;
  fresh.values = std::make_shared<Values>(*this, count);
  fresh.tokens.assign(tokens.begin() + path.length, tokens.end());
  fresh.last_used = clock_;
  cache_.save(position + path.length, count, fresh.values->data.get());
  last->children.push_back(std::move(fresh));
}

// Splits a node before its token number `at`: the rest becomes its child. Both share the values.
void PrefixStore::split(Node& node, int at) const {
  Node rest;
  rest.tokens.assign(node.tokens.begin() + at, node.tokens.end());
  rest.values = node.values;
  rest.first = node.first + at;
  rest.last_used = node.last_used - 1;  // the search passed only the first part
  rest.children = std::move(node.children);
  node.tokens.resize(static_cast<size_t>(at));
  node.children.clear();
  node.children.push_back(std::move(rest));
}

// Drops leaves until `bytes` more fit. Returns false if only the path that was just searched is left.
bool PrefixStore::make_room(size_t bytes) {
  while (bytes_ + bytes > max_bytes_) {
    Node *oldest = nullptr, *parent = nullptr;
    auto of = roots_.end();
    for (auto root = roots_.begin(); root != roots_.end(); ++root) {
      Node* above = nullptr;
      Node* found = oldest_leaf(root->second, above);
      if (oldest != nullptr && found->last_used >= oldest->last_used) continue;
      oldest = found;
      parent = above;
      of = root;
    }
    if (oldest == nullptr || oldest->last_used == clock_) return false;
    if (parent == nullptr) {
      roots_.erase(of);
    } else {
      parent->children.remove_if([oldest](const Node& child) { return &child == oldest; });
    }
  }
  return true;
}

// Returns the least recently used leaf, and its parent.
PrefixStore::Node* PrefixStore::oldest_leaf(Node& node, Node*& parent) {
  Node* oldest = nullptr;
  for (Node& child : node.children) {
    Node* above = &node;
    Node* found = oldest_leaf(child, above);
    if (oldest != nullptr && found->last_used >= oldest->last_used) continue;
    oldest = found;
    parent = above;
  }
  return oldest == nullptr ? &node : oldest;
}

}  // namespace blip2rt
