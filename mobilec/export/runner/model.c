// The model in this process: memory of its own for each instance, its calls.
#define _GNU_SOURCE
#include "runner.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct Instance {
    unsigned char *arena;
    DLTensor *tensors; // one a region
    TVMFFIAny *given;  // arguments of all calls
    Pool *pool;
};

_Thread_local char failure[FAILURE];

bool fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    for (char *c = failure; *c; c++)
        if ((unsigned char)*c < 32)
            *c = ' ';
    return false;
}

int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static size_t arena_bytes(void) { return model.arena_bytes ? model.arena_bytes : 1; }

static bool make_room(Instance *instance) {
    uint32_t arguments = 0;
    for (uint32_t at = 0; at < model.call_count; at++)
        arguments += model.calls[at].count;
    instance->tensors = calloc(model.region_count + 1, sizeof *instance->tensors);
    instance->given = calloc(arguments + 1, sizeof *instance->given);
    instance->arena = take_room(arena_bytes());
    if (!instance->arena || !instance->tensors || !instance->given)
        return fail("no memory: the model works in %llu bytes", (unsigned long long)model.arena_bytes);
    const unsigned char *kept = near_weights();
    for (uint32_t at = 0; at < model.region_count; at++) {
        const Region *region = &model.regions[at];
        const unsigned char *base = region->place == IN_ARENA ? instance->arena : kept;
        instance->tensors[at] = (DLTensor){
            .data = (void *)(base + region->offset),
            .device = {kDLCPU, 0},
            .ndim = 1,
            .dtype = {kDLFloat, 32, 1},
            .shape = (int64_t *)&region->elements,
        };
    }
    for (uint32_t at = 0; at < arguments; at++) {
        instance->given[at].type_index = kTVMFFIDLTensorPtr;
        instance->given[at].v_ptr = &instance->tensors[model.arguments[at]];
    }
    return true;
}

Instance *instance_open(int threads, const int *cores, int core_count) {
    Instance *instance = calloc(1, sizeof *instance);
    if (!instance)
        return fail("no memory"), NULL;
    if (make_room(instance) && (instance->pool = pool_open(threads, cores, core_count)))
        return instance;
    instance_close(instance);
    return NULL;
}

void instance_close(Instance *instance) {
    if (!instance)
        return;
    pool_close(instance->pool);
    give_room(instance->arena, arena_bytes());
    free(instance->tensors);
    free(instance->given);
    free(instance);
}

bool instance_run(Instance *instance, int64_t *call_ns) {
    pool_use(instance->pool);
    int64_t before = call_ns ? now_ns() : 0;
    for (uint32_t at = 0; at < model.call_count; at++) {
        const Call *call = &model.calls[at];
        TVMFFIAny result = {0};
        failure[0] = 0;
        if (call->function(NULL, instance->given + call->first, (int32_t)call->count, &result)) {
            char reason[400];
            snprintf(reason, sizeof reason, "%s", failure[0] ? failure : "no reason given");
            return fail("kernel %s: %s", call->kernel, reason);
        }
        if (call_ns) {
            int64_t after = now_ns();
            call_ns[at] += after - before;
            before = after;
        }
    }
    return true;
}

static float *region_data(Instance *instance, uint32_t index, uint64_t *bytes) {
    *bytes = (uint64_t)model.regions[index].elements * sizeof(float);
    return instance->tensors[index].data;
}

float *instance_input(Instance *instance, uint32_t index, uint64_t *bytes) {
    return region_data(instance, model.inputs[index].region, bytes);
}

void instance_take(Instance *instance, uint32_t index, const float *data) {
    instance->tensors[model.inputs[index].region].data = (void *)data;
}

const float *instance_output(Instance *instance, uint32_t index, uint64_t *bytes) {
    return region_data(instance, model.outputs[index].region, bytes);
}

void instance_fill(Instance *instance, uint64_t seed) { // sums of three uniform numbers: mean 0, variance 1
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (uint32_t input = 0; input < model.input_count; input++) {
        uint64_t bytes;
        float *data = instance_input(instance, input, &bytes);
        for (uint64_t at = 0; at < bytes / sizeof(float); at++) {
            float sum = 0;
            for (int draw = 0; draw < 3; draw++) {
                state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                sum += (float)(state >> 40) / (1 << 23) - 1;
            }
            data[at] = sum;
        }
    }
}
