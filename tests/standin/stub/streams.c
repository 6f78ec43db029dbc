// Streams and events: what is put on a stream is done at once, but for the collectives of other ranks.
#include "standin.h"

// ---- Streams

API cudaError_t cudaStreamCreate(cudaStream_t *s) {
  *s = HANDLE(cudaStream_t);
  return 0;
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) {
  *s = HANDLE(cudaStream_t);
  return 0;
}

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
  touch("a stream");
  *s = HANDLE(cudaStream_t);
  return 0;
}

API cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }

API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) {
  *p = 0;
  return 0;
}

API cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }

API cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  wait_for_device();
  return 0;
}

API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
// ---- Graphs: nothing is ever captured

API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *st) {
  *st = cudaStreamCaptureStatusNone;
  return 0;
}

API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *st,
                                         unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **d,
                                         const cudaGraphEdgeData **e, size_t *n) {
  *st = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (g) *g = 0;
  if (d) *d = 0;
  if (e) *e = 0;
  if (n) *n = 0;
  return 0;
}

API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }

API cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  return cudaErrorNotSupported;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { return cudaErrorNotSupported; }
// ---- Calls of the host, made at once

API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *d) {
  f(d);
  return 0;
}

API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *d, unsigned fl) {
  f(s, 0, d);
  return 0;
}

// ---- Events: one is over when all ranks have met

API cudaError_t cudaEventCreate(cudaEvent_t *e) {
  *e = HANDLE(cudaEvent_t);
  return 0;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) {
  touch("an event");
  *e = HANDLE(cudaEvent_t);
  return 0;
}

API cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
API cudaError_t cudaEventQuery(cudaEvent_t e) { return met() ? 0 : cudaErrorNotReady; }

API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  ADD(EVENTS, 1);
  return 0;
}

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) {
  ADD(EVENTS, 1);
  return 0;
}

API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  wait_for_device();
  return 0;
}

API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = 1;
  return 0;
}
