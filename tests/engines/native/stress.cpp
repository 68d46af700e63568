// Threads that share one generator, each with generations and a conversation of its own: every answer must be the one
// that a single thread got. Built with ThreadSanitizer, and with AddressSanitizer, by `make sanitize`.
//
//   stress LIBONNXRUNTIME FOLDER THREADS ROUNDS     FOLDER: embed.onnx and llm.onnx, as tiny_graphs.py writes them
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "loop/chat.h"
#include "loop/generation.h"
#include "loop/generator.h"

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

using Answers = std::vector<std::vector<std::vector<int64_t>>>;

Answers answers_of(const Generator& generator, const Prefix& prefix, int kind) {
  const Prompts prompts = {{2, 3}, {}, {4}};
  Answers answers;
  const auto add = [&answers](const std::vector<std::vector<Hypothesis>>& results) {
    for (const auto& image : results) {
      auto& best = answers.emplace_back();
      for (const Hypothesis& hypothesis : image) best.push_back(hypothesis.tokens);
    }
  };
  add(generate(generator, prefix, prompts, options_of(kind), [] {}, nullptr));
  Chat chat(generator, {prefix.data, 1, prefix.length}, 4, 64);
  for (int turn = 0; turn < 2; ++turn) {
    GenerationOptions options = options_of(kind + turn);
    options.num_return_sequences = 1;
    const auto generation = chat.ask({6, 7 + turn}, options);
    while (!generation->done()) generation->step();
    add(generation->results());
  }
  return answers;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const int threads = std::atoi(argv[3]), rounds = std::atoi(argv[4]);
  const std::string folder = argv[2];
  load_onnxruntime(argv[1]);
  const Session embed(folder + "/embed.onnx", 1), llm(folder + "/llm.onnx", 1);
  const Generator generator(embed, llm, {1, 1, 8, kWidth, kVocab});
  const std::vector<float> values = prefix_embeds();
  const Prefix prefix{values.data(), kImages, kLength};

  constexpr int kKinds = 20;
  std::vector<Answers> want;
  for (int kind = 0; kind < kKinds; ++kind) want.push_back(answers_of(generator, prefix, kind));
  std::atomic<int> wrong{0};
  std::vector<std::thread> workers;
  for (int worker = 0; worker < threads; ++worker) {
    workers.emplace_back([&, worker] {
      for (int round = 0; round < rounds; ++round) {
        const int kind = (worker * 7 + round) % kKinds;
        if (answers_of(generator, prefix, kind) != want[static_cast<size_t>(kind)]) ++wrong;
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  std::printf("%d threads x %d rounds, %d wrong\n", threads, rounds, wrong.load());
  return wrong == 0 ? 0 : 1;
}
