// What the parts of the stand-in share: counters, the current device, the journal, and waiting for other
// ranks.
#pragma once
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cuda_runtime_api.h>

#define API __attribute__((visibility("default")))
#define DEVICES 64 // at most

// tests/standin/counters.py names them in this order.
enum {
  LAUNCHES,
  PRODUCTS,
  TO_DEVICE,
  TO_HOST,
  ON_DEVICE,
  BYTES_TO_DEVICE,
  BYTES_TO_HOST,
  WAITS,
  ALLOCATIONS,
  FREES,
  COLLECTIVES,
  COLLECTIVE_BYTES,
  EVENTS,
  FILLS,
  COUNTERS
};
extern long counters[COUNTERS];
#define ADD(counter, n) __sync_fetch_and_add(&counters[counter], (n))

extern long memory_bytes;           // of each device
extern int devices;                 // how many there are
extern __thread int current_device; // as in CUDA, each thread has its own
extern FILE *journal;               // FAKECUDA_JOURNAL, or 0
extern int own_rank;
extern volatile long *arrived; // FAKECUDA_MEET: of each rank, the collectives it has come to; or 0

// Make the primary context of the current device unless it is there: about 500 MB on a real GPU.
void touch(const char *why);

// Whether all ranks have come to the collectives that this one has come to.
int met(void);

// Wait for the device: counted, and as long as the other ranks take to come to a collective.
void wait_for_device(void);

// Copy n bytes, and fill n elements of a size: really up to 1 MiB, with zeros beyond.
void move(void *to, const void *from, size_t n);
void fill(char *p, const char *value, size_t size, size_t n);

// A new number for what callers only hand back: streams, events, descriptions.
#define HANDLE(type) ((type)(uintptr_t)new_handle())
long new_handle(void);
