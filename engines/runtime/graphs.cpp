// Opens sessions and runs them, with errors in the words of blip2rt.backends.
#include "runtime/graphs.h"

#include <cstring>
#include <new>
#include <utility>

#include "base/system.h"
#include "executor/core_graph.h"

namespace blip2rt {
namespace {

// Throws std::bad_alloc if `ulimit -v` leaves no room to open graphs: without memory, ONNX Runtime ends the process.
void require_address_space(uint64_t file_bytes) {
  constexpr uint64_t kLoadingBytes = 320 << 20;  // of ONNX Runtime, its threads and arenas, besides the files it maps
  if (!has_address_space(file_bytes + kLoadingBytes)) throw std::bad_alloc();
}

}  // namespace

const std::shared_ptr<const Session>& BundleGraphs::open(const std::string& component) {
  std::shared_ptr<const Session>& session = sessions_[component];
  if (session != nullptr) return session;
  const std::string path = bundle_.graph(component);
  try {
    if (sessions_.size() == 1 && !core_) require_address_space(bundle_.bytes());
    const int threads = component == "embed" ? 1 : rules_.threads;  // it copies a few rows
    session = std::make_shared<Session>(path, threads, CustomOps(), bundle_.readable_files(component), rules_.trusted,
                                        core_ ? open_with_executor : open_with_onnxruntime,
                                        bundle_.output_shapes(component), rules_.run_timeout);
  } catch (const Error&) {
    throw;
  } catch (const GraphError& error) {
    std::string message = error.what();
    const size_t fix = message.rfind("load it with ");
    if (fix != std::string::npos) message.replace(fix, std::string::npos, "load it with trusted_graphs");
    throw Error(ErrorKind::kModel, std::move(message));
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kBackend,
                (core_ ? "the core" : "ONNX Runtime") + (" cannot load " + path) + ": " + error.what());
  }
  return session;
}

std::shared_ptr<const Session> BundleGraphs::session(const std::string& component) {
  const std::lock_guard lock(mutex_);
  return open(component);
}

Tensor Graphs::run(const std::string& component, const char* output, const std::vector<Feed>& feeds) {
  const std::shared_ptr<const Session> session = this->session(component);
  NamedTensors inputs;
  for (const Feed& feed : feeds) inputs.emplace_back(feed.name, feed.view);
  try {
    if (session->is_loop_only()) throw std::runtime_error("it is run by the loop alone");
    const OwnedTensor made = std::move(session->run(inputs, {output})[0]);
    const TensorView& view = made.view;
    const auto* floats = view.as<float>();
    return {{view.axes, view.axes + view.rank}, std::vector<float>(floats, floats + view.count())};
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kBackend, session->path() + " failed: " + error.what());
  }
}

void BundleGraphs::release_weights(const std::string& component) {
  const std::lock_guard lock(mutex_);
  const auto opened = sessions_.find(component);
  if (opened != sessions_.end() && opened->second != nullptr) opened->second->release_weights();
}

std::shared_ptr<const Generator> BundleGraphs::generator() {
  const std::lock_guard lock(mutex_);
  if (generator_ == nullptr) {
    const LlmSpec& spec = *bundle_.manifest.llm;
    const auto size = [](int64_t number) { return static_cast<int>(number); };  // the manifest's limits fit
    const LlmShape shape{size(spec.layers), size(spec.kv_heads), size(spec.head_dim), size(spec.hidden_size),
                         size(spec.vocab_size)};
    const Session &embed = *open("embed"), &llm = *open("llm");
    const Session* encoder = spec.encoder_decoder ? open("encoder").get() : nullptr;
    const int64_t start = spec.decoder_start_token_id.value_or(0);
    generator_ = named_failure([&] { return std::make_shared<Generator>(embed, llm, shape, encoder, start); });
  }
  return generator_;
}

}  // namespace blip2rt
