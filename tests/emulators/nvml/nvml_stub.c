/* A stand-in for libnvidia-ml.so.1 that the real pynvml loads.
 *
 * What the GPUs say stands in the text file that NVML_STUB_STATE names, one "key value" a line,
 * read anew by every call, so that a test can change it half way:
 *
 *   count 2                                  number of GPUs
 *   driver 580.1 / cuda 13000
 *   error.FUNCTION CODE                      FUNCTION answers CODE for all GPUs ("*": every one)
 *   gpu.0.error.FUNCTION CODE                the same for one GPU
 *   gpu.0.delay_ms.FUNCTION N                FUNCTION takes N ms longer
 *   gpu.0.uuid GPU-0 / name / total / used / reserved / load / temperature / power_mw /
 *                                            energy_mj / ...
 *   gpu.0.processes 100:4096,101:8192        pid:bytes
 *   gpu.0.xids 31,79                         every XID so far; each is told once
 *   gpu.0.mig 1                              the GPU is in MIG mode
 *   gpu.0.mig.2.uuid MIG-x / total / ...     what the slice in place 2 says, as for a GPU;
 *                                            without a uuid there is none
 *   gpu.0.mig.2.instance 5                   the GPU instance that it is part of
 *   gpu.0.mig.2.attributes 1,2,5120          its compute slices, those of its instance, MiB
 *   gpu.0.mps 100,101                        pids that use it through MPS
 *   accelerator PATH                         ledger of the emulated accelerator: what its living
 *                                            processes hold comes on top of used and processes
 *
 * Health and events are in nvml_health.c, slices in nvml_mig.c.
 *
 * A value that is not in the file is "not supported". NVML_STUB_OLD leaves out what old drivers do
 * not have.
 */
#include "nvml_stub.h"

#include <sys/file.h>

#include "../accelerator/src/ledger.h"

device_t nvml_devices[MAX_DEVICES];
int nvml_initialised;

int nvmlInitWithFlags(unsigned flags) {
  int answer;
  (void)flags;
  nvml_initialised++;
  answer = scripted(__func__, -1);
  if (answer != OK) nvml_initialised--;
  return answer;
}

int nvmlShutdown(void) {
  BEGIN(-1);
  nvml_initialised--;
  return OK;
}

const char *nvmlErrorString(int code) { return code == 28 ? "GPU Not Found" : "Stub Error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
  char text[80];
  BEGIN(-1);
  if (!look_up("driver", text, sizeof text)) return NOT_SUPPORTED;
  snprintf(out, size, "%s", text);
  return OK;
}

int nvmlSystemGetCudaDriverVersion(int *out) {
  unsigned long long value;
  BEGIN(-1);
  if (!number("cuda", &value)) return NOT_SUPPORTED;
  *out = (int)value;
  return OK;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
  unsigned long long count;
  BEGIN(-1);
  if (!number("count", &count)) return NOT_SUPPORTED;
  *out = (unsigned)count;
  return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **out) {
  BEGIN((int)index);
  if (index >= MAX_GPUS) return INVALID_ARGUMENT;
  nvml_devices[index].index = (int)index;
  *out = &nvml_devices[index];
  return OK;
}

int nvmlDeviceGetUUID(device_t *gpu, char *out, unsigned size) {
  char text[96];
  BEGIN(gpu->index);
  if (!of_gpu(gpu->index, "uuid", text, sizeof text)) return NOT_SUPPORTED;
  snprintf(out, size, "%s", text);
  return OK;
}

int nvmlDeviceGetName(device_t *gpu, char *out, unsigned size) {
  char text[96];
  BEGIN(gpu->index);
  if (!of_gpu(gpu->index, "name", text, sizeof text)) return NOT_SUPPORTED;
  snprintf(out, size, "%s", text);
  return OK;
}

/* Finds the next living process that holds memory of an emulated device. */
static int next_holder(FILE *ledger, int gpu, ledger_record_t *out) {
  while (ledger && fread(out, sizeof *out, 1, ledger) == 1)
    if (out->device == (uint64_t)gpu && out->state != LEDGER_CHECKPOINTED && ledger_counts(out))
      return 1;
  return 0;
}

static FILE *open_ledger(void) {
  char path[512];
  ledger_header_t header;
  FILE *file = look_up("accelerator", path, sizeof path) ? fopen(path, "re") : NULL;
  /* Two records that were not true at the same time would make a wrong sum. */
  if (file) flock(fileno(file), LOCK_SH);
  if (file && (fread(&header, sizeof header, 1, file) != 1 || header.magic != LEDGER_MAGIC)) {
    fclose(file);
    file = NULL;
  }
  return file;
}

static int used_bytes(int gpu, unsigned long long *out) {
  ledger_record_t record;
  FILE *ledger;
  if (!number_of(gpu, "used", out)) return 0;
  ledger = open_ledger();
  while (next_holder(ledger, gpu, &record)) *out += record.bytes;
  if (ledger) fclose(ledger);
  return 1;
}

int nvmlDeviceGetMemoryInfo(device_t *gpu, memory_t *out) {
  BEGIN(gpu->index);
  if (!number_of(gpu->index, "total", &out->total)) return NOT_SUPPORTED;
  if (!used_bytes(gpu->index, &out->used)) return NOT_SUPPORTED;
  out->free = out->total - out->used;
  return OK;
}

int nvmlDeviceGetUtilizationRates(device_t *gpu, utilization_t *out) {
  BEGIN(gpu->index);
  out->memory = 0;
  return give(gpu->index, "load", &out->gpu);
}

int nvmlDeviceGetTemperature(device_t *gpu, unsigned sensor, unsigned *out) {
  (void)sensor;
  BEGIN(gpu->index);
  return give(gpu->index, "temperature", out);
}

int nvmlDeviceGetTemperatureThreshold(device_t *gpu, unsigned kind, unsigned *out) {
  BEGIN(gpu->index);
  return kind == 1 ? give(gpu->index, "temperature_limit", out) : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(device_t *gpu, unsigned *out) {
  BEGIN(gpu->index);
  return give(gpu->index, "power_mw", out);
}

int nvmlDeviceGetTotalEnergyConsumption(device_t *gpu, unsigned long long *out) {
  BEGIN(gpu->index);
  return number_of(gpu->index, "energy_mj", out) ? OK : NOT_SUPPORTED;
}

/* Reads "pid:bytes,pid:bytes"; adds to count, and to out as far as there is room. */
static void list_processes(char *text, unsigned room, unsigned *count, process_t *out) {
  char *entry;
  while ((entry = strsep(&text, ","))) {
    char *bytes = strchr(entry, ':');
    if (!*entry) continue;
    if (out && *count < room) {
      memset(&out[*count], 0, sizeof *out);
      out[*count].pid = (unsigned)strtoul(entry, NULL, 10);
      /* "?" is memory that the driver does not tell. */
      if (bytes) out[*count].used = bytes[1] == '?' ? UINT64_MAX : strtoull(bytes + 1, NULL, 10);
    }
    ++*count;
  }
}

static int processes(device_t *gpu, unsigned *count, process_t *out) {
  char text[512];
  ledger_record_t record;
  FILE *ledger;
  unsigned room = *count;
  if (!of_gpu(gpu->index, "processes", text, sizeof text)) return NOT_SUPPORTED;
  *count = 0;
  list_processes(text, room, count, out);
  ledger = open_ledger();
  while (next_holder(ledger, gpu->index, &record)) {
    if (out && *count < room) {
      memset(&out[*count], 0, sizeof *out);
      out[*count].pid = (unsigned)record.pid;
      out[*count].used = record.bytes;
    }
    ++*count;
  }
  if (ledger) fclose(ledger);
  if (*count == 0) return OK;
  return out && *count <= room ? OK : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device_t *gpu, unsigned *count, process_t *out) {
  BEGIN(gpu->index);
  return processes(gpu, count, out);
}

#ifndef NVML_STUB_OLD

int nvmlDeviceGetMemoryInfo_v2(device_t *gpu, memory_v2_t *out) {
  BEGIN(gpu->index);
  if (!number_of(gpu->index, "total", &out->total)) return NOT_SUPPORTED;
  if (!used_bytes(gpu->index, &out->used)) return NOT_SUPPORTED;
  if (!number_of(gpu->index, "reserved", &out->reserved)) out->reserved = 0;
  out->free = out->total - out->reserved - out->used;
  return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *gpu, unsigned *count, process_t *out) {
  BEGIN(gpu->index);
  return processes(gpu, count, out);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t *gpu, unsigned *count, process_t *out) {
  char text[512];
  unsigned room = *count;
  BEGIN(gpu->index);
  *count = 0;
  if (of_gpu(gpu->index, "mps", text, sizeof text)) list_processes(text, room, count, out);
  return *count == 0 || (out && *count <= room) ? OK : INSUFFICIENT_SIZE;
}

#endif
