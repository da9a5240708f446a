// A model as a library: what `mobilec export --to tvm` writes as model.so, seen from C.
//
//     mobilec_instance *it = mobilec_open(2);                      // two threads, the caller's being one of them
//     if (!it || mobilec_run(it, &image, &logits, NULL))
//         puts(mobilec_failure());
//     mobilec_close(it);
//
// Numbers are float32, tensors without gaps, in the order of the model's inputs and outputs; manifest.json beside the
// library names them and gives their shapes. An instance serves one thread at a time; several run side by side.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOBILEC_VERSION 1 // of this interface

typedef struct mobilec_instance mobilec_instance;

int mobilec_version(void);
const char *mobilec_missing_instruction(void); // that kernels use and this CPU lacks, or NULL: then nothing may be run

mobilec_instance *mobilec_open(int threads); // NULL: mobilec_failure
void mobilec_close(mobilec_instance *);

// 0, or -1: mobilec_failure. Inputs are read where they lie. Where call_ns is given, the nanoseconds of each kernel's call are added to it.
int mobilec_run(mobilec_instance *, const float *const *inputs, float *const *outputs, int64_t *call_ns);
const char *mobilec_failure(void); // of the calling thread's last call that failed: one line

uint32_t mobilec_input_count(void);
uint32_t mobilec_output_count(void);
uint64_t mobilec_input_elements(uint32_t input);
uint64_t mobilec_output_elements(uint32_t output);
uint32_t mobilec_call_count(void); // kernels of a run
const char *mobilec_call_kernel(uint32_t call);

#ifdef __cplusplus
}
#endif
