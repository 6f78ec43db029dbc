// Memory of devices: address space that the system backs when it is written. All devices share one bound.
#include <pthread.h>
#include <sys/mman.h>
#include "standin.h"

#define REAL_BYTES (1L << 20) // what is larger is zero after a copy or a fill
#define PAGE 4096UL
#define MAPPED 65536          // allocations at a time
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long used;

static struct {
  char *at;
  size_t n;
} maps[MAPPED];
static int mapped;

// ---- Allocations

static int on_device(const void *p) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < mapped; i++)
    if ((char *)p >= maps[i].at && (char *)p < maps[i].at + maps[i].n) {
      found = 1;
      break;
    }
  pthread_mutex_unlock(&lock);
  return found;
}

API cudaError_t cudaMalloc(void **p, size_t n) {
  touch("cudaMalloc");
  if (used + (long)n > memory_bytes) {
    *p = 0;
    return cudaErrorMemoryAllocation;
  }
  size_t size = (n + 4095) & ~4095UL;
  void *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return cudaErrorMemoryAllocation;
  pthread_mutex_lock(&lock);
  maps[mapped].at = at;
  maps[mapped].n = size;
  mapped++;
  used += size;
  pthread_mutex_unlock(&lock);
  ADD(ALLOCATIONS, 1);
  *p = at;
  return 0;
}

API cudaError_t cudaFree(void *p) {
  if (!p) return 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < mapped; i++)
    if (maps[i].at == p) {
      munmap(p, maps[i].n);
      used -= maps[i].n;
      maps[i] = maps[--mapped];
      break;
    }
  pthread_mutex_unlock(&lock);
  ADD(FREES, 1);
  return 0;
}

API cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
API cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }

API cudaError_t cudaMemGetInfo(size_t *f, size_t *t) {
  *f = memory_bytes - used;
  *t = memory_bytes;
  return 0;
}

// ---- Memory of the host: pinned memory is like any other

API cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) {
  touch("pinned memory");
  *p = aligned_alloc(4096, (n + 4095) & ~4095UL);
  return *p ? 0 : cudaErrorMemoryAllocation;
}

API cudaError_t cudaFreeHost(void *p) {
  free(p);
  return 0;
}

API cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) { return 0; }
API cudaError_t cudaHostUnregister(void *p) { return 0; }
// ---- Copies and fills: a small one is real, since programs read flags, counts and losses back. A large one
// ---- leaves zeros on the device, since what an earlier tensor left there need not be a number, and the host
// ---- as it was: the weights of a large model would not fit there.

static void zero(char *p, size_t n) {
  char *from = (char *)(((uintptr_t)p + PAGE - 1) & ~(PAGE - 1));
  char *to = (char *)((uintptr_t)(p + n) & ~(PAGE - 1));
  if ((long)n > REAL_BYTES && on_device(p) && !madvise(from, to - from, MADV_DONTNEED)) { // gives pages back
    memset(p, 0, from - p);
    memset(to, 0, p + n - to);
  } else
    memset(p, 0, n);
}

void move(void *to, const void *from, size_t n) {
  if ((long)n <= REAL_BYTES)
    memmove(to, from, n);
  else if (to != from && on_device(to))
    zero(to, n);
}

void fill(char *p, const char *value, size_t size, size_t n) {
  static const char nothing[16];
  if (!memcmp(value, nothing, size) || (long)(n * size) > REAL_BYTES)
    zero(p, n * size);
  else
    for (size_t i = 0; i < n; i++) memcpy(p + i * size, value, size);
}

static cudaError_t copied(void *to, const void *from, size_t n) {
  int a = on_device(to), b = on_device(from);
  if (a && b)
    ADD(ON_DEVICE, 1);
  else if (a) {
    ADD(TO_DEVICE, 1);
    ADD(BYTES_TO_DEVICE, n);
  } else if (b) {
    ADD(TO_HOST, 1);
    ADD(BYTES_TO_HOST, n);
  }
  if (a || b)
    move(to, from, n);
  else
    memmove(to, from, n);
  return 0;
}

API cudaError_t cudaMemcpy(void *t, const void *f, size_t n, enum cudaMemcpyKind k) {
  ADD(WAITS, 1);
  return copied(t, f, n);
}

API cudaError_t cudaMemcpyAsync(void *t, const void *f, size_t n, enum cudaMemcpyKind k, cudaStream_t s) {
  return copied(t, f, n);
}

API cudaError_t cudaMemcpyPeerAsync(void *t, int a, const void *f, int b, size_t n, cudaStream_t s) {
  return copied(t, f, n);
}

API cudaError_t cudaMemcpy2DAsync(void *t, size_t tp, const void *f, size_t fp, size_t w, size_t h,
                                  enum cudaMemcpyKind k, cudaStream_t s) {
  if ((long)(w * h) <= REAL_BYTES)
    for (size_t i = 0; i < h; i++) memmove((char *)t + i * tp, (char *)f + i * fp, w);
  return 0;
}

API cudaError_t cudaMemcpyToSymbol(const void *s, const void *f, size_t n, size_t o, enum cudaMemcpyKind k) {
  return 0;
}

API cudaError_t cudaMemset(void *p, int v, size_t n) {
  char value = v;
  ADD(FILLS, 1);
  fill(p, &value, 1, n);
  return 0;
}

API cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return cudaMemset(p, v, n); }
// ---- Questions about memory

API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = on_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->device = current_device;
  a->devicePointer = a->type == cudaMemoryTypeDevice ? (void *)p : 0;
  a->hostPointer = a->type ? 0 : (void *)p;
  return 0;
}

// ---- Pools and memory of other processes, which torch asks for and does not use here

API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) {
  *(uint64_t *)v = 0;
  return 0;
}

API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) { return 0; }

API cudaError_t cudaMemPoolSetAccess(cudaMemPool_t p, const struct cudaMemAccessDesc *d, size_t n) {
  return 0;
}

API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t p, size_t n) { return 0; }
API cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *h, void *p) { return 0; }

API cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t h, unsigned f) {
  return cudaErrorInvalidValue;
}

API cudaError_t cudaIpcCloseMemHandle(void *p) { return 0; }
API cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *h, cudaEvent_t e) { return 0; }

API cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *e, cudaIpcEventHandle_t h) {
  return cudaErrorInvalidValue;
}

API cudaError_t cudaGetSymbolAddress(void **p, const void *s) {
  static char nothing[1 << 16];
  *p = nothing;
  return 0;
}
