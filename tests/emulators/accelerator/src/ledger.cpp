#include "ledger.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "ledger.h"

namespace emulated {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw std::runtime_error(
      "the emulated accelerator's ledger " + path + " could not be " + what + ": " +
      std::strerror(errno));
}

// One transaction. The file is opened anew, so that a forked child never shares the lock.
class Transaction {
 public:
  Transaction(const std::string& path, int lock, int flags = 0) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0600);
    if (fd_ < 0) fail(path_, "opened");
    while (::flock(fd_, lock) != 0) {
      if (errno != EINTR) {
        ::close(fd_);
        fail(path_, "locked");
      }
    }
  }
  ~Transaction() {
    // Closing is not enough: the mapping of the header may keep the open file alive.
    ::flock(fd_, LOCK_UN);
    ::close(fd_);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  int fd() const { return fd_; }

  std::vector<ledger_record_t> records() const {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) fail(path_, "read");
    const auto bytes = static_cast<size_t>(status.st_size);
    if (bytes <= sizeof(ledger_header_t)) return {};
    std::vector<ledger_record_t> all((bytes - sizeof(ledger_header_t)) / sizeof(ledger_record_t));
    const auto wanted = static_cast<ssize_t>(all.size() * sizeof(ledger_record_t));
    if (::pread(fd_, all.data(), wanted, sizeof(ledger_header_t)) != wanted) fail(path_, "read");
    return all;
  }

  void write(size_t slot, const ledger_record_t& record) const {
    const auto offset = sizeof(ledger_header_t) + slot * sizeof record;
    if (::pwrite(fd_, &record, sizeof record, static_cast<off_t>(offset)) != sizeof record)
      fail(path_, "written");
  }

 private:
  const std::string& path_;
  int fd_;
};

}  // namespace

void Ledger::open(const std::string& path) {
  path_ = path;
  Transaction transaction(path_, LOCK_EX, O_CREAT);
  ledger_header_t header{};
  if (::pread(transaction.fd(), &header, sizeof header, 0) != sizeof header) {
    header = {};
    header.magic = LEDGER_MAGIC;
    if (::pwrite(transaction.fd(), &header, sizeof header, 0) != sizeof header)
      fail(path_, "written");
  } else if (header.magic != LEDGER_MAGIC) {
    throw std::runtime_error(path_ + " is not a ledger of the emulated accelerator; name another");
  }
  // Asked before every operation, so it must not cost a system call.
  void* mapped = ::mmap(
      nullptr, sizeof header, PROT_READ | PROT_WRITE, MAP_SHARED, transaction.fd(), 0);
  if (mapped == MAP_FAILED) fail(path_, "mapped");
  lost_ = &static_cast<ledger_header_t*>(mapped)->lost;
  changes_ = &static_cast<ledger_header_t*>(mapped)->changes;
  for (size_t device = 0; device < place_.size(); device++) place_[device] = static_cast<int>(device);
}

void Ledger::join() {
  pid_ = static_cast<uint64_t>(::getpid());
  started_ = ledger_started(pid_);
}

void Ledger::catch_up() {
  for (;;) {
    {
      Transaction transaction(path_, LOCK_SH);
      const auto changes = *changes_;
      bool running = true;
      for (const auto& record : transaction.records()) {
        if (record.pid != pid_ || record.started != started_) continue;
        running = running && record.state == LEDGER_RUNNING;
        place_.at(record.home) = static_cast<int>(record.device);
      }
      if (running) {
        seen_ = changes;
        return;
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

bool Ledger::reserve(int home, uint64_t bytes, uint64_t capacity) {
  for (;;) {
    wait_until_running();
    Transaction transaction(path_, LOCK_EX);
    if (*changes_ != seen_) continue;  // the driver got hold of this process meanwhile
    auto all = transaction.records();
    const auto device = static_cast<uint64_t>(place_.at(home));
    const auto none = all.size();
    size_t own = none, free_slot = none;
    uint64_t used = 0;
    for (size_t slot = 0; slot < all.size(); slot++) {
      if (!ledger_counts(&all[slot])) {
        free_slot = slot;
        continue;
      }
      if (all[slot].device == device) used += all[slot].bytes;
      if (all[slot].pid == pid_ && all[slot].home == static_cast<uint64_t>(home)) own = slot;
    }
    if (used > capacity || bytes > capacity - used) return false;
    ledger_record_t record{pid_, started_, static_cast<uint64_t>(home), device, bytes,
                           LEDGER_RUNNING, 0, 0};
    if (own != none) record.bytes += all[own].bytes;
    transaction.write(own != none ? own : free_slot, record);  // none: one past the end
    return true;
  }
}

void Ledger::release(int home, uint64_t bytes) {
  for (;;) {
    wait_until_running();
    Transaction transaction(path_, LOCK_EX);
    if (*changes_ != seen_) continue;
    auto all = transaction.records();
    for (size_t slot = 0; slot < all.size(); slot++) {
      auto& record = all[slot];
      if (record.pid != pid_ || record.started != started_ ||
          record.home != static_cast<uint64_t>(home))
        continue;
      record.bytes -= std::min(record.bytes, bytes);
      transaction.write(slot, record);
    }
    return;
  }
}

std::vector<std::pair<uint64_t, uint64_t>> Ledger::holders(int home) const {
  Transaction transaction(path_, LOCK_SH);
  std::vector<std::pair<uint64_t, uint64_t>> found;
  const auto device = static_cast<uint64_t>(place_.at(home));
  for (const auto& record : transaction.records()) {
    if (record.device == device && record.state != LEDGER_CHECKPOINTED && ledger_counts(&record))
      found.emplace_back(record.pid, record.bytes);
  }
  return found;
}

uint64_t Ledger::used(int device) const {
  uint64_t sum = 0;
  for (const auto& [pid, bytes] : holders(device)) sum += bytes;
  return sum;
}

bool Ledger::lost(int home) const {
  return lost_ != nullptr && (*lost_ >> place_.at(home).load(std::memory_order_relaxed) & 1) != 0;
}

void Ledger::set_lost(int home, bool lost) {
  Transaction transaction(path_, LOCK_EX);
  const uint64_t bit = uint64_t{1} << place_.at(home);
  *lost_ = lost ? *lost_ | bit : *lost_ & ~bit;
}

void Ledger::leave() {
  if (static_cast<uint64_t>(::getpid()) != pid_ || ::access(path_.c_str(), W_OK) != 0) return;
  Transaction transaction(path_, LOCK_EX);
  auto all = transaction.records();
  for (size_t slot = 0; slot < all.size(); slot++) {
    if (all[slot].pid == pid_ && all[slot].started == started_) transaction.write(slot, {});
  }
}

}  // namespace emulated
