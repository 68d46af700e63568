// Threads that share a generation, a batcher, a tokenizer, a library, and the end of the process (models and chats:
// all_calls.c). Every answer must be the one that a single thread got. `make sanitize` builds it with each sanitizer.
//
//   stress RUNTIME FOLDER THREADS ROUNDS     RUNTIME: ONNX Runtime's library, or core; FOLDER: a bundle of
//                                            tests.tiny.bundle
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>

#include "executor/core_graph.h"
#include "loop/batcher.h"
#include "loop/generation.h"
#include "loop/generator.h"
#include "ort/active_call.h"
#include "ort/ort_api.h"
#include "text/tokenizer.h"

namespace {

using namespace blip2rt;

constexpr int kImages = 3, kLength = 3, kWidth = 16, kVocab = 21;

std::vector<float> prefix_embeds() {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(kImages * kLength * kWidth);
  for (float& value : values) value = normal(random);
  return values;
}

GenerationOptions options_of(int kind) {
  GenerationOptions options;
  options.max_new_tokens = 4 + kind % 5;
  options.eos_token_ids = {1, 5};
  if (kind % 3 == 0) options.num_beams = 1 + kind % 4;
  if (kind % 3 == 1) {
    options.do_sample = true;
    options.num_return_sequences = 1 + kind % 2;
    options.top_p = 0.9;
    options.seed = static_cast<uint64_t>(kind);
    if (kind % 2 == 0) options.num_beams = 3;
  }
  if (kind % 5 == 0) options.repetition_penalty = 1.5;
  if (kind % 4 == 0) options.no_repeat_ngram_size = 2;
  return options;
}

// Requests about all images, with prompts of unequal length.
std::vector<Request> requests_about(const Generator& generator, const Prefix& prefix, int kind) {
  const std::shared_ptr<const float> borrowed(std::shared_ptr<void>(), prefix.data);
  return requests_of(generator, borrowed, prefix, {{2, 3}, {}, {4}}, options_of(kind));
}

using Answers = std::vector<std::vector<std::vector<int64_t>>>;

void add_tokens(Answers& answers, const std::vector<std::vector<Hypothesis>>& results) {
  for (const auto& image : results) {
    auto& best = answers.emplace_back();
    for (const Hypothesis& hypothesis : image) best.push_back(hypothesis.tokens);
  }
}

Answers answers_of(const Generator& generator, const Prefix& prefix, int kind) {
  Answers answers;
  add_tokens(answers, generate(generator, requests_about(generator, prefix, kind), [] {}, nullptr));
  Chat chat(generator, {prefix.data, 1, prefix.length}, 4, 64);
  for (int turn = 0; turn < 2; ++turn) {
    GenerationOptions options = options_of(kind + turn);
    options.num_return_sequences = 1;
    const auto generation = chat.ask({6, 7 + turn}, options);
    while (!generation->done()) generation->step();
    add_tokens(answers, generation->results());
  }
  return answers;
}

// The texts of a call's images, in the batch that all threads share. Some calls are left before their end.
Answers shared_answers_of(Batcher& batcher, const Prefix& prefix, int kind, bool leaves) {
  std::vector<Request> requests = requests_about(batcher.generator(), prefix, kind);
  for (Request& one : requests) {
    if (kind % 2 == 0) one.cache_key = "image " + std::to_string(one.number);
  }
  const auto queue = std::make_shared<TokenQueue>(kind % 3 != 0);
  const auto tickets = batcher.submit(std::move(requests), queue);
  Answers answers;
  while (!queue->done()) {
    queue->wait(1);
    queue->take();
    batcher.counters();
    if (!leaves) continue;
    for (const auto& ticket : tickets) ticket->cancel();
    return answers;
  }
  for (const auto& ticket : tickets) {
    if (ticket->outcome().failure) std::rethrow_exception(ticket->outcome().failure);
    auto& best = answers.emplace_back();
    for (const Hypothesis& hypothesis : ticket->outcome().results) best.push_back(hypothesis.tokens);
  }
  return answers;
}

// A model as the file system has it.
struct Loaded {
  Session embed, llm;
  Generator generator;

  Loaded(const std::string& folder, bool core)
      : embed(folder + "/embed.onnx", 1, {}, {}, false, core ? open_with_executor : open_with_onnxruntime),
        llm(folder + "/llm.onnx", core ? 2 : 1, {}, {}, false, core ? open_with_executor : open_with_onnxruntime),
        generator(embed, llm, {1, 1, 8, kWidth, kVocab}) {}
};

struct Stress {
  const char* library;
  std::string folder;
  int threads, rounds;
  std::vector<float> values = prefix_embeds();
  Prefix prefix = {values.data(), kImages, kLength};
  std::atomic<int> wrong{0};
  bool core = std::string(library) == "core";

  // Calls work(thread, round), on all threads at once.
  template <class F>
  void together(const char* what, int times, const F& work) {
    const int before = wrong;
    std::vector<std::thread> workers;
    for (int worker = 0; worker < threads; ++worker) {
      workers.emplace_back([&, worker] {
        for (int round = 0; round < times; ++round) work(worker, round);
      });
    }
    for (std::thread& worker : workers) worker.join();
    std::printf("%s: %d threads x %d rounds, %d wrong\n", what, threads, times, wrong - before);
  }

  // Everyone steps and reads one generation. Whoever is refused tries again: together they make one answer.
  void one_generation(const Generator& generator) {
    Answers want;
    add_tokens(want, generate(generator, requests_about(generator, prefix, 1), [] {}, nullptr));
    for (int round = 0; round < rounds; ++round) {
      Generation shared(generator, requests_about(generator, prefix, round % 2));
      std::vector<std::thread> workers;
      for (int worker = 0; worker < threads; ++worker) {
        workers.emplace_back([&, worker] {
          while (!shared.done()) {
            try {
              const Batch::Lock lock(shared.batch());
              if (worker % 2 == 0) {
                shared.step();
              } else if (shared.results().size() != kImages) {
                ++wrong;
              }
            } catch (const std::runtime_error&) {  // another one is at it
            }
          }
        });
      }
      for (std::thread& worker : workers) worker.join();
      Answers answers;
      add_tokens(answers, shared.results());
      if (round % 2 == 1 && answers != want) ++wrong;
    }
    std::printf("a generation: %d threads x %d rounds, %d wrong\n", threads, rounds, wrong.load());
  }

  // Everyone hands requests to one batcher, whose pool is smaller than what they ask for, and leaves some of them.
  void one_batcher(const Generator& generator) {
    constexpr int kKinds = 20;
    std::vector<Answers> want;
    for (int kind = 0; kind < kKinds; ++kind) want.push_back(answers_of(generator, prefix, kind));
    Batcher batcher(generator, {7, 90, 5, 20000});
    std::atomic<int> ties{0};
    together("a batcher", rounds, [&](int worker, int round) {
      const int kind = (worker * 7 + round) % kKinds;
      const Answers answers = shared_answers_of(batcher, prefix, kind, round % 5 == 4);
      // Products of other sizes round differently, which may decide a near tie.
      if (!std::equal(answers.begin(), answers.end(), want[static_cast<size_t>(kind)].begin())) ++ties;
    });
    std::printf("a batcher: %d near ties\n", ties.load());
    if (ties * 50 > threads * rounds) ++wrong;
  }

  // Merges are read by the first text; while they are wrong, by every text.
  void wrong_merges() {
    const Tokenizer tokenizer(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})");
    together("wrong merges", rounds, [&](int, int) {
      try {
        tokenizer.encode(TextPiece{"a"}, false);
        ++wrong;
      } catch (const TokenizerError&) {
      }
    });
  }

  void loads() {
    const Loaded first(folder, core);
    const Answers want = answers_of(first.generator, prefix, 3);
    together("loading", std::max(1, rounds / 10), [&](int, int) {
      if (!core) load_onnxruntime(library);
      const Loaded loaded(folder, core);
      if (answers_of(loaded.generator, prefix, 3) != want) ++wrong;
    });
  }

  // Leaves threads at work that the end of the process meets, as daemon threads of Python do.
  void leave_at_work() {
    for (int worker = 0; worker < threads; ++worker) {
      std::thread([this, worker] {
        const Loaded loaded(folder, core);
        for (int round = worker;; ++round) {
          try {
            if (round % 20 == 0) const Loaded another(folder, core);
            answers_of(loaded.generator, prefix, round % 20);
          } catch (const std::runtime_error&) {  // between two calls the process has ended: Python's thread would sleep
            std::this_thread::sleep_for(std::chrono::hours(1));
          }
        }
      }).detach();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50 + std::random_device()() % 100));
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  auto* const stress = new Stress{argv[1], argv[2], std::atoi(argv[3]), std::atoi(argv[4])};  // outlives main
  if (!stress->core) load_onnxruntime(stress->library);
  {
    const Loaded loaded(stress->folder, stress->core);
    stress->one_generation(loaded.generator);
    stress->one_batcher(loaded.generator);
  }
  stress->wrong_merges();
  stress->loads();
  if (stress->wrong != 0) return 1;
  stress->leave_at_work();
  wait_for_calls();  // as Python does
  std::exit(0);
}
