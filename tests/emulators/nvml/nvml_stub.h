/* What the parts of the stub NVML library share: its types, and what its state file says. */
#ifndef NVML_STUB_H
#define NVML_STUB_H

#include <stdint.h>
#include <time.h>

#include "../state_file.h"

enum {
  OK = 0,
  UNINITIALIZED = 1,
  NOT_SUPPORTED = 3,
  NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7,
  TIMEOUT = 10,
  INVALID_ARGUMENT = 2,
};
#define MAX_GPUS 16
#define MAX_SLICES 8
#define MAX_DEVICES (MAX_GPUS * (1 + MAX_SLICES))
#define XID_EVENT 8ULL

/* Slice S of GPU G is device G + MAX_GPUS * (S + 1). */
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

extern device_t nvml_devices[MAX_DEVICES];
extern int nvml_initialised;

static inline int look_up(const char *key, char *out, size_t size) {
  return state_find("NVML_STUB_STATE", key, out, size);
}

static inline int number(const char *key, unsigned long long *out) {
  char text[256];
  if (!look_up(key, text, sizeof text)) return 0;
  *out = strtoull(text, NULL, 10);
  return 1;
}

/* The key of something that a GPU, or a slice of one, says. */
static inline void key_of(int gpu, const char *kind, const char *name, char *out, size_t size) {
  if (gpu < MAX_GPUS)
    snprintf(out, size, "gpu.%d.%s%s", gpu, kind, name);
  else
    snprintf(out, size, "gpu.%d.mig.%d.%s%s", gpu % MAX_GPUS, gpu / MAX_GPUS - 1, kind, name);
}

static inline int of_gpu(int gpu, const char *name, char *out, size_t size) {
  char key[160];
  key_of(gpu, "", name, key, sizeof key);
  return look_up(key, out, size);
}

static inline int number_of(int gpu, const char *name, unsigned long long *out) {
  char key[160];
  key_of(gpu, "", name, key, sizeof key);
  return number(key, out);
}

/* What a call answers before it does anything: the scripted error, after the scripted delay. */
static inline int scripted(const char *function, int gpu) {
  char key[160];
  unsigned long long code = 0, delay = 0;
  if (gpu >= 0) {
    key_of(gpu, "delay_ms.", function, key, sizeof key);
    if (number(key, &delay)) {
      struct timespec pause = {(time_t)(delay / 1000), (long)(delay % 1000) * 1000000};
      nanosleep(&pause, NULL);
    }
    key_of(gpu, "error.", function, key, sizeof key);
    if (number(key, &code)) return (int)code;
    key_of(gpu, "error.", "*", key, sizeof key);
    if (number(key, &code)) return (int)code;
  }
  snprintf(key, sizeof key, "error.%s", function);
  if (number(key, &code)) return (int)code;
  if (number("error.*", &code)) return (int)code;
  return nvml_initialised ? OK : UNINITIALIZED;
}

#define BEGIN(gpu)                          \
  do {                                      \
    int answer = scripted(__func__, (gpu)); \
    if (answer != OK) return answer;        \
  } while (0)

static inline int give(int gpu, const char *name, unsigned *out) {
  unsigned long long value;
  if (!number_of(gpu, name, &value)) return NOT_SUPPORTED;
  *out = (unsigned)value;
  return OK;
}

#endif
