/* Processes that use the emulated accelerator: the driver acts on what the ledger has of them. */
#include <stddef.h>
#include <unistd.h>

#include "../accelerator/src/ledger.h"
#include "gpus.h"

enum {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  DEVICE_UNAVAILABLE = 46,
  OPERATING_SYSTEM = 304,
  ILLEGAL_STATE = 401,
  NOT_FOUND = 500,
  NOT_READY = 600,
  NOT_SUPPORTED = 801,
};
#define MAX_RECORDS 256

typedef struct {
  int fd, count, own;
  ledger_header_t header;
  ledger_record_t records[MAX_RECORDS];
} ledger_t;

static int is_of(const ledger_record_t *record, int pid) {
  return record->pid == (uint64_t)pid && ledger_counts(record);
}

/* Opens and locks the ledger; `own` counts the records of a living process. */
static void open_ledger(ledger_t *ledger, int pid) {
  const char *path = look_up(&nvml, "accelerator");
  ssize_t size;
  int i;
  ledger->count = ledger->own = 0;
  ledger->fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (ledger->fd < 0) return;
  flock(ledger->fd, LOCK_EX);
  size = pread(ledger->fd, &ledger->header, sizeof ledger->header, 0);
  if (size != sizeof ledger->header || ledger->header.magic != LEDGER_MAGIC) return;
  size = pread(ledger->fd, ledger->records, sizeof ledger->records, sizeof ledger->header);
  ledger->count = size > 0 ? (int)((size_t)size / sizeof *ledger->records) : 0;
  for (i = 0; i < ledger->count; i++) ledger->own += is_of(&ledger->records[i], pid);
}

static void close_ledger(ledger_t *ledger) {
  if (ledger->fd >= 0) close(ledger->fd);
}

static int write_ledger(ledger_t *ledger, int pid) {
  int i, good = 1;
  for (i = 0; i < ledger->count; i++) {
    off_t at = (off_t)(sizeof ledger->header + (size_t)i * sizeof *ledger->records);
    if (is_of(&ledger->records[i], pid))
      good = good && pwrite(ledger->fd, &ledger->records[i], sizeof *ledger->records, at) ==
                         sizeof *ledger->records;
  }
  /* Whoever sees this number looks at its own records. */
  ledger->header.changes++;
  good = good && pwrite(ledger->fd, &ledger->header.changes, sizeof ledger->header.changes,
                        offsetof(ledger_header_t, changes)) == sizeof ledger->header.changes;
  return good ? OK : OPERATING_SYSTEM;
}

/* State of a process as a number of the driver's, -1 if it does not use the accelerator. */
static int accelerator_state(int pid) {
  ledger_t ledger;
  int i, state = -1;
  open_ledger(&ledger, pid);
  for (i = 0; i < ledger.count; i++)
    if (is_of(&ledger.records[i], pid)) state = (int)ledger.records[i].state;
  close_ledger(&ledger);
  return state;
}

static long long free_bytes(const ledger_t *ledger, int gpu) {
  const char *total = of_gpu(gpu, "total"), *used = of_gpu(gpu, "used");
  long long left = (total ? strtoll(total, NULL, 10) : 0) - (used ? strtoll(used, NULL, 10) : 0);
  int i;
  for (i = 0; i < ledger->count; i++)
    if (ledger->records[i].device == (uint64_t)gpu && ledger_counts(&ledger->records[i]))
      left -= (long long)ledger->records[i].bytes;
  return left;
}

/* Puts a process's memory back, all of it or nothing; the caller writes. */
static int put_back(ledger_t *ledger, int pid, const restore_args_t *map) {
  int i;
  for (i = 0; i < ledger->count; i++) {
    ledger_record_t *record = &ledger->records[i];
    int to = (int)record->device;
    if (!is_of(record, pid)) continue;
    if (map && map->count && (to = target(map, to)) < 0) return INVALID_VALUE;
    if (ledger->header.lost >> to & 1) return DEVICE_UNAVAILABLE;
    if (free_bytes(ledger, to) < (long long)record->saved) return OUT_OF_MEMORY;
    record->device = (uint64_t)to;
    record->bytes = record->saved;
    record->saved = 0;
    record->state = LEDGER_LOCKED;
  }
  return OK;
}

static int accelerator_step(int pid, const char *call, const restore_args_t *map) {
  ledger_t ledger;
  int i, answer = OK, before, after;
  if (strcmp(call, "lock") == 0) before = LEDGER_RUNNING, after = LEDGER_LOCKED;
  else if (strcmp(call, "checkpoint") == 0) before = LEDGER_LOCKED, after = LEDGER_CHECKPOINTED;
  else if (strcmp(call, "restore") == 0) before = LEDGER_CHECKPOINTED, after = LEDGER_LOCKED;
  else if (strcmp(call, "unlock") == 0) before = LEDGER_LOCKED, after = LEDGER_RUNNING;
  else return OK;
  open_ledger(&ledger, pid);
  if (!ledger.own) answer = NOT_INITIALIZED;
  for (i = 0; i < ledger.count; i++)
    if (is_of(&ledger.records[i], pid) && ledger.records[i].state != (uint64_t)before)
      answer = ILLEGAL_STATE;
  if (answer == OK && before == LEDGER_CHECKPOINTED) answer = put_back(&ledger, pid, map);
  for (i = 0; answer == OK && i < ledger.count; i++) {
    ledger_record_t *record = &ledger.records[i];
    if (!is_of(record, pid)) continue;
    record->state = (uint64_t)after;
    if (after == LEDGER_CHECKPOINTED) {
      record->saved = record->bytes;
      record->bytes = 0;
    }
  }
  if (answer == OK) answer = write_ledger(&ledger, pid);
  close_ledger(&ledger);
  return answer;
}
