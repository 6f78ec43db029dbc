// A CUDA runtime, cuBLAS and NCCL without a GPU: allocations are address space, small copies are real, kernels do nothing.
// LD_PRELOAD it under a CUDA build of torch: torch's own CUDA dispatch, device checks, caching allocator and stream logic then run.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cuda_runtime_api.h>
#include <cublas_v2.h>
#include <cublasLt.h>
#include <nccl.h>

#define API __attribute__((visibility("default")))
enum { LAUNCH, GEMM, H2D, D2H, D2D, H2D_BYTES, D2H_BYTES, SYNC, MALLOC, FREE, COLL, COLL_BYTES, EVENTS, MEMSET, N };
static long counters[N];
static long used, limit_bytes, peak;
static __thread int current_device;
static int devices = 1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void (*hook)(const char *what, long bytes);
static FILE *journal;
static long copy_limit = 1L << 20;
static long on[64], launches_on[64];
API long fc_on(int d) { return on[d]; }
API long fc_launches_on(int d) { return launches_on[d]; }

API void fc_hook(void (*h)(const char *, long)) { hook = h; }
API void fc_reset(void) { memset(counters, 0, sizeof counters); peak = used; }
API long fc_get(int i) { return counters[i]; }
API long fc_used(void) { return used; }
API long fc_peak(void) { return peak; }
API void fc_limit(long bytes) { limit_bytes = bytes; }
API void fc_copy_limit(long bytes) { copy_limit = bytes; }
#define ADD(c, n) __sync_fetch_and_add(&counters[c], (n))

static void meet(void);
__attribute__((constructor)) static void begin(void) {
  const char *gb = getenv("FAKECUDA_GB"), *n = getenv("FAKECUDA_DEVICES"), *j = getenv("FAKECUDA_JOURNAL");
  limit_bytes = (long)((gb ? atof(gb) : 79.0) * (1L << 30));
  devices = n ? atoi(n) : 1; meet();
  if (j) { char name[4096]; snprintf(name, sizeof name, "%s.%s.%d", j, getenv("RANK") ? getenv("RANK") : "0", getpid()); journal = fopen(name, "w"); }
}

// ---------------------------------------------------------------- a collective is over when all ranks have come to it
#include <fcntl.h>
static volatile long *arrived; static int own_rank, world = 1;
static void meet(void) {
  const char *file = getenv("FAKECUDA_MEET"); if (!file || !getenv("WORLD_SIZE")) return;
  own_rank = atoi(getenv("RANK")); world = atoi(getenv("WORLD_SIZE"));
  int f = open(file, O_RDWR | O_CREAT, 0600); if (ftruncate(f, 64 * sizeof(long))) return;
  arrived = mmap(0, 64 * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, f, 0); close(f); arrived[own_rank] = 0;
}
static int met(void) { if (!arrived) return 1; for (int r = 0; r < world; r++) if (arrived[r] < arrived[own_rank]) return 0; return 1; }
static void wait_for_others(void) { while (!met()) usleep(2000); }

// ---------------------------------------------------------------- devices
API cudaError_t cudaGetDeviceCount(int *n) { *n = devices; return 0; }
API cudaError_t cudaGetDevice(int *d) { *d = current_device; return 0; }
static int context[64];
API int fc_context(int d) { return context[d]; }
// Since CUDA 12 cudaSetDevice makes the primary context of a device, and so does whatever needs one: about 500 MB on a real GPU.
static void touch(const char *why) {
  if (!context[current_device]) { context[current_device] = 1; if (hook) hook("context", current_device);
    if (journal) { fprintf(journal, "context on device %d by %s, thread %ld\n", current_device, why, (long)pthread_self()); fflush(journal); } } }
API cudaError_t cudaSetDevice(int d) { if (d < 0 || d >= devices) return cudaErrorInvalidDevice; current_device = d; touch("cudaSetDevice"); return 0; }
API cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
API cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
API cudaError_t cudaGetLastError(void) { return 0; }
API cudaError_t cudaPeekAtLastError(void) { return 0; }
API const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "fake error"; }
API const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorFake"; }
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 80GB HBM3"); p->totalGlobalMem = limit_bytes; p->sharedMemPerBlock = 49152; p->regsPerBlock = 65536;
  p->warpSize = 32; p->memPitch = 2147483647; p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535; p->totalConstMem = 65536;
  p->major = 9; p->minor = 0; p->textureAlignment = 512; p->texturePitchAlignment = 32; p->multiProcessorCount = 132;
  p->canMapHostMemory = 1; p->concurrentKernels = 1; p->ECCEnabled = 1; p->asyncEngineCount = 3; p->unifiedAddressing = 1;
  p->memoryBusWidth = 5120; p->l2CacheSize = 50 << 20; p->maxThreadsPerMultiProcessor = 2048; p->streamPrioritiesSupported = 1;
  p->sharedMemPerMultiprocessor = 233472; p->regsPerMultiprocessor = 65536; p->managedMemory = 1; p->cooperativeLaunch = 1;
  p->sharedMemPerBlockOptin = 232448; p->maxBlocksPerMultiProcessor = 32; p->reservedSharedMemPerBlock = 1024; p->memoryPoolsSupported = 1;
  p->pciBusID = 1 + d; p->clusterLaunch = 1;
  return 0;
}
API cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  struct cudaDeviceProp p; cudaGetDeviceProperties(&p, d);
  switch (a) {
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    default: *v = 1;
  }
  return 0;
}
API cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02x:00.0", d + 1); return 0; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *g) { *l = 0; *g = -5; return 0; }
API cudaError_t cudaDeviceCanAccessPeer(int *ok, int a, int b) { *ok = 1; return 0; }
API cudaError_t cudaDeviceEnablePeerAccess(int a, unsigned f) { return 0; }
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) { *p = (cudaMemPool_t)0x11; return 0; }
API cudaError_t cudaDeviceSynchronize(void) { wait_for_others(); ADD(SYNC, 1); if (hook) hook("device sync", 0); return 0; }

// ---------------------------------------------------------------- memory
#define MAPPED 65536
static struct { char *at; size_t n; } maps[MAPPED]; static int mapped;
static int on_device(const void *p) {
  int found = 0; pthread_mutex_lock(&lock);
  for (int i = 0; i < mapped; i++) if ((char *)p >= maps[i].at && (char *)p < maps[i].at + maps[i].n) { found = 1; break; }
  pthread_mutex_unlock(&lock); return found;
}
API cudaError_t cudaMalloc(void **p, size_t n) {
  touch("cudaMalloc"); on[current_device] += n;
  if (used + (long)n > limit_bytes) { *p = 0; return cudaErrorMemoryAllocation; }
  size_t size = (n + 4095) & ~4095UL;
  void *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return cudaErrorMemoryAllocation;
  pthread_mutex_lock(&lock);
  maps[mapped].at = at; maps[mapped].n = size; mapped++; used += size; if (used > peak) peak = used;
  pthread_mutex_unlock(&lock);
  ADD(MALLOC, 1); *p = at; return 0;
}
API cudaError_t cudaFree(void *p) {
  if (!p) return 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < mapped; i++) if (maps[i].at == p) { munmap(p, maps[i].n); used -= maps[i].n; maps[i] = maps[--mapped]; break; }
  pthread_mutex_unlock(&lock);
  ADD(FREE, 1); return 0;
}
API cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
API cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }
API cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *f = limit_bytes - used; *t = limit_bytes; return 0; }
API cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { touch("pinned memory"); *p = aligned_alloc(4096, (n + 4095) & ~4095UL); return *p ? 0 : cudaErrorMemoryAllocation; }
API cudaError_t cudaFreeHost(void *p) { free(p); return 0; }
API cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) { return 0; }
API cudaError_t cudaHostUnregister(void *p) { return 0; }
static cudaError_t copied(void *to, const void *from, size_t n, const char *how) {
  int a = on_device(to), b = on_device(from);
  if (a && b) ADD(D2D, 1);
  else if (a) { ADD(H2D, 1); ADD(H2D_BYTES, n); if (hook) hook("host to device", n); }
  else if (b) { ADD(D2H, 1); ADD(D2H_BYTES, n); if (hook) hook("device to host", n); }
  if ((long)n <= copy_limit || (!a && !b)) memmove(to, from, n);
  return 0;
}
API cudaError_t cudaMemcpy(void *t, const void *f, size_t n, enum cudaMemcpyKind k) { ADD(SYNC, 1); return copied(t, f, n, "sync"); }
API cudaError_t cudaMemcpyAsync(void *t, const void *f, size_t n, enum cudaMemcpyKind k, cudaStream_t s) { return copied(t, f, n, "async"); }
API cudaError_t cudaMemcpyPeerAsync(void *t, int a, const void *f, int b, size_t n, cudaStream_t s) { return copied(t, f, n, "peer"); }
API cudaError_t cudaMemcpy2DAsync(void *t, size_t tp, const void *f, size_t fp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t s) {
  if ((long)(w * h) <= copy_limit) for (size_t i = 0; i < h; i++) memmove((char *)t + i * tp, (char *)f + i * fp, w);
  return 0; }
API cudaError_t cudaMemcpyToSymbol(const void *s, const void *f, size_t n, size_t o, enum cudaMemcpyKind k) { return 0; }
API cudaError_t cudaMemset(void *p, int v, size_t n) { ADD(MEMSET, 1); if ((long)n <= copy_limit) memset(p, v, n); return 0; }
API cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return cudaMemset(p, v, n); }
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a); a->type = on_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered; a->device = current_device;
  a->devicePointer = a->type == cudaMemoryTypeDevice ? (void *)p : 0; a->hostPointer = a->type ? 0 : (void *)p; return 0; }
API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) { *(uint64_t *)v = 0; return 0; }
API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) { return 0; }
API cudaError_t cudaMemPoolSetAccess(cudaMemPool_t p, const struct cudaMemAccessDesc *d, size_t n) { return 0; }
API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t p, size_t n) { return 0; }
API cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *h, void *p) { return 0; }
API cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t h, unsigned f) { return cudaErrorInvalidValue; }
API cudaError_t cudaIpcCloseMemHandle(void *p) { return 0; }
API cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *h, cudaEvent_t e) { return 0; }
API cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *e, cudaIpcEventHandle_t h) { return cudaErrorInvalidValue; }
API cudaError_t cudaGetSymbolAddress(void **p, const void *s) { static char nothing[1 << 16]; *p = nothing; return 0; }

// ---------------------------------------------------------------- streams and events
static long handles = 0x1000;
#define HANDLE(T) ((T)(uintptr_t)__sync_add_and_fetch(&handles, 16))
API cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = HANDLE(cudaStream_t); return 0; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = HANDLE(cudaStream_t); return 0; }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { touch("a stream"); *s = HANDLE(cudaStream_t); return 0; }
API cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return 0; }
API cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
API cudaError_t cudaStreamSynchronize(cudaStream_t s) { wait_for_others(); ADD(SYNC, 1); if (hook) hook("stream sync", 0); return 0; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *st) { *st = cudaStreamCaptureStatusNone; return 0; }
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *st, unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  *st = cudaStreamCaptureStatusNone; if (id) *id = 0; if (g) *g = 0; if (d) *d = 0; if (e) *e = 0; if (n) *n = 0; return 0; }
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) { return cudaErrorNotSupported; }
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { return cudaErrorNotSupported; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *d) { f(d); return 0; }
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *d, unsigned fl) { f(s, 0, d); return 0; }
API cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = HANDLE(cudaEvent_t); return 0; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { touch("an event"); *e = HANDLE(cudaEvent_t); return 0; }
API cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
API cudaError_t cudaEventQuery(cudaEvent_t e) { return met() ? 0 : cudaErrorNotReady; }
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { ADD(EVENTS, 1); return 0; }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { ADD(EVENTS, 1); return 0; }
API cudaError_t cudaEventSynchronize(cudaEvent_t e) { wait_for_others(); ADD(SYNC, 1); if (hook) hook("event sync", 0); return 0; }
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }

// ---------------------------------------------------------------- kernels
static struct { const void *f; const char *name; long count; } kernels[1 << 18]; static int kernel_count;
static int slot(const void *f) { // open addressing
  unsigned h = ((uintptr_t)f >> 4) * 2654435761u >> 14;
  while (kernels[h & 0x3ffff].f && kernels[h & 0x3ffff].f != f) h++;
  return h & 0x3ffff; }
API void **__cudaRegisterFatBinary(void *b) { static void *p[2]; return p; }
API void __cudaRegisterFatBinaryEnd(void **h) {}
API void __cudaUnregisterFatBinary(void **h) {}
API char __cudaInitModule(void **h) { return 1; }
API void __cudaRegisterFunction(void **h, const char *f, char *df, const char *name, int tl, void *a, void *b, void *c, void *d, int *w) {
  int i = slot(f); kernels[i].f = f; kernels[i].name = name; kernel_count++; }
API void __cudaRegisterVar(void **h, char *v, char *a, const char *n, int e, size_t s, int c, int g) {}
static __thread struct { dim3 g, b; size_t m; void *s; } pushed;
API unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, struct CUstream_st *s) { pushed.g = g; pushed.b = b; pushed.m = m; pushed.s = s; return 0; }
API cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void *s) { *g = pushed.g; *b = pushed.b; *m = pushed.m; *(void **)s = pushed.s; return 0; }
static void launched(const void *f) { touch("a kernel"); launches_on[current_device]++; ADD(LAUNCH, 1); int i = slot(f); kernels[i].f = f; __sync_fetch_and_add(&kernels[i].count, 1); }
API cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return 0; }
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { launched(k); return 0; }
API cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { launched(f); return 0; }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { launched(f); return 0; }
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) { memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->ptxVersion = 90; a->binaryVersion = 90; a->maxDynamicSharedSizeBytes = 49152; return 0; }
API cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) { return 0; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t m, unsigned fl) { *n = 4; return 0; }
API cudaError_t cudaLibraryLoadData(cudaLibrary_t *l, const void *c, enum cudaJitOption *j, void **jv, unsigned nj, enum cudaLibraryOption *o, void **ov, unsigned no) { *l = (cudaLibrary_t)0x21; return 0; }
API cudaError_t cudaLibraryGetKernel(cudaKernel_t *k, cudaLibrary_t l, const char *n) { *k = (cudaKernel_t)0x31; return 0; }
API cudaError_t cudaLibraryUnload(cudaLibrary_t l) { return 0; }
API cudaError_t cudaProfilerStart(void) { return 0; }
API cudaError_t cudaProfilerStop(void) { return 0; }
static int driver_zero() { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned v, unsigned long long fl, enum cudaDriverEntryPointQueryResult *r) { *f = driver_zero; if (r) *r = cudaDriverEntryPointSuccess; return 0; }
API void fc_kernels(void (*each)(const char *, long)) { for (int i = 0; i < 1 << 18; i++) if (kernels[i].count) { each(kernels[i].name ? kernels[i].name : "?", kernels[i].count); } }
API void fc_kernels_reset(void) { for (int i = 0; i < 1 << 18; i++) kernels[i].count = 0; }

// ---------------------------------------------------------------- cuBLAS
API cublasStatus_t cublasCreate_v2(cublasHandle_t *h) { *h = HANDLE(cublasHandle_t); return 0; }
API cublasStatus_t cublasDestroy_v2(cublasHandle_t h) { return 0; }
API cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *m) { *m = 0; return 0; }
API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *m) { *m = 0; return 0; }
API cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t c, cudaDataType_t t) { *d = HANDLE(cublasLtMatmulDesc_t); return 0; }
API cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *d) { *d = HANDLE(cublasLtMatmulPreference_t); return 0; }
API cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *d, cudaDataType t, uint64_t r, uint64_t c, int64_t l) { *d = HANDLE(cublasLtMatrixLayout_t); return 0; }
API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B, cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D, cublasLtMatmulPreference_t p, int want, cublasLtMatmulHeuristicResult_t r[], int *got) { memset(r, 0, sizeof r[0]); *got = 1; return 0; }
API cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t o, const void *al, const void *A, cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *be, const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *al2, void *w, size_t ws, cudaStream_t s) { ADD(GEMM, 1); return 0; }
void fc_gemm(void) { ADD(GEMM, 1); }

// ---------------------------------------------------------------- NCCL
struct ncclComm { int rank, world; };
static void note(const char *what, size_t count, int type, int op) {
  if (arrived) arrived[own_rank]++;
  static const int sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  ADD(COLL, 1); ADD(COLL_BYTES, count * sizes[type]);
  if (journal) { fprintf(journal, "nccl %s count=%zu type=%d op=%d\n", what, count, type, op); fflush(journal); }
  if (hook) hook(what, count * sizes[type]);
}
API ncclResult_t ncclGetVersion(int *v) { *v = 22907; return 0; }
API ncclResult_t ncclGetUniqueId(ncclUniqueId *u) { memset(u, 7, sizeof *u); return 0; }
API const char *ncclGetErrorString(ncclResult_t r) { return "fake nccl"; }
API const char *ncclGetLastError(ncclComm_t c) { return ""; }
static ncclResult_t made(ncclComm_t *c, int n, int r) { *c = malloc(sizeof **c); (*c)->rank = r; (*c)->world = n; if (journal) { fprintf(journal, "nccl communicator rank=%d of %d\n", r, n); fflush(journal); } return 0; }
API ncclResult_t ncclCommInitRank(ncclComm_t *c, int n, ncclUniqueId u, int r) { return made(c, n, r); }
API ncclResult_t ncclCommInitRankConfig(ncclComm_t *c, int n, ncclUniqueId u, int r, ncclConfig_t *f) { return made(c, n, r); }
API ncclResult_t ncclCommInitRankScalable(ncclComm_t *c, int n, int r, int k, ncclUniqueId *u, ncclConfig_t *f) { return made(c, n, r); }
API ncclResult_t ncclCommSplit(ncclComm_t c, int color, int key, ncclComm_t *n, ncclConfig_t *f) { return made(n, c->world, c->rank); }
API ncclResult_t ncclCommInitAll(ncclComm_t *c, int n, const int *d) { return ncclInvalidUsage; }
API ncclResult_t ncclCommDestroy(ncclComm_t c) { return 0; }
API ncclResult_t ncclCommAbort(ncclComm_t c) { return 0; }
API ncclResult_t ncclCommFinalize(ncclComm_t c) { return 0; }
API ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *e) { *e = 0; return 0; }
API ncclResult_t ncclCommCount(const ncclComm_t c, int *n) { *n = c->world; return 0; }
API ncclResult_t ncclCommUserRank(const ncclComm_t c, int *r) { *r = c->rank; return 0; }
API ncclResult_t ncclGroupStart(void) { return 0; }
API ncclResult_t ncclGroupEnd(void) { return 0; }
API ncclResult_t ncclCommRegister(const ncclComm_t c, void *b, size_t n, void **h) { return 0; }
API ncclResult_t ncclCommDeregister(const ncclComm_t c, void *h) { return 0; }
// The sum of a few numbers is right if all ranks hold the same: the first all-reduce of a run, which counts the ranks, is one.
API ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c, cudaStream_t st) {
  note("nccl allreduce", n, t, o);
  for (size_t i = 0; i < n && n <= 16 && o == ncclSum; i++) {
    if (t == ncclFloat32) ((float *)r)[i] = ((const float *)s)[i] * c->world;
    if (t == ncclFloat64) ((double *)r)[i] = ((const double *)s)[i] * c->world;
  }
  return 0; }
API ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st) { note("nccl broadcast", n, t, 0); return 0; }
API ncclResult_t ncclBcast(void *b, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st) { note("nccl broadcast", n, t, 0); return 0; }
API ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st) { note("nccl allgather", n, t, 0); if (n < 4096) for (int i = 0; i < c->world; i++) memcpy((char *)r + i * n, s, n); return 0; }
API ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c, cudaStream_t st) { note("nccl reducescatter", n, t, o); return 0; }
API ncclResult_t ncclReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, int root, ncclComm_t c, cudaStream_t st) { note("nccl reduce", n, t, o); return 0; }
API ncclResult_t ncclSend(const void *s, size_t n, ncclDataType_t t, int p, ncclComm_t c, cudaStream_t st) { note("nccl send", n, t, 0); return 0; }
API ncclResult_t ncclRecv(void *s, size_t n, ncclDataType_t t, int p, ncclComm_t c, cudaStream_t st) { note("nccl recv", n, t, 0); return 0; }
API ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *s, ncclDataType_t t, ncclScalarResidence_t r, ncclComm_t c) { *op = 5; if (journal) fprintf(journal, "nccl premulsum\n"); return 0; }
API ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t c) { return 0; }
