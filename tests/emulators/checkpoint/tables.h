/* Two files of "key value" lines, the driver's and NVML's, read and written under one lock. */
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "../state_file.h"

#define MAX_LINES 512
typedef struct { state_entry_t entries[MAX_LINES]; int count; char path[512]; } table_t;

static table_t cuda, nvml;

static void load(table_t *table, const char *variable) {
  const char *path = getenv(variable);
  FILE *file = state_open(variable);
  table->count = 0;
  snprintf(table->path, sizeof table->path, "%s", path ? path : "");
  while (table->count < MAX_LINES && state_next(file, &table->entries[table->count])) table->count++;
  if (file) fclose(file);
}

static void save(const table_t *table) {
  char part[520];
  FILE *file;
  int i;
  snprintf(part, sizeof part, "%s.new", table->path);
  file = fopen(part, "w");
  if (!file) return;
  for (i = 0; i < table->count; i++)
    fprintf(file, "%s %s\n", table->entries[i].key, table->entries[i].value);
  fclose(file);
  rename(part, table->path);
}

static char *look_up(table_t *table, const char *key) {
  int i;
  for (i = 0; i < table->count; i++)
    if (strcmp(table->entries[i].key, key) == 0) return table->entries[i].value;
  return NULL;
}

static void put(table_t *table, const char *key, const char *value) {
  char *old = look_up(table, key);
  if (!old && table->count < MAX_LINES) {
    state_entry_t *entry = &table->entries[table->count++];
    snprintf(entry->key, sizeof entry->key, "%s", key);
    old = entry->value;
  }
  if (old) snprintf(old, sizeof cuda.entries[0].value, "%s", value);
}

static long long number(table_t *table, const char *key, long long otherwise) {
  const char *text = look_up(table, key);
  return text ? strtoll(text, NULL, 10) : otherwise;
}

/* The lock is a file of its own, since the others are replaced; tests take it too. */
static int open_tables(void) {
  char path[520];
  const char *state = getenv("CUDA_STUB_STATE");
  int lock;
  snprintf(path, sizeof path, "%s.lock", state ? state : "/dev/null");
  lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock >= 0) flock(lock, LOCK_EX);
  load(&cuda, "CUDA_STUB_STATE");
  load(&nvml, "NVML_STUB_STATE");
  return lock;
}

static void close_tables(int lock) {
  if (lock >= 0) close(lock);
}
