/* The GPUs of the stub NVML, as the stub of the driver sees and changes them. */
#include <stdint.h>

#include "tables.h"

#define MAX_GPUS 16
typedef struct { unsigned char bytes[16]; } uuid_t;
typedef struct { uuid_t from, to; } pair_t;
typedef struct { pair_t *pairs; unsigned count; char reserved[52]; } restore_args_t;

static char *of_gpu(int gpu, const char *name) {
  char key[96];
  snprintf(key, sizeof key, "gpu.%d.%s", gpu, name);
  return look_up(&nvml, key);
}

static void set_gpu(int gpu, const char *name, const char *value) {
  char key[96];
  snprintf(key, sizeof key, "gpu.%d.%s", gpu, name);
  put(&nvml, key, value);
}

static void add_used(int gpu, long long bytes) {
  char text[32];
  const char *used = of_gpu(gpu, "used");
  snprintf(text, sizeof text, "%lld", (used ? strtoll(used, NULL, 10) : 0) + bytes);
  set_gpu(gpu, "used", text);
}

static void take_off(int gpu, int pid, long long bytes) {
  char list[512], kept[512] = "", *rest = list, *entry;
  const char *listed = of_gpu(gpu, "processes");
  snprintf(list, sizeof list, "%s", listed ? listed : "");
  while ((entry = strsep(&rest, ","))) {
    if (!*entry || strtol(entry, NULL, 10) == pid) continue;
    if (*kept) strcat(kept, ",");
    strcat(kept, entry);
  }
  set_gpu(gpu, "processes", kept);
  add_used(gpu, -bytes);
}

static void put_on(int gpu, int pid, long long bytes) {
  char list[512];
  const char *listed = of_gpu(gpu, "processes");
  snprintf(list, sizeof list, "%.400s%s%d:%lld", listed ? listed : "",
           listed && *listed ? "," : "", pid, bytes);
  set_gpu(gpu, "processes", list);
  add_used(gpu, bytes);
}

static int uuid_of(int gpu, uuid_t *out) {
  const char *text = of_gpu(gpu, "uuid");
  int digits = 0;
  memset(out, 0, sizeof *out);
  if (!text || strncmp(text, "GPU-", 4)) return 0;
  for (text += 4; *text && digits < 32; text++) {
    unsigned value;
    char digit[2] = {*text, 0};
    if (*text == '-') continue;
    if (sscanf(digit, "%x", &value) != 1) return 0;
    out->bytes[digits / 2] |= (unsigned char)(digits % 2 ? value : value << 4);
    digits++;
  }
  return digits == 32;
}

static int gpu_with(const uuid_t *wanted) {
  int gpu, count = (int)number(&nvml, "count", 0);
  uuid_t uuid;
  for (gpu = 0; gpu < count; gpu++)
    if (uuid_of(gpu, &uuid) && memcmp(&uuid, wanted, sizeof uuid) == 0) return gpu;
  return -1;
}

/* The GPU to restore `from` on: the map has to name every GPU, and one of the same chip. */
static int target(const restore_args_t *args, int from) {
  int gpu, count = (int)number(&nvml, "count", 0), to = -1;
  unsigned i;
  /* A lost GPU is past the count, and its number is still known. */
  for (gpu = 0; gpu < count || gpu <= from; gpu++) {
    uuid_t uuid;
    int found = 0;
    if (gpu >= count && gpu != from) continue;
    uuid_of(gpu, &uuid);
    for (i = 0; i < args->count; i++) {
      if (memcmp(&args->pairs[i].from, &uuid, sizeof uuid)) continue;
      found = 1;
      if (gpu == from) to = gpu_with(&args->pairs[i].to);
    }
    if (!found) return -1;
  }
  if (to < 0 || !of_gpu(to, "name") || strcmp(of_gpu(to, "name"), of_gpu(from, "name"))) return -1;
  return to;
}
