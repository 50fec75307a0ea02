/* What the checkpoint's gate asks NVML beyond tests/emulators/nvml/nvml_stub.c; linked with it.
 *
 *   gpu.0.mig 1                  the GPU is cut into MIG slices
 *   gpu.0.mps 100,101            pids that use it through MPS
 *
 * Weak, so that the stub's own take their place should it have them one day.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
typedef struct { int index; } device_t;
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
} process_t;

static int look_up(int gpu, const char *name, char *out, size_t size) {
  const char *path = getenv("NVML_STUB_STATE");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[1024], key[96];
  int found = 0;
  snprintf(key, sizeof key, "gpu.%d.%s ", gpu, name);
  while (file && !found && fgets(line, sizeof line, file)) {
    if (strncmp(line, key, strlen(key))) continue;
    line[strcspn(line, "\n")] = 0;
    snprintf(out, size, "%s", line + strlen(key));
    found = 1;
  }
  if (file) fclose(file);
  return found;
}

__attribute__((weak)) int nvmlDeviceGetMigMode(device_t *gpu, unsigned *now, unsigned *next) {
  char text[16];
  if (!look_up(gpu->index, "mig", text, sizeof text)) return NOT_SUPPORTED;
  *now = *next = (unsigned)atoi(text);
  return OK;
}

__attribute__((weak)) int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t *gpu,
                                                                      unsigned *count,
                                                                      process_t *out) {
  char text[256], *rest = text, *entry;
  unsigned room = *count;
  *count = 0;
  if (!look_up(gpu->index, "mps", text, sizeof text)) return OK;
  while ((entry = strsep(&rest, ","))) {
    if (out && *count < room) {
      memset(&out[*count], 0, sizeof *out);
      out[*count].pid = (unsigned)atoi(entry);
    }
    ++*count;
  }
  return out && *count <= room ? OK : INSUFFICIENT_SIZE;
}
