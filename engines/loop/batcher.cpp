// Runs the batch in a thread of its own.
#include "loop/batcher.h"

#include <stdexcept>
#include <utility>

namespace blip2rt {

Batcher::Batcher(const Generator& generator, const BatchSizes& sizes)
    : generator_(generator), batch_(generator, sizes), process_(process_id()), thread_([this] { work(); }) {}

Batcher::~Batcher() { close(); }

Tickets Batcher::submit(std::vector<Request> requests, const std::shared_ptr<TokenQueue>& queue) {
  generator_.llm().check_process();
  for (const Request& request : requests) batch_.check(request);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) throw std::runtime_error("the model is closed: load it again");
  Tickets tickets;
  for (Request& request : requests) tickets.push_back(std::make_shared<Ticket>(std::move(request), queue));
  submitted_.insert(submitted_.end(), tickets.begin(), tickets.end());
  change_.notify_all();
  return tickets;
}

void Batcher::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    change_.wait(lock, [this] { return closed_ || !submitted_.empty() || !batch_.idle(); });
    const bool closed = closed_;
    Tickets added = std::exchange(submitted_, {});
    lock.unlock();
    for (auto& ticket : added) batch_.add(std::move(ticket));
    added.clear();
    if (closed) {
      batch_.fail_all(std::make_exception_ptr(std::runtime_error("the model was closed")));
      return;
    }
    try {
      batch_.step();
    } catch (...) {  // out of memory outside of any one request
      batch_.fail_all(std::current_exception());
    }
    lock.lock();
    counters_ = batch_.counters();
  }
}

bool Batcher::forked() const { return process_id() != process_; }

void Batcher::close() {
  if (forked()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    change_.notify_all();
  }
  const std::lock_guard<std::mutex> lock(joining_);
  if (thread_.joinable()) thread_.join();
}

BatchCounters Batcher::counters() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  BatchCounters counters = counters_;
  counters.waiting += static_cast<int>(submitted_.size());
  return counters;
}

}  // namespace blip2rt
