/* A stand-in for libcuda.so.1 with the driver's checkpoint calls; no GPU is touched.
 *
 * Its processes are real ones. Those that use the emulated accelerator, whose ledger NVML's file
 * names, it really locks, and a checkpoint takes their memory out of the ledger; what they hold
 * stays where it is in host memory. Of others the CUDA state is a fiction that stands in the text
 * file which CUDA_STUB_STATE names, one "key value" a line, read and written by every call under a
 * lock. The faults below can be scripted for both:
 *
 *   cuda 13000                       version of the driver
 *   error.init CODE                  cuInit answers CODE
 *   pid.P.state running              running, locked, checkpointed, failed, checkpointing, restoring
 *   pid.P.bytes N / pid.P.gpu I      its device memory, on the I-th GPU
 *   pid.P.busy_ms N                  a lock takes so long; one with a shorter limit is not ready
 *   pid.P.error.CALL CODE            CALL (lock, checkpoint, restore, unlock, state) answers CODE
 *   pid.P.error_times.CALL N         ... N times, and then no more
 *   pid.P.delay_ms.CALL N            CALL takes N ms longer
 *   pid.P.hang.CALL 1                CALL never returns
 *   pid.P.lie.CALL 1                 CALL answers success and does nothing
 *   pid.P.die.CALL before|after      the calling process dies in CALL, once
 *   pid.P.waits_for Q                no call for P returns while Q is locked or checkpointed
 *   stuck_after_oom 1                a restore that ran out of memory can never be repeated
 *
 * GPUs and their memory are those of the stub NVML, in the file that NVML_STUB_STATE names: a
 * checkpoint takes the process off the list there, a restore puts it back, on any GPU of the map.
 * Every call is added to CUDA_STUB_STATE.log as "CALL P CODE".
 *
 * What the real driver does beyond that is not here: no memory is copied, contexts do not exist, and
 * a lock does not wait for an operation that is under way.
 */
#include "accelerator.h"

#include <errno.h>
#include <signal.h>
#include <time.h>

static const char *const STATES[] = {"running", "locked",        "checkpointed",
                                     "failed",  "checkpointing", "restoring"};

typedef struct { unsigned timeout_ms, reserved0; uint64_t reserved1[7]; } lock_args_t;

static int started;

static char *of_pid(int pid, const char *name, const char *call) {
  char key[96];
  snprintf(key, sizeof key, "pid.%d.%s%s%s", pid, name, *call ? "." : "", call);
  return look_up(&cuda, key);
}

static void set_pid(int pid, const char *name, const char *call, const char *value) {
  char key[96];
  snprintf(key, sizeof key, "pid.%d.%s%s%s", pid, name, *call ? "." : "", call);
  put(&cuda, key, value);
}

static void pause_ms(long long ms) {
  struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
  while (nanosleep(&pause, &pause) == -1 && errno == EINTR) {}
}

/* ---- the state machine -------------------------------------------------------------------- */

static const char *state_of(int pid) {
  const char *fiction = of_pid(pid, "state", "");
  int state = fiction ? -1 : accelerator_state(pid);
  return state < 0 ? fiction : STATES[state];
}

static int step(int pid, const char *call, unsigned limit_ms, const restore_args_t *map) {
  const char *state = of_pid(pid, "state", "");
  char *text = of_pid(pid, "busy_ms", "");
  long long bytes;
  int gpu, answer;
  if (!strcmp(call, "lock") && text && limit_ms && strtoll(text, NULL, 10) > limit_ms &&
      strcmp(state_of(pid), "running") == 0)
    return NOT_READY;
  if (!state) {
    if (strcmp(call, "restore") == 0 && of_pid(pid, "stuck", "")) return OPERATING_SYSTEM;
    answer = accelerator_step(pid, call, map);
    if (answer == OUT_OF_MEMORY && number(&cuda, "stuck_after_oom", 0))
      set_pid(pid, "stuck", "", "1");
    return answer;
  }
  bytes = (text = of_pid(pid, "bytes", "")) ? strtoll(text, NULL, 10) : 0;
  gpu = (text = of_pid(pid, "gpu", "")) ? atoi(text) : 0;
  if (strcmp(call, "lock") == 0) {
    if (strcmp(state, "running")) return ILLEGAL_STATE;
    set_pid(pid, "state", "", "locked");
  } else if (strcmp(call, "checkpoint") == 0) {
    if (strcmp(state, "locked")) return ILLEGAL_STATE;
    take_off(gpu, pid, bytes);
    set_pid(pid, "state", "", "checkpointed");
  } else if (strcmp(call, "restore") == 0) {
    int to = gpu;
    char digits[16];
    if (strcmp(state, "checkpointed")) return ILLEGAL_STATE;
    if (of_pid(pid, "stuck", "")) return OPERATING_SYSTEM;
    if (map && map->count && (to = target(map, gpu)) < 0) return INVALID_VALUE;
    text = of_gpu(to, "total");
    if (text && strtoll(text, NULL, 10) - strtoll(of_gpu(to, "used"), NULL, 10) < bytes) {
      if (number(&cuda, "stuck_after_oom", 0)) set_pid(pid, "stuck", "", "1");
      return OUT_OF_MEMORY;
    }
    put_on(to, pid, bytes);
    snprintf(digits, sizeof digits, "%d", to);
    set_pid(pid, "gpu", "", digits);
    set_pid(pid, "state", "", "locked");
  } else if (strcmp(call, "unlock") == 0) {
    if (strcmp(state, "locked")) return ILLEGAL_STATE;
    set_pid(pid, "state", "", "running");
  }
  return OK;
}

static int scripted(int pid, const char *call) {
  char *text = of_pid(pid, "error", call), *times = of_pid(pid, "error_times", call);
  int code = text ? atoi(text) : OK;
  if (text && times) {
    char left[16];
    if (atoi(times) <= 0) return OK;
    snprintf(left, sizeof left, "%d", atoi(times) - 1);
    set_pid(pid, "error_times", call, left);
  }
  return code;
}

static int is_held(int pid) {
  const char *state = state_of(pid);
  return state && (strcmp(state, "locked") == 0 || strcmp(state, "checkpointed") == 0);
}

static void say(const char *call, int pid, int code) {
  char path[520];
  FILE *file;
  snprintf(path, sizeof path, "%s.log", cuda.path);
  file = fopen(path, "a");
  if (!file) return;
  fprintf(file, "%s %d %d\n", call, pid, code);
  fclose(file);
}

static int call(int pid, const char *name, unsigned limit_ms, const restore_args_t *map, int *out) {
  int lock = open_tables(), answer, dies_before, dies_after, i;
  char *text;
  while ((text = of_pid(pid, "waits_for", "")) && is_held(atoi(text))) {
    close_tables(lock);
    pause_ms(20);
    lock = open_tables();
  }
  if (!state_of(pid)) {
    say(name, pid, NOT_INITIALIZED);
    close_tables(lock);
    return NOT_INITIALIZED;
  }
  text = of_pid(pid, "die", name);
  dies_before = text && strcmp(text, "before") == 0;
  dies_after = text && strcmp(text, "after") == 0;
  if (text) set_pid(pid, "die", name, "done");
  text = of_pid(pid, "delay_ms", name);
  if (text || of_pid(pid, "hang", name)) {
    long long ms = text ? strtoll(text, NULL, 10) : 0;
    int hangs = of_pid(pid, "hang", name) != NULL;
    say("begin", pid, 0);
    save(&cuda);
    close_tables(lock);
    pause_ms(ms);
    while (hangs) pause_ms(1000);
    lock = open_tables();
  }
  if (dies_before) {
    save(&cuda);
    raise(SIGKILL);
  }
  answer = scripted(pid, name);
  if (answer == OK && !of_pid(pid, "lie", name)) answer = step(pid, name, limit_ms, map);
  if (answer == OK && out)
    for (i = 0; i < 6; i++)
      if (strcmp(state_of(pid), STATES[i]) == 0) *out = i;
  say(name, pid, answer);
  save(&cuda);
  save(&nvml);
  if (dies_after) raise(SIGKILL);
  close_tables(lock);
  return answer;
}

/* ---- the driver's interface --------------------------------------------------------------- */

int cuInit(unsigned flags) {
  int lock = open_tables(), answer = flags ? INVALID_VALUE : (int)number(&cuda, "error.init", OK);
  close_tables(lock);
  started = answer == OK;
  return answer;
}

int cuDriverGetVersion(int *out) {
  int lock = open_tables();
  *out = (int)number(&cuda, "cuda", 13000);
  close_tables(lock);
  return OK;
}

int cuDeviceGetCount(int *out) {
  int lock = open_tables();
  *out = (int)number(&nvml, "count", 0);
  close_tables(lock);
  return started ? OK : NOT_INITIALIZED;
}

int cuDeviceGet(int *out, int index) {
  *out = index;
  return started ? OK : NOT_INITIALIZED;
}

int cuDeviceGetUuid_v2(uuid_t *out, int gpu) {
  int lock = open_tables(), found = uuid_of(gpu, out);
  close_tables(lock);
  return found ? OK : INVALID_VALUE;
}

#ifndef CUDA_STUB_OLD

int cuCheckpointProcessGetState(int pid, int *out) { return call(pid, "state", 0, NULL, out); }

int cuCheckpointProcessGetRestoreThreadId(int pid, int *out) {
  *out = pid;
  return OK;
}

int cuCheckpointProcessLock(int pid, const lock_args_t *args) {
  unsigned i;
  for (i = 0; args && i < 7; i++)
    if (args->reserved0 || args->reserved1[i]) return INVALID_VALUE;
  return call(pid, "lock", args ? args->timeout_ms : 0, NULL, NULL);
}

int cuCheckpointProcessCheckpoint(int pid, const void *args) {
  return args ? INVALID_VALUE : call(pid, "checkpoint", 0, NULL, NULL);
}

int cuCheckpointProcessRestore(int pid, const restore_args_t *args) {
  unsigned i;
  for (i = 0; args && i < sizeof args->reserved; i++)
    if (args->reserved[i]) return INVALID_VALUE;
  return call(pid, "restore", 0, args, NULL);
}

int cuCheckpointProcessUnlock(int pid, const void *args) {
  return args ? INVALID_VALUE : call(pid, "unlock", 0, NULL, NULL);
}

#endif

int cuGetErrorName(int code, const char **out) {
  switch (code) {
    case OK: *out = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *out = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *out = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NOT_INITIALIZED: *out = "CUDA_ERROR_NOT_INITIALIZED"; break;
    case DEVICE_UNAVAILABLE: *out = "CUDA_ERROR_DEVICE_UNAVAILABLE"; break;
    case OPERATING_SYSTEM: *out = "CUDA_ERROR_OPERATING_SYSTEM"; break;
    case ILLEGAL_STATE: *out = "CUDA_ERROR_ILLEGAL_STATE"; break;
    case NOT_FOUND: *out = "CUDA_ERROR_NOT_FOUND"; break;
    case NOT_READY: *out = "CUDA_ERROR_NOT_READY"; break;
    case NOT_SUPPORTED: *out = "CUDA_ERROR_NOT_SUPPORTED"; break;
    default: *out = NULL; return INVALID_VALUE;
  }
  return OK;
}

int cuGetErrorString(int code, const char **out) {
  return cuGetErrorName(code, out) == OK ? OK : INVALID_VALUE;
}

/* Bindings ask for each function by name. */
int cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status) {
  static const struct { const char *name; void *function; } KNOWN[] = {
      {"cuInit", (void *)cuInit},
      {"cuDriverGetVersion", (void *)cuDriverGetVersion},
      {"cuDeviceGetCount", (void *)cuDeviceGetCount},
      {"cuDeviceGet", (void *)cuDeviceGet},
      {"cuDeviceGetUuid", (void *)cuDeviceGetUuid_v2},
      {"cuGetErrorName", (void *)cuGetErrorName},
      {"cuGetErrorString", (void *)cuGetErrorString},
      {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
#ifndef CUDA_STUB_OLD
      {"cuCheckpointProcessGetState", (void *)cuCheckpointProcessGetState},
      {"cuCheckpointProcessGetRestoreThreadId", (void *)cuCheckpointProcessGetRestoreThreadId},
      {"cuCheckpointProcessLock", (void *)cuCheckpointProcessLock},
      {"cuCheckpointProcessCheckpoint", (void *)cuCheckpointProcessCheckpoint},
      {"cuCheckpointProcessRestore", (void *)cuCheckpointProcessRestore},
      {"cuCheckpointProcessUnlock", (void *)cuCheckpointProcessUnlock},
#endif
  };
  size_t i;
  (void)version;
  (void)flags;
  *out = NULL;
  for (i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
    if (strcmp(KNOWN[i].name, symbol) == 0) *out = KNOWN[i].function;
  if (status) *status = *out ? 0 : 1;
  return *out ? OK : NOT_FOUND;
}

int cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, out, version, flags, NULL);
}
