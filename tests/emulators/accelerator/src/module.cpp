// What Python calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Generator.h>

#include "allocator.hpp"
#include "generator.hpp"
#include "runtime.hpp"

namespace py = pybind11;

namespace {

py::list snapshot() {
  py::list segments;
  for (const auto& segment : emulated::memory_snapshot()) {
    uint64_t allocated = 0, requested = 0;
    py::list blocks;
    auto address = segment.address;
    for (const auto& block : segment.blocks) {
      if (block.allocated) allocated += block.size;
      requested += block.requested;
      py::dict entry;
      entry["address"] = address;
      entry["size"] = block.size;
      entry["requested_size"] = block.requested;
      entry["state"] = block.allocated ? "active_allocated" : "inactive";
      entry["frames"] = py::list();
      blocks.append(entry);
      address += block.size;
    }
    py::dict entry;
    entry["device"] = segment.device;
    entry["address"] = segment.address;
    entry["total_size"] = segment.total;
    entry["allocated_size"] = allocated;
    entry["active_size"] = allocated;
    entry["requested_size"] = requested;
    entry["stream"] = segment.stream;
    entry["segment_type"] = segment.large ? "large" : "small";
    entry["segment_pool_id"] = py::make_tuple(0, 0);
    entry["is_expandable"] = false;
    entry["frames"] = py::list();
    entry["blocks"] = blocks;
    segments.append(entry);
  }
  return segments;
}

}  // namespace

PYBIND11_MODULE(emulated_accelerator_native, m) {
  m.def("configure",
        [](std::string ledger, std::vector<int> ledger_device, std::vector<uint64_t> capacity,
           uint64_t context_bytes, bool poison) {
          emulated::configure({std::move(ledger), std::move(ledger_device), std::move(capacity),
                               context_bytes, poison});
        });
  m.def("memory_snapshot", &snapshot);
  m.def("set_memory_fraction", [](int device, double fraction) {
    emulated::set_memory_fraction(static_cast<c10::DeviceIndex>(device), fraction);
  });
  m.def("memory_fraction", [](int device) {
    return emulated::memory_fraction(static_cast<c10::DeviceIndex>(device));
  });
  m.def("create_context", [](int device) {
    py::gil_scoped_release no_gil;  // it may have to wait for the driver
    emulated::check_usable(static_cast<c10::DeviceIndex>(device));
    emulated::create_context(static_cast<c10::DeviceIndex>(device));
  });
  m.def("has_context", [](int device) {
    return emulated::has_context(static_cast<c10::DeviceIndex>(device));
  });
  m.def("default_generator", [](int device) {
    return py::reinterpret_steal<py::object>(
        THPGenerator_Wrap(emulated::default_generator(static_cast<c10::DeviceIndex>(device))));
  });
  m.def("device_count", &emulated::device_count);
  m.def("is_used", &emulated::is_used);
  m.def("in_forked_child", &emulated::in_forked_child);
  m.def("holders", [](int device) {
    return emulated::ledger().holders(emulated::settings().ledger_device.at(device));
  });
  m.def("set_lost", [](int device, bool lost) {
    emulated::ledger().set_lost(emulated::settings().ledger_device.at(device), lost);
  });
}
