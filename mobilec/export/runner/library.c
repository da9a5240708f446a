// The library's interface: see mobilec.h.
#include "mobilec.h"
#include "runner.h"

#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int mobilec_version(void) { return MOBILEC_VERSION; }
EXPORTED const char *mobilec_failure(void) { return failure; }
EXPORTED const char *mobilec_missing_instruction(void) { return missing_instruction(); }

EXPORTED mobilec_instance *mobilec_open(int threads) {
    return (mobilec_instance *)instance_open(threads, NULL, 0);
}

EXPORTED void mobilec_close(mobilec_instance *instance) { instance_close((Instance *)instance); }

EXPORTED int mobilec_run(mobilec_instance *opened, const float *const *inputs, float *const *outputs, int64_t *call_ns) {
    Instance *instance = (Instance *)opened;
    uint64_t bytes;
    for (uint32_t at = 0; at < model.input_count; at++)
        instance_take(instance, at, inputs[at]);
    if (!instance_run(instance, call_ns))
        return -1;
    for (uint32_t at = 0; at < model.output_count; at++) {
        const float *place = instance_output(instance, at, &bytes);
        memcpy(outputs[at], place, bytes);
    }
    return 0;
}

static uint64_t elements(const Port *port) { return (uint64_t)model.regions[port->region].elements; }

EXPORTED uint32_t mobilec_input_count(void) { return model.input_count; }
EXPORTED uint32_t mobilec_output_count(void) { return model.output_count; }
EXPORTED uint64_t mobilec_input_elements(uint32_t at) { return elements(&model.inputs[at]); }
EXPORTED uint64_t mobilec_output_elements(uint32_t at) { return elements(&model.outputs[at]); }
EXPORTED uint32_t mobilec_call_count(void) { return model.call_count; }
EXPORTED const char *mobilec_call_kernel(uint32_t at) { return model.calls[at].kernel; }
