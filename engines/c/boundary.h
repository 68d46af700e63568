// What every function of the C API needs: the tables of handles, checked arguments, and exceptions as statuses.
#pragma once

#include <blip2rt.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "base/utf8.h"
#include "c/handles.h"
#include "runtime/model.h"

namespace blip2rt {

struct Report {
  blip2rt_status status;
  Faults faults;
  std::string message;
};

struct OpenChat {
  std::shared_ptr<Model> model;  // of which the conversation has references
  std::unique_ptr<Conversation> conversation;
  std::mutex mutex;                     // one thread asks at a time
  std::atomic<std::thread::id> asking;  // that thread
};

using Models = Handles<blip2rt_model, Model>;
using Images = Handles<blip2rt_image, PreparedImage>;
using FeatureSets = Handles<blip2rt_features, Features>;
using Chats = Handles<blip2rt_chat, OpenChat>;
using TextLists = Handles<blip2rt_texts, Texts>;
using Reports = Handles<blip2rt_error, Report>;

inline Error argument_error(std::string fault) { return {ErrorKind::kArgument, std::move(fault)}; }

inline blip2rt_status status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kArgument: return BLIP2RT_BAD_ARGUMENT;
    case ErrorKind::kModel:
    case ErrorKind::kCapability: return BLIP2RT_BAD_MODEL;
    case ErrorKind::kTimeout: return BLIP2RT_TIMEOUT;
    case ErrorKind::kBackend: break;
  }
  return BLIP2RT_FAILED;
}

inline blip2rt_status report(blip2rt_error** error, blip2rt_status status, Faults faults) noexcept {
  if (error == nullptr) return status;
  try {
    for (std::string& fault : faults) fault = single_line(fault);
    std::string message = joined(faults);
    *error = Reports::all().add(std::make_shared<Report>(Report{status, std::move(faults), std::move(message)}));
  } catch (...) {  // no memory even for this
  }
  return status;
}

// Runs a call. Nothing is thrown across the boundary.
template <class Work>
blip2rt_status guarded(blip2rt_error** error, Work work) noexcept {
  if (error != nullptr) *error = nullptr;
  try {
    work();
    return BLIP2RT_OK;
  } catch (const Error& fault) {
    return report(error, status_of(fault.kind), fault.faults);
  } catch (const ImageError& fault) {
    return report(error, BLIP2RT_BAD_IMAGE, {fault.what()});
  } catch (const std::bad_alloc&) {
    return report(error, BLIP2RT_NO_MEMORY, {"out of memory: ask for fewer tokens, beams or images"});
  } catch (const std::length_error&) {  // a container larger than any memory
    return report(error, BLIP2RT_NO_MEMORY, {"out of memory: ask for fewer tokens, beams or images"});
  } catch (const std::exception& fault) {
    return report(error, BLIP2RT_FAILED, {fault.what()});
  } catch (...) {
    return report(error, BLIP2RT_FAILED, {"the callback threw an exception: catch it there"});
  }
}

template <class Table, class Handle>
auto object_of(const Handle* handle, const char* name) {
  auto object = Table::all().find(handle);
  if (object != nullptr) return object;
  throw argument_error(std::string(name) + (handle == nullptr ? " is NULL: pass a " : " was freed, or is no ") +
                       "blip2rt_" + name + (handle == nullptr ? "" : ": pass one that is open"));
}

template <class Pointer>
Pointer given(Pointer pointer, const char* name) {
  if (pointer == nullptr) throw argument_error(std::string(name) + " is NULL: pass a pointer");
  return pointer;
}

// Hands an object to the caller.
template <class Table, class Handle, class Object>
void give(Handle** to, std::shared_ptr<Object> object) {
  *to = Table::all().add(std::move(object));
}

template <class Handle>
void clear(Handle** to, const char* name) {
  *given(to, name) = nullptr;
}

}  // namespace blip2rt
