// NCCL: every call is written into the journal.
#include <nccl.h>
#include "standin.h"

struct ncclComm {
  int rank, world;
};
static const int sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; // bytes, by ncclDataType_t

// Count a collective, tell the ranks that wait for it (FAKECUDA_MEET), and write it into the journal.
static void note(const char *what, size_t count, int type, int op) {
  if (arrived) arrived[own_rank]++;
  ADD(COLLECTIVES, 1);
  ADD(COLLECTIVE_BYTES, count * sizes[type]);
  if (journal) {
    fprintf(journal, "nccl %s count=%zu type=%d op=%d\n", what, count, type, op);
    fflush(journal);
  }
}

API ncclResult_t ncclGetVersion(int *v) {
  *v = 22907;
  return 0;
}

API ncclResult_t ncclGetUniqueId(ncclUniqueId *u) {
  memset(u, 7, sizeof *u);
  return 0;
}

API const char *ncclGetErrorString(ncclResult_t r) { return "fake nccl"; }
API const char *ncclGetLastError(ncclComm_t c) { return ""; }

// ---- Communicators

static ncclResult_t made(ncclComm_t *c, int n, int r) {
  *c = malloc(sizeof **c);
  (*c)->rank = r;
  (*c)->world = n;
  if (journal) {
    fprintf(journal, "nccl communicator rank=%d of %d\n", r, n);
    fflush(journal);
  }
  return 0;
}

API ncclResult_t ncclCommInitRank(ncclComm_t *c, int n, ncclUniqueId u, int r) { return made(c, n, r); }

API ncclResult_t ncclCommInitRankConfig(ncclComm_t *c, int n, ncclUniqueId u, int r, ncclConfig_t *f) {
  return made(c, n, r);
}

API ncclResult_t ncclCommInitRankScalable(ncclComm_t *c, int n, int r, int k, ncclUniqueId *u,
                                          ncclConfig_t *f) {
  return made(c, n, r);
}

// How many ranks share a color is not known here.
API ncclResult_t ncclCommSplit(ncclComm_t c, int color, int key, ncclComm_t *n, ncclConfig_t *f) {
  return ncclInvalidUsage;
}

API ncclResult_t ncclCommInitAll(ncclComm_t *c, int n, const int *d) { return ncclInvalidUsage; }
API ncclResult_t ncclCommDestroy(ncclComm_t c) { return 0; }
API ncclResult_t ncclCommAbort(ncclComm_t c) { return 0; }
API ncclResult_t ncclCommFinalize(ncclComm_t c) { return 0; }

API ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *e) {
  *e = 0;
  return 0;
}

API ncclResult_t ncclCommCount(const ncclComm_t c, int *n) {
  *n = c->world;
  return 0;
}

API ncclResult_t ncclCommUserRank(const ncclComm_t c, int *r) {
  *r = c->rank;
  return 0;
}

API ncclResult_t ncclGroupStart(void) { return 0; }
API ncclResult_t ncclGroupEnd(void) { return 0; }
API ncclResult_t ncclCommRegister(const ncclComm_t c, void *b, size_t n, void **h) { return 0; }
API ncclResult_t ncclCommDeregister(const ncclComm_t c, void *h) { return 0; }

// ---- Collectives: written into the journal, with the results that they have if all ranks hold the same

// Larger sums are this rank's own part. The first all-reduce of a run counts the ranks.
API ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o,
                               ncclComm_t c, cudaStream_t st) {
  note("allreduce", n, t, o);
  move(r, s, n * sizes[t]);
  for (size_t i = 0; i < n && n <= 16 && o == ncclSum; i++) {
    if (t == ncclFloat32) ((float *)r)[i] = ((const float *)s)[i] * c->world;
    if (t == ncclFloat64) ((double *)r)[i] = ((const double *)s)[i] * c->world;
  }
  return 0;
}

API ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                               cudaStream_t st) {
  note("broadcast", n, t, 0);
  move(r, s, n * sizes[t]);
  return 0;
}

API ncclResult_t ncclBcast(void *b, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st) {
  note("broadcast", n, t, 0);
  return 0;
}

API ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c,
                               cudaStream_t st) {
  note("allgather", n, t, 0);
  size_t part = n * sizes[t];
  for (int i = 0; i < c->world; i++) move((char *)r + i * part, s, part);
  return 0;
}

API ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o,
                                   ncclComm_t c, cudaStream_t st) {
  note("reducescatter", n, t, o);
  move(r, (const char *)s + c->rank * n * sizes[t], n * sizes[t]);
  return 0;
}

API ncclResult_t ncclReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, int root,
                            ncclComm_t c, cudaStream_t st) {
  note("reduce", n, t, o);
  move(r, s, n * sizes[t]);
  return 0;
}

API ncclResult_t ncclSend(const void *s, size_t n, ncclDataType_t t, int p, ncclComm_t c, cudaStream_t st) {
  note("send", n, t, 0);
  return 0;
}

API ncclResult_t ncclRecv(void *s, size_t n, ncclDataType_t t, int p, ncclComm_t c, cudaStream_t st) {
  note("recv", n, t, 0);
  return 0;
}

API ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *s, ncclDataType_t t, ncclScalarResidence_t r,
                                          ncclComm_t c) {
  *op = 5;
  if (journal) fprintf(journal, "nccl premulsum\n");
  return 0;
}

API ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t c) { return 0; }
