// The accelerator's side of the ledger: memory is taken and given back here.
#pragma once

#include <atomic>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace emulated {

class Ledger {
 public:
  // Opens the file and makes it when it is not there. Throws std::runtime_error.
  void open(const std::string& path);

  // From now on this process may hold memory. A child forked before that is a process of its own.
  void join();

  // Waits while the driver holds this process locked or checkpointed.
  void wait_until_running() {
    if (changes_ != nullptr && *changes_ != seen_.load(std::memory_order_relaxed)) catch_up();
  }

  // Adds bytes to what this process holds of a device unless all together would exceed capacity.
  bool reserve(int device, uint64_t bytes, uint64_t capacity);
  void release(int device, uint64_t bytes);

  // Bytes of each living process that holds something of the device. Devices are those that this
  // process names.
  std::vector<std::pair<uint64_t, uint64_t>> holders(int device) const;
  uint64_t used(int device) const;

  bool lost(int device) const;
  void set_lost(int device, bool lost);

  // Takes out this process's records.
  void leave();

 private:
  void catch_up();

  std::string path_;
  uint64_t pid_ = 0;
  uint64_t started_ = 0;
  volatile uint64_t* lost_ = nullptr;
  volatile uint64_t* changes_ = nullptr;
  std::atomic<uint64_t> seen_{0};
  // Where each device that this process names is now; the driver may have moved it.
  std::array<std::atomic<int>, 16> place_{};
};

}  // namespace emulated
