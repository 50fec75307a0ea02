#include "runtime.hpp"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>

#include "allocator.hpp"
#include "generator.hpp"
#include "pinned.hpp"

namespace emulated {
namespace {

Settings the_settings;
std::atomic<bool> used{false}, forked{false};
thread_local c10::DeviceIndex the_device = 0;
thread_local std::array<c10::StreamId, kMostDevices> the_streams{};

constexpr int kStreamsInPool = 32;
std::atomic<uint64_t> next_in_pool{0};
std::atomic<c10::StreamId> next_stream{2 * kStreamsInPool + 1};

// Work is done by the time a call returns; an event only has to remember when.
struct Event {
  std::chrono::steady_clock::time_point at;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before(kDevice, the_device);
    if (device.index() >= 0) set_current_device(device.index());
    return before;
  }
  c10::Device getDevice() const override { return {kDevice, the_device}; }
  void setDevice(c10::Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) the_device = device.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(device_count());
  }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return {}; }

  c10::Stream getStream(c10::Device device) const override {
    return current_stream(device.has_index() ? device.index() : the_device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool urgent) const override {
    const auto turn = static_cast<c10::StreamId>(next_in_pool++ % kStreamsInPool);
    return c10::Stream(c10::Stream::UNSAFE, device, 1 + turn + (urgent ? kStreamsInPool : 0));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    const auto index = device.has_index() ? device.index() : the_device;
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kDevice, index), next_stream++);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto& current = the_streams.at(stream.device_index());
    const c10::Stream before(c10::Stream::UNSAFE, stream.device(), current);
    current = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(stream.id());
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& stream) const override {
    check_usable(stream.device_index());
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override {
    check_usable(device < 0 ? the_device : device);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    check_usable(stream.device_index());
    if (*event == nullptr) *event = new Event;
    static_cast<Event*>(*event)->at = std::chrono::steady_clock::now();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {
    TORCH_CHECK(from != nullptr && to != nullptr,
                "Both events must be recorded before calculating elapsed time.");
    return std::chrono::duration<double, std::milli>(static_cast<Event*>(to)->at -
                                                     static_cast<Event*>(from)->at)
        .count();
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex device) const override { return has_context(device); }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(device_count());
  }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_current_device(device); }
  c10::DeviceIndex getCurrentDevice() const override { return the_device; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    const auto before = the_device;
    if (device >= 0) set_current_device(device);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return exchangeDevice(device);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return make_generator(device);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Device getDeviceFromPtr(void* data) const override {
    const auto address = reinterpret_cast<uint64_t>(data);
    for (const auto& segment : memory_snapshot()) {
      if (address >= segment.address && address < segment.address + segment.total)
        return {kDevice, static_cast<c10::DeviceIndex>(segment.device)};
    }
    TORCH_CHECK(false, "The specified pointer resides on host memory.");
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto* impl = storage.unsafeGetStorageImpl();
    TORCH_CHECK(impl->resizable(), "Trying to resize storage that is not resizable");
    check_usable(storage.device().index());
    auto fresh = allocator()->allocate(bytes);
    const auto kept = std::min(bytes, storage.nbytes());
    if (kept > 0) std::memcpy(fresh.get(), storage.data(), kept);
    impl->set_data_ptr_noswap(std::move(fresh));
    impl->set_nbytes(bytes);
  }
};

}  // namespace

void configure(Settings settings) {
  TORCH_CHECK(!is_used(), "the emulated accelerator is in use; configure it before its first use");
  TORCH_CHECK(settings.capacity.size() <= kMostDevices, "at most ", kMostDevices, " devices");
  the_settings = std::move(settings);
  ledger().open(the_settings.ledger);
  static Hooks* hooks = nullptr;
  if (hooks != nullptr) return;
  hooks = new Hooks;
  at::RegisterPrivateUse1HooksInterface(hooks);
  ::pthread_atfork(nullptr, nullptr, [] { forked = used.load(); });
  std::atexit([] { ledger().leave(); });
}

const Settings& settings() { return the_settings; }
Ledger& ledger() {
  static auto* one = new Ledger;
  return *one;
}
int device_count() { return static_cast<int>(the_settings.capacity.size()); }

c10::DeviceIndex current_device() { return the_device; }
void set_current_device(c10::DeviceIndex device) {
  TORCH_CHECK(device >= 0 && device < device_count(), "invalid device ordinal ", int(device),
              "; there are ", device_count(), " emulated devices");
  the_device = device;
}
c10::Stream current_stream(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kDevice, device), the_streams.at(device));
}

void check_usable(c10::DeviceIndex device) {
  TORCH_CHECK(!in_forked_child(),
              "Cannot re-initialize the emulated accelerator in forked subprocess. To use it with "
              "multiprocessing, you must use the 'spawn' start method");
  TORCH_CHECK(device < device_count(), "invalid device ordinal ", int(device), "; there are ",
              device_count(), " emulated devices");
  ledger().wait_until_running();
  if (ledger().lost(the_settings.ledger_device[device]))
    throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 46,
                                "Emulated accelerator error: device " + std::to_string(device) +
                                    " is lost (it has fallen off the bus)");
}
bool in_forked_child() { return forked; }
void mark_used() {
  static std::once_flag once;
  std::call_once(once, [] {
    ledger().join();
    used = true;
  });
}
bool is_used() { return used; }

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace emulated
