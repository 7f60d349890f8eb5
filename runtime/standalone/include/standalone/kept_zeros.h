// Device memory that is zeroed once, and that kernels leave zero for the next launch.
#pragma once

#include <cuda.h>
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

#include "standalone/driver.h"
#include "standalone/error.h"

namespace opaq::standalone {

// The memory of one implementation, in pieces that no two launches use at the same time. Each
// stream has one, and so does each launch that is captured, since a graph may be replayed on any
// stream while others run, though never twice at a time. Such a piece is lent to the graph, until
// CUDA says that the graph and all that was made from it are gone.
//
// Thread-safe; constant-initialised as a static variable, never destroyed: launches may be in
// flight when the process ends.
class KeptZeros {
  struct Memory {
    CUdeviceptr address;
    Memory* smaller;
  };
  struct Piece {
    int device = 0;
    unsigned long long stream = 0;  // the driver's number, which no other stream ever has
    std::atomic<bool> lent{false};  // to a graph, where it is of no stream
    Piece* next = nullptr;
    std::mutex in_use;  // from the first kernel of a launch to its last; guards what follows
    CUdeviceptr memory = 0;
    int64_t bytes = 0;
    Memory* smaller = nullptr;  // what it had before it grew
    bool zero = false;          // when all launches so far have ended
  };

 public:
  // The use of the memory by one launch. `ended()` must be called when all its kernels have been
  // launched; otherwise the memory is zeroed again by the next use.
  class Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept { *this = std::move(other); }
    Use& operator=(Use&& other) noexcept {
      std::swap(piece_, other.piece_);
      std::swap(lock_, other.lock_);
      std::swap(ended_, other.ended_);
      return *this;
    }
    ~Use() {
      if (piece_ && !ended_) piece_->zero = false;
    }
    void ended() { ended_ = true; }
    // nullptr: there is none, and the launch must zero memory of its own.
    char* memory() const { return piece_ ? reinterpret_cast<char*>(piece_->memory) : nullptr; }

   private:
    friend class KeptZeros;
    explicit Use(Piece& piece) : piece_(&piece), lock_(piece.in_use) {}
    Piece* piece_ = nullptr;
    std::unique_lock<std::mutex> lock_;
    bool ended_ = false;
  };

  constexpr KeptZeros() = default;
  KeptZeros(const KeptZeros&) = delete;

  // Memory for a launch on `stream`. The device's context must be current.
  Use use(const DriverApi& api, const char* op, int device, CUstream stream, int64_t bytes) {
    if (bytes == 0) return Use();
    if (is_capturing(api, stream)) return lend(api, op, device, stream, bytes);
    unsigned long long id = 0;
    check(api, api.stream_get_id(stream, &id), "reading the number of a stream");
    Use use(piece(device, id));
    Piece& piece = *use.piece_;
    if (piece.bytes < bytes) grow(api, op, piece, bytes);
    if (!piece.zero) {
      zero_scratch(api, op, reinterpret_cast<void*>(piece.memory), piece.bytes, stream);
      piece.zero = true;
    }
    return use;
  }

 private:
  // Memory for the replays of the graph that `stream` is captured to, zero before this returns.
  // There is none where the driver does not tell the graph.
  [[gnu::cold, gnu::noinline]] Use lend(const DriverApi& api, const char* op, int device,
                                        CUstream stream, int64_t bytes) {
    const CUgraph graph = captured_graph(api, stream);
    if (!graph) return Use();
    const RelaxedCapture relaxed(api);
    Piece& piece = take(device, bytes);
    try {
      Use use(piece);
      if (piece.bytes < bytes) grow(api, op, piece, bytes);
      if (!piece.zero) zero_now(api, op, piece);
      lend_to(api, graph, piece);
      return use;
    } catch (...) {
      piece.lent = false;
      throw;
    }
  }

  // A piece for graphs that is not lent, and is now.
  Piece& take(int device, int64_t bytes) {
    for (Piece* piece = of_graphs_.load(std::memory_order_acquire); piece; piece = piece->next) {
      if (piece->device != device || piece->lent.exchange(true)) continue;
      if (piece->bytes >= bytes) return *piece;
      piece->lent = false;
    }
    auto* made = new Piece;
    made->device = device;
    made->lent = true;
    const std::lock_guard<std::mutex> lock(adding_);
    return add(of_graphs_, made);
  }

  [[gnu::cold, gnu::noinline]] static void lend_to(const DriverApi& api, CUgraph graph,
                                                   Piece& piece) {
    // A graph may outlive the package that this code is part of, and needs give_back when it goes.
    Dl_info here{};
    if (dladdr(reinterpret_cast<void*>(&give_back), &here) != 0 && here.dli_fname)
      dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
    const char* const what = "lending scratch memory to a CUDA graph";
    CUuserObject object = nullptr;
    check(api,
          api.user_object_create(&object, &piece, &give_back, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC),
          what);
    check(api, api.graph_retain_user_object(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE), what);
  }

  // Called by CUDA, which must not be called from here.
  static void CUDA_CB give_back(void* piece) { static_cast<Piece*>(piece)->lent = false; }

  // On a stream of its own: what the captured one is asked to do is only done in replays.
  [[gnu::cold, gnu::noinline]] static void zero_now(const DriverApi& api, const char* op,
                                                    Piece& piece) {
    const char* const what = "zeroing scratch memory for a CUDA graph";
    CUstream stream = nullptr;
    check(api, api.stream_create(&stream, CU_STREAM_NON_BLOCKING), what);
    zero_scratch(api, op, reinterpret_cast<void*>(piece.memory), piece.bytes, stream);
    check(api, api.stream_synchronize(stream), what);
    check(api, api.stream_destroy(stream), what);
    piece.zero = true;
  }

  Piece& piece(int device, unsigned long long stream) {
    if (Piece* found = find(device, stream)) return *found;
    const std::lock_guard<std::mutex> lock(adding_);
    if (Piece* found = find(device, stream)) return *found;
    auto* made = new Piece;
    made->device = device;
    made->stream = stream;
    return add(of_streams_, made);
  }

  // While adding_ is held.
  static Piece& add(std::atomic<Piece*>& first, Piece* made) {
    made->next = first.load(std::memory_order_relaxed);
    first.store(made, std::memory_order_release);
    return *made;
  }

  Piece* find(int device, unsigned long long stream) const {
    Piece* piece = of_streams_.load(std::memory_order_acquire);
    while (piece && !(piece->device == device && piece->stream == stream)) piece = piece->next;
    return piece;
  }

  // Smaller memory is not freed: launches may be using it, and freeing waits for the device. As
  // each piece is at least twice the last, all of them together are less than twice the largest.
  [[gnu::cold, gnu::noinline]] static void grow(const DriverApi& api, const char* op, Piece& piece,
                                                int64_t bytes) {
    const RelaxedCapture relaxed(api);
    const int64_t wanted = bytes > 2 * piece.bytes ? bytes : 2 * piece.bytes;
    CUdeviceptr memory = 0;
    if (const CUresult result = api.mem_alloc(&memory, static_cast<size_t>(wanted));
        result != CUDA_SUCCESS)
      throw_driver_error(api, result,
                         format_text("%s: allocating %lld bytes of scratch memory that is zeroed "
                                     "once",
                                     op, static_cast<long long>(wanted)));
    if (piece.memory) piece.smaller = new Memory{piece.memory, piece.smaller};
    piece.memory = memory;
    piece.bytes = wanted;
    piece.zero = false;
  }

  std::atomic<Piece*> of_streams_{nullptr}, of_graphs_{nullptr};
  std::mutex adding_;  // to one of them
};

}  // namespace opaq::standalone
