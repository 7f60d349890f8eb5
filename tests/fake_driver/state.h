// The fake driver's state: its settings, the recorded calls, and the handles that it has returned.
// Private to tests/fake_driver.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fake_driver.h"

namespace fake {

constexpr int kMaxDevices = 16;
constexpr int kSharedDefault = 48 * 1024, kSharedMost = 227 * 1024;

struct Context {
  int device;
};

struct Library;

struct Kernel {
  std::string symbol;
  Library* library;
  std::map<std::pair<int, int>, int> attributes;  // (attribute, device)
};

struct Library {
  std::string image;
  bool loaded = true;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

struct Record {
  FakeLaunch launch;
  std::string symbol;
  std::vector<size_t> sizes;
  std::vector<std::vector<char>> bytes;
  std::vector<const void*> params;
};

struct Failure {
  CUresult result;
  int times;
};

// What graphs keep until they are destroyed.
struct UserObject {
  CUhostFn destroy;
  void* object;
};

constexpr unsigned long long kOwnStream = 4096;  // of each stream that is created

struct Configuration {
  int devices = 1;
  std::array<std::pair<int, int>, kMaxDevices> capability;
  std::map<CUstream, CUstreamCaptureStatus> captures;
  std::map<std::string, Failure> failures;
  std::map<std::string, std::vector<size_t>> signatures;
  std::map<std::string, int> calls;
  std::deque<Record> launches;
  std::deque<FakeMemset> memsets;
  std::set<char*> allocations;
  std::deque<UserObject> objects;
  std::multimap<CUgraph, const UserObject*> retained;
  Configuration() { capability.fill({9, 0}); }
};

// Never destroyed: code under test may unload modules while the process exits.
struct State {
  std::mutex mutex;
  Configuration configuration;
  std::atomic<int> version{13000};
  pid_t initialized_by = 0;
  std::array<Context, kMaxDevices> contexts;
  std::deque<std::unique_ptr<Library>> libraries;
  std::set<const void*> kernels;
};
extern State& state;

// Trivially destructible: contexts are asked for while a process exits, when this thread's other
// objects are gone.
struct ContextStack {
  std::array<Context*, 64> contexts;
  size_t depth;
  Context* top() const { return depth == 0 ? nullptr : contexts[depth - 1]; }
};
extern thread_local constinit ContextStack context_stack;

// The sizes of a kernel's parameters: as registered, else from its cubin, else guessed from its
// mangled name.
std::vector<size_t> param_sizes(const Kernel& kernel);

}  // namespace fake
