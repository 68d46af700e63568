// Memory for the values of a run.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace blip2rt {

// Memory that values share, such as a tensor and its reshaped view.
struct Block {
  char* data = nullptr;
  size_t bytes = 0;
  size_t users = 0;
  bool is_outside = false;  // of the arena's buffer
};

// One buffer, out of which values take the first gap that is large enough. Values that find none get memory of their
// own, and the next run a buffer with room for them.
class Arena {
 public:
  Arena() { reset(); }
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Returns a block with one user. Throws std::bad_alloc.
  Block* take(size_t bytes);
  // Frees a block.
  void give_back(Block* block);

  // Frees all blocks, and makes room for what did not fit.
  void reset();

 private:
  struct Gap {
    size_t start, bytes;
  };
  struct Free {
    void operator()(char* memory) const;
  };

  Block* new_block();

  std::unique_ptr<char, Free> buffer_;
  size_t capacity_ = 0;
  std::vector<Gap> gaps_;  // by start; no two of them touch
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Block*> unused_;             // of blocks_
  size_t outside_ = 0;                     // bytes
  size_t most_outside_ = size_t{8} << 20;  // at first a guess that fits nano; pages cost nothing until used
};

// An arena that one run has for itself. Runs that follow each other, of any graph, get the same one.
class LeasedArena {
 public:
  LeasedArena();
  ~LeasedArena();
  LeasedArena(const LeasedArena&) = delete;
  LeasedArena& operator=(const LeasedArena&) = delete;

  Arena& operator*() const { return *arena_; }
  Arena* operator->() const { return arena_.get(); }

 private:
  std::unique_ptr<Arena> arena_;
};

}  // namespace blip2rt
