// Device memory: segments of mapped host memory, cut into cached blocks as CUDA's allocator does.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>
#include <vector>

namespace emulated {

struct BlockView {
  uint64_t address, size, requested;
  bool allocated;
};

struct SegmentView {
  int device;
  uint64_t address, total, stream;
  bool large;
  std::vector<BlockView> blocks;
};

c10::DeviceAllocator* allocator();
std::vector<SegmentView> memory_snapshot();
void set_memory_fraction(c10::DeviceIndex device, double fraction);
double memory_fraction(c10::DeviceIndex device);
void create_context(c10::DeviceIndex device);
bool has_context(c10::DeviceIndex device);

}  // namespace emulated
