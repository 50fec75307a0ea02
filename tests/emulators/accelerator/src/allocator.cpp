#include "allocator.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "runtime.hpp"

namespace emulated {
namespace {

using c10::CachingAllocator::StatType;
using Stats = c10::CachingDeviceAllocator::DeviceStats;

// CUDA's caching allocator has these sizes; what can be given back depends on them.
constexpr size_t kRound = 512;               // blocks are multiples of this
constexpr size_t kSmall = 1 << 20;           // up to here a request is small
constexpr size_t kSmallSegment = 2 << 20;    // and shares a segment of this size
constexpr size_t kLargeSegment = 20 << 20;   // larger ones share these
constexpr size_t kOwnSegment = 10 << 20;     // up to here; from here on each has its own
constexpr size_t kOwnRound = 2 << 20;        // of a multiple of this

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
size_t block_size(size_t n) { return std::max(round_up(n, kRound), kRound); }
size_t segment_size(size_t block) {
  if (block <= kSmall) return kSmallSegment;
  return block < kOwnSegment ? kLargeSegment : round_up(block, kOwnRound);
}

std::string words(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; unit++) value /= 1024;
  char text[48];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return text;
}

struct Block {
  c10::DeviceIndex device;
  c10::StreamId stream;
  char* address;
  size_t size;
  bool large;
  bool allocated = false;
  size_t requested = 0;
  Block* before = nullptr;  // neighbours in the segment
  Block* after = nullptr;
};

struct BestFit {
  using is_transparent = void;
  static auto key(const Block* b) { return std::tuple(b->stream, b->size, b->address); }
  bool operator()(const Block* a, const Block* b) const { return key(a) < key(b); }
};

void release_block(void* context);

class Device {
 public:
  Block* allocate(c10::DeviceIndex index, c10::StreamId stream, size_t requested) {
    std::lock_guard guard(mutex_);
    const auto size = block_size(requested);
    auto* block = cached(size, stream);
    if (block == nullptr) {
      block = new_segment(index, stream, size);
      if (block == nullptr) {
        stats_.num_alloc_retries++;
        release_cached();
        block = new_segment(index, stream, size);
      }
      if (block == nullptr) out_of_memory(index, requested, segment_size(size));
    }
    split(block, size);
    block->allocated = true;
    block->requested = requested;
    count(block, true);
    return block;
  }

  void free(Block* block) {
    std::lock_guard guard(mutex_);
    count(block, false);
    if (settings().poison) std::memset(block->address, 0xFB, block->size);
    block->allocated = false;
    block->requested = 0;
    block = joined(block);
    pool(block->large).insert(block);
  }

  void empty_cache() {
    std::lock_guard guard(mutex_);
    release_cached();
  }

  Stats stats() {
    std::lock_guard guard(mutex_);
    auto now = stats_;
    for (bool large : {false, true}) {
      for (const auto* block : pool(large)) {
        if (block->before == nullptr && block->after == nullptr) continue;
        each(now.inactive_split, large, [](auto& stat) { stat.increase(1); });
        each(now.inactive_split_bytes, large, [&](auto& stat) { stat.increase(block->size); });
      }
    }
    return now;
  }

  void reset(bool peak) {
    std::lock_guard guard(mutex_);
    for (auto* stats : {&stats_.allocation, &stats_.segment, &stats_.active,
                        &stats_.allocated_bytes, &stats_.reserved_bytes, &stats_.active_bytes,
                        &stats_.requested_bytes}) {
      for (auto& stat : *stats) peak ? stat.reset_peak() : stat.reset_accumulated();
    }
    if (peak) return;
    stats_.num_alloc_retries = stats_.num_ooms = 0;
    stats_.num_device_alloc = stats_.num_device_free = 0;
  }

  void snapshot(int index, std::vector<SegmentView>& out) {
    std::lock_guard guard(mutex_);
    for (const auto& [address, first] : segments_) {
      SegmentView view{index, address, 0, static_cast<uint64_t>(first->stream), first->large, {}};
      for (const auto* block = first; block != nullptr; block = block->after) {
        view.total += block->size;
        view.blocks.push_back({reinterpret_cast<uint64_t>(block->address), block->size,
                               block->requested, block->allocated});
      }
      out.push_back(std::move(view));
    }
  }

  void create_context(c10::DeviceIndex index) {
    std::lock_guard guard(mutex_);
    if (context_) return;
    const auto bytes = settings().context_bytes;
    if (!ledger().reserve(settings().ledger_device[index], bytes, settings().capacity[index]))
      out_of_memory(index, bytes, bytes);
    context_ = true;
  }

  bool context_ = false;
  double fraction_ = 1.0;

 private:
  template <typename Change>
  static void each(c10::CachingAllocator::StatArray& stats, bool large, Change change) {
    change(stats[static_cast<size_t>(StatType::AGGREGATE)]);
    change(stats[static_cast<size_t>(large ? StatType::LARGE_POOL : StatType::SMALL_POOL)]);
  }

  void count(const Block* block, bool more) {
    auto add = [&](auto& stats, size_t n) {
      each(stats, block->large, [&](auto& s) { more ? s.increase(n) : s.decrease(n); });
    };
    add(stats_.allocation, 1);
    add(stats_.active, 1);
    add(stats_.allocated_bytes, block->size);
    add(stats_.active_bytes, block->size);
    add(stats_.requested_bytes, block->requested);
  }

  std::set<Block*, BestFit>& pool(bool large) { return large ? large_ : small_; }
  int64_t reserved() const { return stats_.reserved_bytes[0].current; }

  Block* cached(size_t size, c10::StreamId stream) {
    auto& blocks = pool(size > kSmall);
    Block wanted{0, stream, nullptr, size, false};
    auto found = blocks.lower_bound(&wanted);
    if (found == blocks.end() || (*found)->stream != stream) return nullptr;
    auto* block = *found;
    blocks.erase(found);
    return block;
  }

  Block* new_segment(c10::DeviceIndex index, c10::StreamId stream, size_t size) {
    const auto bytes = segment_size(size);
    const auto capacity = settings().capacity[index];
    const auto allowed = static_cast<double>(capacity) * fraction_;
    if (static_cast<double>(reserved()) + static_cast<double>(bytes) > allowed) return nullptr;
    const auto device = settings().ledger_device[index];
    if (!ledger().reserve(device, bytes, capacity)) return nullptr;
    void* memory = ::mmap(
        nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      ledger().release(device, bytes);
      return nullptr;
    }
    // A forked child cannot reach the device memory of its parent on CUDA either.
    ::madvise(memory, bytes, MADV_DONTFORK);
    auto* block = new Block{index, stream, static_cast<char*>(memory), bytes, size > kSmall};
    segments_[reinterpret_cast<uint64_t>(memory)] = block;
    each(stats_.segment, block->large, [](auto& s) { s.increase(1); });
    each(stats_.reserved_bytes, block->large, [&](auto& s) { s.increase(bytes); });
    stats_.num_device_alloc++;
    return block;
  }

  void split(Block* block, size_t size) {
    const auto rest = block->size - size;
    if (block->large ? rest <= kSmall : rest < kRound) return;
    auto* remaining =
        new Block{block->device, block->stream, block->address + size, rest, block->large};
    remaining->before = block;
    remaining->after = block->after;
    if (block->after != nullptr) block->after->before = remaining;
    block->after = remaining;
    block->size = size;
    pool(block->large).insert(remaining);
  }

  Block* joined(Block* block) {
    if (block->after != nullptr && !block->after->allocated) absorb(block, block->after, block->after);
    if (block->before != nullptr && !block->before->allocated) {
      auto* first = block->before;
      absorb(first, block, first);
      return first;
    }
    return block;
  }

  // Makes `second` part of `first`; `pooled` is the one of the two that lies in the pool.
  void absorb(Block* first, Block* second, Block* pooled) {
    pool(pooled->large).erase(pooled);
    first->size += second->size;
    first->after = second->after;
    if (second->after != nullptr) second->after->before = first;
    delete second;
  }

  void release_cached() {
    for (bool large : {false, true}) {
      auto& blocks = pool(large);
      for (auto at = blocks.begin(); at != blocks.end();) {
        auto* block = *at;
        if (block->before != nullptr || block->after != nullptr) {
          ++at;
          continue;
        }
        at = blocks.erase(at);
        segments_.erase(reinterpret_cast<uint64_t>(block->address));
        ::munmap(block->address, block->size);
        ledger().release(settings().ledger_device[block->device], block->size);
        each(stats_.segment, large, [](auto& s) { s.decrease(1); });
        each(stats_.reserved_bytes, large, [&](auto& s) { s.decrease(block->size); });
        stats_.num_device_free++;
        delete block;
      }
    }
  }

  [[noreturn]] void out_of_memory(c10::DeviceIndex index, size_t requested, size_t segment) {
    stats_.num_ooms++;
    const auto capacity = settings().capacity[index];
    const auto own = static_cast<uint64_t>(::getpid());
    uint64_t used = 0, mine = 0;
    std::string others;
    for (const auto& [pid, bytes] : ledger().holders(settings().ledger_device[index])) {
      used += bytes;
      if (pid == own) mine = bytes;
      else others += "Process " + std::to_string(pid) + " has " + words(bytes) + " memory in use. ";
    }
    const auto allocated = static_cast<uint64_t>(stats_.allocated_bytes[0].current);
    std::string allowed;
    if (fraction_ < 1.0)
      allowed = words(static_cast<uint64_t>(static_cast<double>(capacity) * fraction_)) + " allowed; ";
    TORCH_CHECK_WITH(
        OutOfMemoryError, false,
        "Emulated accelerator out of memory. Tried to allocate ", words(requested), " (a segment of ",
        words(segment), "). GPU ", static_cast<int>(index), " has a total capacity of ",
        words(capacity), " of which ", words(capacity > used ? capacity - used : 0), " is free. ",
        others, "Including non-PyTorch memory, this process has ", words(mine),
        " memory in use. ", allowed, "Of the allocated memory ", words(allocated),
        " is allocated by PyTorch, and ", words(static_cast<uint64_t>(reserved()) - allocated),
        " is reserved by PyTorch but unallocated.");
  }

  std::mutex mutex_;
  std::set<Block*, BestFit> small_, large_;
  std::map<uint64_t, Block*> segments_;  // address to first block
  Stats stats_;
};

// Never destroyed: tensors may be freed after the destructors of statics have run.
std::array<Device, kMostDevices>& devices() {
  static auto* all = new std::array<Device, kMostDevices>;
  return *all;
}

void release_block(void* context) {
  // The parent's memory is not mapped in a forked child.
  if (in_forked_child()) return;
  auto* block = static_cast<Block*>(context);
  devices()[block->device].free(block);
}

struct Allocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    const auto index = current_device();
    const c10::Device device(kDevice, index);
    check_usable(index);
    create_context(index);
    if (bytes == 0) return {nullptr, device};
    auto* block = devices()[index].allocate(index, current_stream(index).id(), bytes);
    return {block->address, block, &release_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool initialized() override { return is_used(); }
  void emptyCache(c10::MempoolId_t) override {
    for (int i = 0; i < device_count(); i++) devices()[i].empty_cache();
  }
  // Work is done by the time a call returns, so no other stream can still be at it.
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  Stats getDeviceStats(c10::DeviceIndex index) override { return devices().at(index).stats(); }
  void resetAccumulatedStats(c10::DeviceIndex index) override { devices().at(index).reset(false); }
  void resetPeakStats(c10::DeviceIndex index) override { devices().at(index).reset(true); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    check_usable(index);
    const auto capacity = settings().capacity.at(index);
    const auto used = ledger().used(settings().ledger_device[index]);
    return {used < capacity ? capacity - used : 0, capacity};
  }
};

}  // namespace

c10::DeviceAllocator* allocator() {
  static auto* one = new Allocator;
  return one;
}

std::vector<SegmentView> memory_snapshot() {
  std::vector<SegmentView> all;
  for (int i = 0; i < device_count(); i++) devices()[i].snapshot(i, all);
  return all;
}

void set_memory_fraction(c10::DeviceIndex device, double fraction) {
  devices().at(device).fraction_ = fraction;
}
double memory_fraction(c10::DeviceIndex device) { return devices().at(device).fraction_; }
void create_context(c10::DeviceIndex device) {
  mark_used();
  devices().at(device).create_context(device);
}
bool has_context(c10::DeviceIndex device) { return devices().at(device).context_; }

static c10::AllocatorRegisterer<kDevice> registered(allocator());

}  // namespace emulated
