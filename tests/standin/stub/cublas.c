// What cuBLAS and cuBLASLt have to answer; cublas_stubs.c has all that only succeed.
#include <cublasLt.h>
#include <cublas_v2.h>
#include "standin.h"

API cublasStatus_t cublasCreate_v2(cublasHandle_t *h) {
  *h = HANDLE(cublasHandle_t);
  return 0;
}

API cublasStatus_t cublasDestroy_v2(cublasHandle_t h) { return 0; }

API cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *m) {
  *m = 0;
  return 0;
}

API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *m) {
  *m = 0;
  return 0;
}

API cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t c,
                                            cudaDataType_t t) {
  *d = HANDLE(cublasLtMatmulDesc_t);
  return 0;
}

API cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *d) {
  *d = HANDLE(cublasLtMatmulPreference_t);
  return 0;
}

API cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *d, cudaDataType t, uint64_t r,
                                              uint64_t c, int64_t l) {
  *d = HANDLE(cublasLtMatrixLayout_t);
  return 0;
}

API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t o,
                                                  cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                                  cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                                  cublasLtMatmulPreference_t p, int want,
                                                  cublasLtMatmulHeuristicResult_t r[], int *got) {
  memset(r, 0, sizeof r[0]);
  *got = 1;
  return 0;
}

API cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t o, const void *al, const void *A,
                                  cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b,
                                  const void *be, const void *C, cublasLtMatrixLayout_t c, void *D,
                                  cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *al2, void *w,
                                  size_t ws, cudaStream_t s) {
  ADD(PRODUCTS, 1);
  return 0;
}

void count_product(void) { ADD(PRODUCTS, 1); }
