// Device memory that is zeroed once, and that kernels leave zero for the next launch.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

#include "standalone/driver.h"
#include "standalone/error.h"

namespace opaq::standalone {

// The memory of one implementation: a piece for each stream, since launches on different streams
// may run at the same time. Thread-safe; constant-initialised as a static variable, never
// destroyed: launches may be in flight when the process ends.
class KeptZeros {
  struct Memory {
    CUdeviceptr address;
    Memory* smaller;
  };
  struct Piece {
    int device = 0;
    unsigned long long stream = 0;  // the driver's number, which no other stream ever has
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

  // Memory for a launch on `stream`. There is none while the stream is captured: a graph may be
  // replayed on any stream, at the same time as other launches. The device's context must be
  // current.
  Use use(const DriverApi& api, const char* op, int device, CUstream stream, int64_t bytes) {
    if (bytes == 0 || is_capturing(api, stream)) return Use();
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
  Piece& piece(int device, unsigned long long stream) {
    if (Piece* found = find(device, stream)) return *found;
    const std::lock_guard<std::mutex> lock(adding_);
    if (Piece* found = find(device, stream)) return *found;
    auto* made = new Piece;
    made->device = device;
    made->stream = stream;
    made->next = first_.load(std::memory_order_relaxed);
    first_.store(made, std::memory_order_release);
    return *made;
  }

  Piece* find(int device, unsigned long long stream) const {
    Piece* piece = first_.load(std::memory_order_acquire);
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

  std::atomic<Piece*> first_{nullptr};
  std::mutex adding_;
};

}  // namespace opaq::standalone
