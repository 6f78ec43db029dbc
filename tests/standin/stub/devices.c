// Devices that are not there, and what all parts of the stand-in share.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#include "standin.h"

long counters[COUNTERS];
long memory_bytes;
int devices = 1, own_rank;
__thread int current_device;
FILE *journal;
volatile long *arrived;
static int world = 1;
static int context[DEVICES];

API void fc_reset(void) { memset(counters, 0, sizeof counters); }
API long fc_get(int counter) { return counters[counter]; }
API int fc_context(int device) { return context[device]; } // driver.c asks

long new_handle(void) {
  static long handles = 0x1000;
  return __sync_add_and_fetch(&handles, 16);
}

// ---- Several ranks: a collective is over when all have come to it. They share a file of a count per rank.

static void join_others(const char *file) {
  own_rank = atoi(getenv("RANK"));
  world = atoi(getenv("WORLD_SIZE"));
  int f = open(file, O_RDWR | O_CREAT, 0600);
  if (ftruncate(f, DEVICES * sizeof(long))) return;
  arrived = mmap(0, DEVICES * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
  close(f);
  arrived[own_rank] = 0;
}

int met(void) {
  if (!arrived) return 1;
  for (int rank = 0; rank < world; rank++)
    if (arrived[rank] < arrived[own_rank]) return 0;
  return 1;
}

void wait_for_device(void) {
  while (!met()) usleep(2000);
  ADD(WAITS, 1);
}

// ---- The start of a process

__attribute__((constructor)) static void begin(void) {
  const char *gigabytes = getenv("FAKECUDA_GB"), *count = getenv("FAKECUDA_DEVICES");
  const char *meeting = getenv("FAKECUDA_MEET"), *journals = getenv("FAKECUDA_JOURNAL"),
             *rank = getenv("RANK");
  memory_bytes = (long)((gigabytes ? atof(gigabytes) : 79.0) * (1L << 30));
  if (count) devices = atoi(count);
  if (meeting && getenv("WORLD_SIZE")) join_others(meeting);
  if (journals) {
    char name[4096];
    snprintf(name, sizeof name, "%s.%s.%d", journals, rank ? rank : "0", getpid());
    journal = fopen(name, "w");
  }
}

// ---- Devices and their contexts

// Since CUDA 12 cudaSetDevice makes a device's primary context, and so does whatever needs one.
void touch(const char *why) {
  if (context[current_device]) return;
  context[current_device] = 1;
  if (!journal) return;
  fprintf(journal, "context on device %d by %s, thread %ld\n", current_device, why, (long)pthread_self());
  fflush(journal);
}

API cudaError_t cudaGetDeviceCount(int *n) {
  *n = devices;
  return 0;
}

API cudaError_t cudaGetDevice(int *d) {
  *d = current_device;
  return 0;
}

API cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= devices) return cudaErrorInvalidDevice;
  current_device = d;
  touch("cudaSetDevice");
  return 0;
}

API cudaError_t cudaDriverGetVersion(int *v) {
  *v = 13000;
  return 0;
}

API cudaError_t cudaRuntimeGetVersion(int *v) {
  *v = 13000;
  return 0;
}

API cudaError_t cudaGetLastError(void) { return 0; }
API cudaError_t cudaPeekAtLastError(void) { return 0; }

API const char *cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "out of memory" : "fake error";
}

API const char *cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorFake";
}

// ---- What an H100 with 80 GB says of itself

API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 80GB HBM3");
  p->totalGlobalMem = memory_bytes;
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = 9;
  p->minor = 0;
  p->textureAlignment = 512;
  p->texturePitchAlignment = 32;
  p->multiProcessorCount = 132;
  p->canMapHostMemory = 1;
  p->concurrentKernels = 1;
  p->ECCEnabled = 1;
  p->asyncEngineCount = 3;
  p->unifiedAddressing = 1;
  p->memoryBusWidth = 5120;
  p->l2CacheSize = 50 << 20;
  p->maxThreadsPerMultiProcessor = 2048;
  p->streamPrioritiesSupported = 1;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerMultiprocessor = 65536;
  p->managedMemory = 1;
  p->cooperativeLaunch = 1;
  p->sharedMemPerBlockOptin = 232448;
  p->maxBlocksPerMultiProcessor = 32;
  p->reservedSharedMemPerBlock = 1024;
  p->memoryPoolsSupported = 1;
  p->pciBusID = 1 + d;
  p->clusterLaunch = 1;
  return 0;
}

API cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  struct cudaDeviceProp p;
  cudaGetDeviceProperties(&p, d);
  switch (a) {
  case cudaDevAttrMultiProcessorCount:
    *v = 132;
    break;
  case cudaDevAttrMaxThreadsPerBlock:
    *v = 1024;
    break;
  case cudaDevAttrMaxSharedMemoryPerBlock:
    *v = 49152;
    break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    *v = 232448;
    break;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
    *v = 233472;
    break;
  case cudaDevAttrComputeCapabilityMajor:
    *v = 9;
    break;
  case cudaDevAttrComputeCapabilityMinor:
    *v = 0;
    break;
  case cudaDevAttrWarpSize:
    *v = 32;
    break;
  case cudaDevAttrMaxGridDimX:
    *v = 2147483647;
    break;
  case cudaDevAttrMaxGridDimY:
  case cudaDevAttrMaxGridDimZ:
    *v = 65535;
    break;
  default:
    *v = 1;
  }
  return 0;
}

API cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) {
  snprintf(s, n, "0000:%02x:00.0", d + 1);
  return 0;
}

API cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *g) {
  *l = 0;
  *g = -5;
  return 0;
}

API cudaError_t cudaDeviceCanAccessPeer(int *ok, int a, int b) {
  *ok = 1;
  return 0;
}

API cudaError_t cudaDeviceEnablePeerAccess(int a, unsigned f) { return 0; }

API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) {
  *p = (cudaMemPool_t)0x11;
  return 0;
}

API cudaError_t cudaDeviceSynchronize(void) {
  wait_for_device();
  return 0;
}
