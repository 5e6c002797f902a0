/* A stand-in for libnvidia-ml.so.1: one GPU whose readings the test sets. */
#include <string.h>

static int code_for_all = 0;
static unsigned clock_mhz = 1000;
static unsigned long long energy_mj = 5000;

void fake_set_code(int code) { code_for_all = code; }
void fake_set_clock(unsigned mhz) { clock_mhz = mhz; }
void fake_add_energy(unsigned long long mj) { energy_mj += mj; }

int nvmlInitWithFlags(unsigned flags) { (void)flags;
#ifdef NO_DRIVER
  return 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
#else
  return 0;
#endif
}
int nvmlShutdown(void) { return code_for_all; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "some error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
  if (code_for_all == 0) strncpy(text, "580.12", length);
  return code_for_all;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
  *handle = (void *)0x1;
  return strcmp(uuid, "GPU-11-22") ? 6 : 0; /* NVML_ERROR_NOT_FOUND */
}
int nvmlDeviceGetClockInfo(void *h, int type, unsigned *out) {
  (void)h; *out = type == 1 ? clock_mhz : 2619; return code_for_all;
}
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *out) {
  (void)h; (void)sensor; *out = 61; return code_for_all;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) {
  (void)h; *out = 350500; return code_for_all;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *out) {
  (void)h; *out = 0x24; return code_for_all;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *out) {
  (void)h; *out = 0x5; return code_for_all;
}
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *out) {
  (void)h; *out = energy_mj; return code_for_all;
}
int nvmlDeviceGetMaxClockInfo(void *h, int type, unsigned *out) {
  (void)h; *out = type == 1 ? 1980 : 2619; return code_for_all;
}
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *out) {
  (void)h; *out = 700000; return code_for_all;
}
#endif
