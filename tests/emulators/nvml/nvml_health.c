/* Health, errors and events of the stub NVML library; nvml_stub.c says where they come from. */
#include "nvml_stub.h"

static int xids_told[MAX_GPUS];
static int sets_open;

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
    out->device = &nvml_devices[set->index];
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
