/* MIG slices of the stub NVML library; nvml_stub.c says where they come from. */
#include "nvml_stub.h"

#ifndef NVML_STUB_OLD

typedef struct {
  unsigned multiprocessors, shared_copy, shared_decoder, shared_encoder, shared_jpeg, shared_ofa;
  unsigned gpu_slices, compute_slices;
  unsigned long long memory_mib;
} attributes_t;

int nvmlDeviceGetMigMode(device_t *gpu, unsigned *now, unsigned *next) {
  int answer;
  BEGIN(gpu->index);
  answer = give(gpu->index, "mig", now);
  *next = *now;
  return answer;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *gpu, unsigned *out) {
  BEGIN(gpu->index);
  *out = MAX_SLICES;
  return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *gpu, unsigned index, device_t **out) {
  char uuid[96];
  unsigned mode = 0;
  int slice;
  BEGIN(gpu->index);
  if (index >= MAX_SLICES || gpu->index >= MAX_GPUS) return INVALID_ARGUMENT;
  if (give(gpu->index, "mig", &mode) != OK || !mode) return NOT_SUPPORTED;
  slice = gpu->index + MAX_GPUS * ((int)index + 1);
  BEGIN(slice);
  if (!of_gpu(slice, "uuid", uuid, sizeof uuid)) return NOT_FOUND;
  nvml_devices[slice].index = slice;
  *out = &nvml_devices[slice];
  return OK;
}

int nvmlDeviceGetGpuInstanceId(device_t *slice, unsigned *out) {
  BEGIN(slice->index);
  return give(slice->index, "instance", out);
}

int nvmlDeviceGetAttributes_v2(device_t *slice, attributes_t *out) {
  char text[80];
  BEGIN(slice->index);
  if (!of_gpu(slice->index, "attributes", text, sizeof text)) return NOT_SUPPORTED;
  memset(out, 0, sizeof *out);
  return sscanf(text, "%u,%u,%llu", &out->compute_slices, &out->gpu_slices, &out->memory_mib) == 3
             ? OK
             : INVALID_ARGUMENT;
}

#endif
