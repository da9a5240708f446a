// A program that runs one model: kernels compiled by TVM, called in a fixed order on fixed places of one memory.
// What a model is comes from plan.c, which is written at export; everything else is the same for all.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <tvm/ffi/c_api.h>

// --- the model (plan.c, weights.S) ----------------------------------------------------------------------------------

enum place { IN_ARENA, IN_WEIGHTS };

typedef struct {
    enum place place;
    uint64_t offset;  // bytes, a multiple of 64
    int64_t elements; // float32
} Region;

typedef struct {
    const char *kernel; // an identifier
    TVMFFISafeCallType function;
    uint32_t first, count; // of its arguments
} Call;

typedef struct {
    const char *json; // {"name": ..., "shape": ..., "dtype": ...}
    uint32_t region;
} Port;

typedef struct {
    const char *facts; // a JSON object's members, without braces
    const Region *regions;
    const Call *calls;
    const uint32_t *arguments; // regions, call after call
    const Port *inputs, *outputs;
    uint32_t region_count, call_count, input_count, output_count;
    uint64_t arena_bytes;
    const char *const *instructions; // that kernels use, as Linux calls them, up to NULL
} Model;

extern const Model model;
extern const unsigned char weights[];

// --- running (model.c) ----------------------------------------------------------------------------------------------

typedef struct {
    int64_t start_ns, duration_ns;
} Sample;

// Where a failure is told: one line. All functions below that give false have filled it.
extern char failure[512];
bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

bool model_open(void);
bool model_run(int64_t *call_ns); // the time of each call is added to call_ns, which may be NULL
float *input_data(uint32_t index, uint64_t *bytes);
const float *output_data(uint32_t index, uint64_t *bytes);
void fill_inputs(uint64_t seed);
int64_t now_ns(void); // CLOCK_MONOTONIC

// --- threads (pool.c) -----------------------------------------------------------------------------------------------

bool pool_open(int threads, const int *cores, int core_count); // core_count 0: wherever the system likes
int pool_threads(void);

// --- the machine (facts.c) ------------------------------------------------------------------------------------------

const char *missing_instruction(void); // the first that this CPU lacks, or NULL
int usable_cores(void); // when first asked
int64_t resident_bytes(bool highest);

// --- JSON (json.c): one text, written out whole ---------------------------------------------------------------------

void json_raw(const char *format, ...) __attribute__((format(printf, 1, 2)));
void json_string(const char *text);
void json_base64(const void *data, uint64_t bytes);
void json_number(double value); // null for NaN and infinities
bool json_flush(void);          // writes the text and a newline, and forgets it
void json_forget(void);

void json_facts(void); // members of an object: what does not change
void json_state(void); // and what does
