// What runs one model: kernels compiled by TVM, called in a fixed order on fixed places of one memory.
// What a model is comes from plan.c, which is written at export; everything else is the same for all. With library.c
// it becomes a library, with main.c a program.
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
    uint64_t arena_bytes, weight_bytes;
    const char *const *instructions; // that kernels use, as Linux calls them, up to NULL
} Model;

extern const Model model;
extern const unsigned char weights[];

// --- running (model.c) ----------------------------------------------------------------------------------------------

// Where a failure is told: one line, of the calling thread. All functions below that give false or NULL have filled it.
enum { FAILURE = 512 };
extern _Thread_local char failure[FAILURE];
bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

typedef struct Instance Instance; // memory and threads to run the model with; one run at a time

// core_count 0: threads run wherever the system likes. Otherwise they are bound to these cores in turn, the calling
// thread, which is one of them, to the first.
Instance *instance_open(int threads, const int *cores, int core_count);
void instance_close(Instance *);
bool instance_run(Instance *, int64_t *call_ns); // the time of each call is added to call_ns, which may be NULL
float *instance_input(Instance *, uint32_t index, uint64_t *bytes);
void instance_take(Instance *, uint32_t index, const float *data); // an input from there, which is only read
const float *instance_output(Instance *, uint32_t index, uint64_t *bytes);
void instance_fill(Instance *, uint64_t seed); // the inputs, with random numbers
int64_t now_ns(void);                          // CLOCK_MONOTONIC

// --- memory (memory.c) ----------------------------------------------------------------------------------------------

unsigned char *take_room(uint64_t bytes); // zeros; NULL where there is none
void give_room(unsigned char *, uint64_t bytes);
const unsigned char *near_weights(void); // where kernels read them: one copy for all instances, or the file itself

// --- threads (pool.c) -----------------------------------------------------------------------------------------------

enum { MOST_THREADS = 256 };
typedef struct Pool Pool;
Pool *pool_open(int threads, const int *cores, int core_count); // counting the one that calls kernels
void pool_close(Pool *);
void pool_use(Pool *); // by kernels that the calling thread calls from now on

// --- the machine (facts.c, instructions.c) --------------------------------------------------------------------------

const char *missing_instruction(void); // the first that kernels use and this CPU lacks, or NULL
int usable_cores(void);                // when first asked
int64_t resident_bytes(bool highest);
bool line_of(const char *path, const char *word, char *rest, size_t room);

// --- JSON (json.c): one text, written out whole ---------------------------------------------------------------------

void json_raw(const char *format, ...) __attribute__((format(printf, 1, 2)));
void json_string(const char *text);
void json_base64(const void *data, uint64_t bytes);
void json_number(double value); // null for NaN and infinities
bool json_flush(void);          // writes the text and a newline, and forgets it
void json_forget(void);

void json_facts(int threads); // members of an object: what does not change
void json_state(void); // and what does
