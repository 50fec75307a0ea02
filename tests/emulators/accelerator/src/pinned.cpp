#include "pinned.hpp"

#include <c10/util/llvmMathExtras.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "runtime.hpp"

namespace emulated {
namespace {

struct Piece {
  size_t size;
  bool allocated;
};

void release_piece(void* address);

// As on CUDA, pieces are powers of two and are kept until the cache is emptied.
struct Pinned final : at::HostAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    std::lock_guard guard(mutex_);
    const auto size = static_cast<size_t>(
        c10::llvm::PowerOf2Ceil(std::max<uint64_t>(bytes, 4096)));
    for (auto& [address, piece] : pieces_) {
      if (!piece.allocated && piece.size == size) return hand_out(address, piece);
    }
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, memory != MAP_FAILED,
                     "Emulated accelerator: no host memory for ", size, " pinned bytes");
    stats_.num_host_alloc++;
    stats_.allocations.increase(1);
    stats_.allocated_bytes.increase(size);
    auto* address = static_cast<char*>(memory);
    return hand_out(address, pieces_[address] = {size, false});
  }

  void free(void* data) {
    std::lock_guard guard(mutex_);
    auto& piece = pieces_.at(static_cast<char*>(data));
    piece.allocated = false;
    stats_.active_requests.decrease(1);
    stats_.active_bytes.decrease(piece.size);
  }

  bool holds(const void* data) {
    std::lock_guard guard(mutex_);
    auto* address = static_cast<char*>(const_cast<void*>(data));
    auto after = pieces_.upper_bound(address);
    if (after == pieces_.begin()) return false;
    const auto& [start, piece] = *std::prev(after);
    return address < start + piece.size;
  }

  void empty_cache() override {
    std::lock_guard guard(mutex_);
    for (auto at = pieces_.begin(); at != pieces_.end();) {
      if (at->second.allocated) {
        ++at;
        continue;
      }
      ::munmap(at->first, at->second.size);
      stats_.num_host_free++;
      stats_.allocations.decrease(1);
      stats_.allocated_bytes.decrease(at->second.size);
      at = pieces_.erase(at);
    }
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release_piece; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  at::HostStats get_stats() override {
    std::lock_guard guard(mutex_);
    return stats_;
  }
  void reset_accumulated_stats() override {
    std::lock_guard guard(mutex_);
    for (auto* stat : all()) stat->reset_accumulated();
    stats_.num_host_alloc = stats_.num_host_free = 0;
  }
  void reset_peak_stats() override {
    std::lock_guard guard(mutex_);
    for (auto* stat : all()) stat->reset_peak();
  }

 private:
  c10::DataPtr hand_out(char* address, Piece& piece) {
    piece.allocated = true;
    stats_.active_requests.increase(1);
    stats_.active_bytes.increase(piece.size);
    return {address, address, &release_piece, c10::Device(c10::kCPU)};
  }
  std::array<at::Stat*, 4> all() {
    return {&stats_.active_requests, &stats_.active_bytes, &stats_.allocations,
            &stats_.allocated_bytes};
  }

  std::mutex mutex_;
  std::map<char*, Piece> pieces_;
  at::HostStats stats_;
};

Pinned& pinned() {
  static auto* one = new Pinned;
  return *one;
}

void release_piece(void* address) {
  if (address != nullptr && !in_forked_child()) pinned().free(address);
}

at::HostAllocatorRegistry<kDevice> registered(&pinned());

}  // namespace

at::HostAllocator* pinned_allocator() { return &pinned(); }
bool is_pinned(const void* data) { return pinned().holds(data); }

}  // namespace emulated
