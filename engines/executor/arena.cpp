#include "executor/arena.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <new>
#include <utility>

#include "base/system.h"

namespace blip2rt {
namespace {

constexpr std::align_val_t kAlignment{64};

size_t aligned(size_t bytes) {
  constexpr size_t kLine = static_cast<size_t>(kAlignment);
  if (bytes > SIZE_MAX - kLine) throw std::bad_alloc();
  return std::max<size_t>(1, (bytes + kLine - 1) / kLine) * kLine;
}

char* allocate(size_t bytes) { return static_cast<char*>(::operator new(bytes, kAlignment)); }

// Arenas between runs. They do not grow without limit, so that a single large run does not cost memory for ever.
struct IdleArenas {
  static constexpr size_t kMost = 4, kMaxBytes = size_t{32} << 20;
  std::mutex mutex;
  std::vector<std::unique_ptr<Arena>> arenas;
};

IdleArenas& idle_arenas() {
  static auto* const idle = new IdleArenas;  // never destroyed: a thread may still run at exit
  return *idle;
}

}  // namespace

void Arena::Free::operator()(char* memory) const { ::operator delete(memory, kAlignment); }

Arena::~Arena() { reset(); }

Block* Arena::new_block() {
  if (unused_.empty()) unused_.push_back(blocks_.emplace_back(std::make_unique<Block>()).get());
  Block* block = unused_.back();
  unused_.pop_back();
  return block;
}

Block* Arena::take(size_t bytes) {
  bytes = aligned(bytes);
  const auto gap = std::find_if(gaps_.begin(), gaps_.end(), [=](const Gap& one) { return one.bytes >= bytes; });
  if (gap == gaps_.end()) {
    Block* block = new_block();
    try {
      *block = {allocate(bytes), bytes, 1, true};
    } catch (...) {
      unused_.push_back(block);
      throw;
    }
    outside_ += bytes;
    most_outside_ = std::max(most_outside_, outside_);
    return block;
  }
  Block* block = new_block();
  *block = {buffer_.get() + gap->start, bytes, 1, false};
  gap->start += bytes;
  gap->bytes -= bytes;
  if (gap->bytes == 0) gaps_.erase(gap);
  return block;
}

void Arena::give_back(Block* block) {
  if (block->is_outside) {
    Free()(block->data);
    outside_ -= block->bytes;
  } else {
    const auto start = static_cast<size_t>(block->data - buffer_.get());
    auto next = std::find_if(gaps_.begin(), gaps_.end(), [=](const Gap& one) { return one.start > start; });
    next = gaps_.insert(next, {start, block->bytes});
    if (std::next(next) != gaps_.end() && next->start + next->bytes == std::next(next)->start) {
      next->bytes += std::next(next)->bytes;
      gaps_.erase(std::next(next));
    }
    if (next != gaps_.begin() && std::prev(next)->start + std::prev(next)->bytes == next->start) {
      std::prev(next)->bytes += next->bytes;
      gaps_.erase(next);
    }
  }
  *block = {};
  unused_.push_back(block);
}

void Arena::reset() {
  for (const auto& block : blocks_) {
    if (block->data != nullptr) give_back(block.get());
  }
  if (most_outside_ == 0) return;
  const size_t needed = capacity_ + std::exchange(most_outside_, 0), wanted = std::min(needed, IdleArenas::kMaxBytes);
  if (needed > wanted) return_memory();
  if (wanted == capacity_) return;
  buffer_.reset();
  gaps_.clear();
  capacity_ = 0;
  buffer_.reset(static_cast<char*>(::operator new(wanted, kAlignment, std::nothrow)));
  if (buffer_ == nullptr) return;
  capacity_ = wanted;
  gaps_.push_back({0, wanted});
}

LeasedArena::LeasedArena() {
  IdleArenas& idle = idle_arenas();
  {
    const std::lock_guard<std::mutex> lock(idle.mutex);
    if (!idle.arenas.empty()) {
      arena_ = std::move(idle.arenas.back());
      idle.arenas.pop_back();
    }
  }
  if (arena_ == nullptr) arena_ = std::make_unique<Arena>();
}

LeasedArena::~LeasedArena() {
  arena_->reset();
  IdleArenas& idle = idle_arenas();
  const std::lock_guard<std::mutex> lock(idle.mutex);
  if (idle.arenas.size() < IdleArenas::kMost) idle.arenas.push_back(std::move(arena_));
}

}  // namespace blip2rt
