/* Who holds how much memory of the emulated devices: one file that all processes share.
 *
 * The accelerator writes it, the stub NVML library reads it, so both tell the same; the stub of the
 * CUDA driver takes a process's bytes out of it and puts them back. A 64-byte header is followed by
 * one 64-byte record for each process and device. Each change is one small write under flock, so a
 * process that is killed leaves whole records behind; they name its pid and start time, and count
 * no more once no living process fits both.
 */
#ifndef EMULATED_ACCELERATOR_LEDGER_H
#define EMULATED_ACCELERATOR_LEDGER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEDGER_MAGIC 0x324c434345554d45ULL /* "EMUECCL2" */

typedef struct {
  uint64_t magic;
  uint64_t lost;    /* bit i: device i fell off the bus */
  uint64_t changes; /* grows with each step of a driver checkpoint, of whatever process */
  uint64_t unused[5];
} ledger_header_t;

/* A process in the hands of the driver: its calls wait until it runs again. */
enum { LEDGER_RUNNING = 0, LEDGER_LOCKED = 1, LEDGER_CHECKPOINTED = 2 };

typedef struct {
  uint64_t pid, started;
  uint64_t home;   /* the device that the process named */
  uint64_t device; /* the one that it is on: another after a restore by a map */
  uint64_t bytes;
  uint64_t state;
  uint64_t saved; /* bytes that a checkpoint took off the device */
  uint64_t unused;
} ledger_record_t;

/* Start time of a process in clock ticks since boot; 0 when it is gone or only waits to be reaped. */
static inline uint64_t ledger_started(uint64_t pid) {
  char path[64], text[1024], *rest;
  char state = 'X';
  unsigned long long started = 0;
  size_t length;
  FILE *file;
  snprintf(path, sizeof path, "/proc/%llu/stat", (unsigned long long)pid);
  file = fopen(path, "re");
  if (!file) return 0;
  length = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[length] = 0;
  /* The command's name may hold anything, parentheses too. */
  rest = strrchr(text, ')');
  if (!rest ||
      sscanf(rest + 1,
             " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
             &state, &started) != 2)
    return 0;
  return state == 'Z' || state == 'X' ? 0 : started;
}

static inline int ledger_counts(const ledger_record_t *record) {
  return record->pid != 0 && ledger_started(record->pid) == record->started;
}

#endif
