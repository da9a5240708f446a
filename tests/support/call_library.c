// call_library LIBRARY THREADS: runs a model's library on what standard input holds, twice; outputs to standard output.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "mobilec.h"

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found)
        exit(fprintf(stderr, "no %s\n", name));
    return found;
}

#define FUNCTION(name) typeof(&name) name##_ = find(library, #name)

int main(int count, char **arguments) {
    void *library = count == 3 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : NULL; // every symbol is found now
    if (!library)
        return fprintf(stderr, "%s\n", dlerror());
    FUNCTION(mobilec_version);
    FUNCTION(mobilec_missing_instruction);
    FUNCTION(mobilec_open);
    FUNCTION(mobilec_run);
    FUNCTION(mobilec_close);
    FUNCTION(mobilec_failure);
    FUNCTION(mobilec_input_count);
    FUNCTION(mobilec_output_count);
    FUNCTION(mobilec_input_elements);
    FUNCTION(mobilec_output_elements);
    if (mobilec_version_() != MOBILEC_VERSION || mobilec_missing_instruction_())
        return fprintf(stderr, "not for here\n");
    float *inputs[8], *outputs[8];
    for (uint32_t at = 0; at < mobilec_input_count_(); at++) {
        size_t size = mobilec_input_elements_(at);
        inputs[at] = malloc(size * sizeof(float));
        if (fread(inputs[at], sizeof(float), size, stdin) != size)
            return fprintf(stderr, "input %u is short\n", at);
    }
    for (uint32_t at = 0; at < mobilec_output_count_(); at++)
        outputs[at] = malloc(mobilec_output_elements_(at) * sizeof(float));
    mobilec_instance *instance = mobilec_open_(atoi(arguments[2]));
    for (int run = 0; run < 2; run++)
        if (!instance || mobilec_run_(instance, (const float *const *)inputs, outputs, NULL))
            return fprintf(stderr, "%s\n", mobilec_failure_());
    mobilec_close_(instance);
    for (uint32_t at = 0; at < mobilec_output_count_(); at++)
        fwrite(outputs[at], sizeof(float), mobilec_output_elements_(at), stdout);
    return 0;
}
