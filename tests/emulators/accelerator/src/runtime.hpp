// The devices of this process: how many, how large, which one is current, and on which stream.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ledger.hpp"

namespace emulated {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
constexpr int kMostDevices = 16;

struct Settings {
  std::string ledger;
  std::vector<int> ledger_device;      // number of each visible device in the ledger
  std::vector<uint64_t> capacity;      // bytes of each visible device
  uint64_t context_bytes = 0;          // what a process takes of a device before its first tensor
  bool poison = false;                 // overwrite freed blocks
};

void configure(Settings settings);
const Settings& settings();
Ledger& ledger();
int device_count();

c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex device);
c10::Stream current_stream(c10::DeviceIndex device);

// Waits while the driver holds this process. Throws what torch throws where a process that has
// used the accelerator was forked, or where the device is lost.
void check_usable(c10::DeviceIndex device);
bool in_forked_child();
void mark_used();
bool is_used();

}  // namespace emulated
