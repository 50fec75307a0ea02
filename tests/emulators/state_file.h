/* The text files that say what emulated hardware answers: one "key value" a line.
 *
 * Tests replace such a file as a whole, so every call of a stub reads it anew.
 */
#ifndef EMULATORS_STATE_FILE_H
#define EMULATORS_STATE_FILE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char key[96], value[512]; } state_entry_t;

/* Opens the file that an environment variable names. */
static inline FILE *state_open(const char *variable) {
  const char *path = getenv(variable);
  return path ? fopen(path, "re") : NULL;
}

/* Reads the next entry. */
static inline int state_next(FILE *file, state_entry_t *out) {
  char line[sizeof *out], *blank;
  while (file && fgets(line, sizeof line, file)) {
    if (!(blank = strchr(line, ' '))) continue;
    *blank = 0;
    blank[1 + strcspn(blank + 1, "\n")] = 0;
    snprintf(out->key, sizeof out->key, "%.95s", line);
    snprintf(out->value, sizeof out->value, "%.511s", blank + 1);
    return 1;
  }
  return 0;
}

/* Finds one value. */
static inline int state_find(const char *variable, const char *key, char *out, size_t size) {
  FILE *file = state_open(variable);
  state_entry_t entry;
  int found = 0;
  while (!found && state_next(file, &entry)) found = strcmp(entry.key, key) == 0;
  if (file) fclose(file);
  if (found) snprintf(out, size, "%s", entry.value);
  return found;
}

#endif
