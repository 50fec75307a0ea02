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
 *   gpu.0.uuid GPU-0 / name / total / used / reserved / load / temperature / power_mw / ...
 *   gpu.0.processes 100:4096,101:8192        pid:bytes
 *   gpu.0.xids 31,79                         every XID so far; each is told once
 *   accelerator PATH                         ledger of the emulated accelerator: what its living
 *                                            processes hold comes on top of used and processes
 *
 * A value that is not in the file is "not supported". NVML_STUB_OLD leaves out what old drivers do
 * not have.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../accelerator/src/ledger.h"

enum {
  OK = 0,
  UNINITIALIZED = 1,
  NOT_SUPPORTED = 3,
  INSUFFICIENT_SIZE = 7,
  TIMEOUT = 10,
  INVALID_ARGUMENT = 2,
};
#define MAX_GPUS 16
#define XID_EVENT 8ULL

typedef struct { int index; } device_t;
typedef struct { int index; } event_set_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
} process_t;
typedef struct {
  device_t *device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
} event_t;
typedef struct {
  uint32_t field, scope;
  int64_t timestamp, latency;
  int type, result;
  union { double d; unsigned ui; unsigned long long ull; } value;
} field_t;
typedef struct { unsigned version; int margin; } margin_t;

static device_t devices[MAX_GPUS];
static int xids_told[MAX_GPUS];
static int sets_open, initialised;

static int look_up(const char *key, char *out, size_t size) {
  const char *path = getenv("NVML_STUB_STATE");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[1024];
  int found = 0;
  size_t length = strlen(key);
  if (!file) return 0;
  while (!found && fgets(line, sizeof line, file)) {
    if (strncmp(line, key, length) == 0 && line[length] == ' ') {
      line[strcspn(line, "\n")] = 0;
      snprintf(out, size, "%s", line + length + 1);
      found = 1;
    }
  }
  fclose(file);
  return found;
}

static int number(const char *key, unsigned long long *out) {
  char text[256];
  if (!look_up(key, text, sizeof text)) return 0;
  *out = strtoull(text, NULL, 10);
  return 1;
}

static int of_gpu(int gpu, const char *name, char *out, size_t size) {
  char key[160];
  snprintf(key, sizeof key, "gpu.%d.%s", gpu, name);
  return look_up(key, out, size);
}

static int number_of(int gpu, const char *name, unsigned long long *out) {
  char key[160];
  snprintf(key, sizeof key, "gpu.%d.%s", gpu, name);
  return number(key, out);
}

/* What a call answers before it does anything: the scripted error, after the scripted delay. */
static int scripted(const char *function, int gpu) {
  char key[160];
  unsigned long long code = 0, delay = 0;
  if (gpu >= 0) {
    snprintf(key, sizeof key, "gpu.%d.delay_ms.%s", gpu, function);
    if (number(key, &delay)) {
      struct timespec pause = {(time_t)(delay / 1000), (long)(delay % 1000) * 1000000};
      nanosleep(&pause, NULL);
    }
    snprintf(key, sizeof key, "gpu.%d.error.%s", gpu, function);
    if (number(key, &code)) return (int)code;
    snprintf(key, sizeof key, "gpu.%d.error.*", gpu);
    if (number(key, &code)) return (int)code;
  }
  snprintf(key, sizeof key, "error.%s", function);
  if (number(key, &code)) return (int)code;
  if (number("error.*", &code)) return (int)code;
  return initialised ? OK : UNINITIALIZED;
}

#define BEGIN(gpu)                          \
  do {                                      \
    int answer = scripted(__func__, (gpu)); \
    if (answer != OK) return answer;        \
  } while (0)

static int give(int gpu, const char *name, unsigned *out) {
  unsigned long long value;
  if (!number_of(gpu, name, &value)) return NOT_SUPPORTED;
  *out = (unsigned)value;
  return OK;
}

int nvmlInitWithFlags(unsigned flags) {
  int answer;
  (void)flags;
  initialised++;
  answer = scripted(__func__, -1);
  if (answer != OK) initialised--;
  return answer;
}

int nvmlShutdown(void) {
  BEGIN(-1);
  initialised--;
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
  devices[index].index = (int)index;
  *out = &devices[index];
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
    if (out->device == (uint64_t)gpu && ledger_counts(out)) return 1;
  return 0;
}

static FILE *open_ledger(void) {
  char path[512];
  ledger_header_t header;
  FILE *file = look_up("accelerator", path, sizeof path) ? fopen(path, "re") : NULL;
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

static int processes(device_t *gpu, unsigned *count, process_t *out) {
  char text[512], *rest = text, *entry;
  ledger_record_t record;
  FILE *ledger;
  unsigned room = *count;
  if (!of_gpu(gpu->index, "processes", text, sizeof text)) return NOT_SUPPORTED;
  *count = 0;
  while ((entry = strsep(&rest, ","))) {
    char *bytes = strchr(entry, ':');
    if (!bytes) continue;
    if (out && *count < room) {
      memset(&out[*count], 0, sizeof *out);
      out[*count].pid = (unsigned)strtoul(entry, NULL, 10);
      /* "?" is memory that the driver does not tell. */
      out[*count].used = bytes[1] == '?' ? UINT64_MAX : strtoull(bytes + 1, NULL, 10);
    }
    ++*count;
  }
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

int nvmlDeviceGetTotalEccErrors(device_t *gpu, unsigned kind, unsigned counter,
                                unsigned long long *out) {
  BEGIN(gpu->index);
  if (counter != 0) return NOT_SUPPORTED;
  return number_of(gpu->index, kind == 1 ? "ecc_uncorrected" : "ecc_corrected", out)
             ? OK
             : NOT_SUPPORTED;
}

int nvmlDeviceGetRemappedRows(device_t *gpu, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
  char text[80];
  BEGIN(gpu->index);
  if (!of_gpu(gpu->index, "remapped", text, sizeof text)) return NOT_SUPPORTED;
  if (sscanf(text, "%u,%u,%u,%u", corrected, uncorrected, pending, failed) != 4)
    return INVALID_ARGUMENT;
  return OK;
}

int nvmlDeviceGetRetiredPages_v2(device_t *gpu, unsigned cause, unsigned *count,
                                 unsigned long long *pages, unsigned long long *times) {
  unsigned long long have;
  unsigned i;
  BEGIN(gpu->index);
  if (!number_of(gpu->index, cause == 1 ? "retired_double" : "retired_single", &have))
    return NOT_SUPPORTED;
  if (pages)
    for (i = 0; i < have && i < *count; i++) pages[i] = times[i] = i;
  *count = (unsigned)have;
  return pages || have == 0 ? OK : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetRetiredPagesPendingStatus(device_t *gpu, unsigned *out) {
  BEGIN(gpu->index);
  return give(gpu->index, "retired_pending", out);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *gpu, unsigned long long *out) {
  BEGIN(gpu->index);
  return number_of(gpu->index, "reasons", out) ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetFieldValues(device_t *gpu, int count, field_t *values) {
  int i;
  BEGIN(gpu->index);
  for (i = 0; i < count; i++) {
    unsigned long long action;
    values[i].result = NOT_SUPPORTED;
    if (values[i].field == 230 && number_of(gpu->index, "recovery_action", &action)) {
      values[i].value.ui = (unsigned)action;
      values[i].result = OK;
    }
  }
  return OK;
}

int nvmlDeviceGetPcieReplayCounter(device_t *gpu, unsigned *out) {
  BEGIN(gpu->index);
  return give(gpu->index, "pcie_replays", out);
}

int nvmlDeviceGetSupportedEventTypes(device_t *gpu, unsigned long long *out) {
  char text[512];
  BEGIN(gpu->index);
  *out = of_gpu(gpu->index, "xids", text, sizeof text) ? XID_EVENT : 0;
  return OK;
}

int nvmlEventSetCreate(event_set_t **out) {
  BEGIN(-1);
  /* A leak of sets would end here. */
  if (sets_open >= MAX_GPUS) return INVALID_ARGUMENT;
  *out = malloc(sizeof **out);
  if (!*out) return INVALID_ARGUMENT;
  sets_open++;
  (*out)->index = -1;
  return OK;
}

int nvmlDeviceRegisterEvents(device_t *gpu, unsigned long long types, event_set_t *set) {
  BEGIN(gpu->index);
  if (types != XID_EVENT) return NOT_SUPPORTED;
  set->index = gpu->index;
  return OK;
}

int nvmlEventSetWait_v2(event_set_t *set, event_t *out, unsigned timeout_ms) {
  char text[512], *rest = text, *entry;
  int position = 0;
  (void)timeout_ms;
  if (set->index < 0) return INVALID_ARGUMENT;
  BEGIN(set->index);
  if (!of_gpu(set->index, "xids", text, sizeof text)) return TIMEOUT;
  while ((entry = strsep(&rest, ","))) {
    if (!*entry || position++ < xids_told[set->index]) continue;
    xids_told[set->index]++;
    memset(out, 0, sizeof *out);
    out->device = &devices[set->index];
    out->type = XID_EVENT;
    out->data = strtoull(entry, NULL, 10);
    return OK;
  }
  return TIMEOUT;
}

int nvmlEventSetFree(event_set_t *set) {
  BEGIN(-1);
  free(set);
  sets_open--;
  return OK;
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

int nvmlDeviceGetCurrentClocksEventReasons(device_t *gpu, unsigned long long *out) {
  BEGIN(gpu->index);
  return number_of(gpu->index, "reasons", out) ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMarginTemperature(device_t *gpu, margin_t *out) {
  unsigned margin;
  int answer;
  BEGIN(gpu->index);
  answer = give(gpu->index, "temperature_margin", &margin);
  if (answer == OK) out->margin = (int)margin;
  return answer;
}

#endif
