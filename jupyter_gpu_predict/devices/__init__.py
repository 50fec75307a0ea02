"""GPUs: NVML and simulated, behind `control.ports.DeviceBackend`."""
