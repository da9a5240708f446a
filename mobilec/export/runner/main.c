// The command line, and the conversation of `--serve`.
#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_CORES = 256, MOST_FILES = 16, EXIT_USAGE = 2, EXIT_CHECK = 3 };
static const int64_t LOOK_UP_NS = 100000000; // how often a long run looks whether anybody still listens

static struct {
    bool serve, per_op, output;
    int threads, core_count, cores[MOST_CORES];
    int64_t runs, warmup_ns;
    uint64_t seed;
    double tolerance;
    const char *inputs[MOST_FILES], *checks[MOST_FILES];
    uint32_t input_count, check_count;
} options = {.runs = 100, .warmup_ns = 500000000, .tolerance = 1e-4};

typedef struct {
    int64_t start_ns, duration_ns;
} Sample;

static Instance *instance;
static int64_t load_ns, baseline_bytes;
static Sample *samples;
static size_t sample_room;

static void json_error(const char *kind, const char *message) {
    json_raw("{\"error\": {\"kind\": \"%s\", \"message\": ", kind);
    json_string(message);
    json_raw(", \"hint\": \"\", \"detail\": \"\"}}");
    json_flush();
}

static void end_of_an_illegal_instruction(int number) {
    (void)number;
    static const char message[] = "{\"error\": {\"kind\": \"BackendUnavailable\", \"message\": \"this CPU lacks an "
                                  "instruction that the kernels use\", \"hint\": \"export with --cpu for an older one\", "
                                  "\"detail\": \"\"}}\n";
    (void)!write(1, message, sizeof message - 1);
    _exit(1);
}

// --- timing ---------------------------------------------------------------------------------------------------------

static void end_if_alone(void) {
    struct pollfd answers = {.fd = 1};
    if (poll(&answers, 1, 0) > 0 && answers.revents & (POLLHUP | POLLERR | POLLNVAL))
        _exit(0);
}

// At least so many runs, at least so long.
static bool run_timed(int64_t runs, int64_t span_ns, size_t *count) {
    int64_t begin = now_ns(), looked = begin;
    for (*count = 0; *count < (size_t)runs || now_ns() - begin < span_ns; ++*count) {
        if (*count == sample_room) {
            size_t wanted = sample_room * 2 + 4096;
            Sample *grown = realloc(samples, wanted * sizeof *samples);
            if (!grown)
                return fail("no memory for %zu samples", wanted);
            samples = grown;
            sample_room = wanted;
        }
        int64_t start = now_ns();
        if (!instance_run(instance, NULL))
            return false;
        int64_t end = now_ns();
        samples[*count] = (Sample){start, end - start};
        if (end - looked > LOOK_UP_NS) {
            end_if_alone();
            looked = end;
        }
    }
    return true;
}

static void json_samples(size_t count) {
    json_raw("\"start_ns\": [");
    for (size_t at = 0; at < count; at++)
        json_raw("%s%lld", at ? ", " : "", (long long)samples[at].start_ns);
    json_raw("], \"duration_ns\": [");
    for (size_t at = 0; at < count; at++)
        json_raw("%s%lld", at ? ", " : "", (long long)samples[at].duration_ns);
    json_raw("]");
}

static int by_size(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

// Mean time of each call over the faster half of the runs: the slower one holds what else the machine did.
static bool json_ops(int64_t runs) {
    uint32_t calls = model.call_count;
    if (runs < 1 || runs > 100000)
        return fail("ops: expected 1 to 100000 runs, found %lld", (long long)runs);
    int64_t *times = calloc((size_t)runs * calls + 1, sizeof *times);
    int64_t *whole = calloc((size_t)runs, sizeof *whole), *sorted = calloc((size_t)runs, sizeof *sorted);
    bool good = times && whole && sorted ? true : fail("no memory for the times of %lld runs", (long long)runs);
    for (int64_t run = 0; good && run < runs; run++) {
        int64_t before = now_ns();
        good = instance_run(instance, times + run * calls);
        whole[run] = sorted[run] = now_ns() - before;
        end_if_alone();
    }
    if (good) {
        qsort(sorted, (size_t)runs, sizeof *sorted, by_size);
        int64_t limit = sorted[(runs - 1) / 2], kept = 0, sum = 0;
        for (int64_t run = 0; run < runs; run++)
            if (whole[run] <= limit)
                kept++, sum += whole[run];
        json_raw("\"runs\": %lld, \"whole_ns\": %lld, \"ops\": [", (long long)kept, (long long)(sum / kept));
        for (uint32_t call = 0; call < calls; call++) {
            int64_t spent = 0;
            for (int64_t run = 0; run < runs; run++)
                if (whole[run] <= limit)
                    spent += times[run * calls + call];
            json_raw("%s{\"name\": ", call ? ", " : "");
            json_string(model.calls[call].kernel);
            json_raw(", \"op\": ");
            json_string(model.calls[call].kernel);
            json_raw(", \"scope\": \"\", \"time_ns\": %lld}", (long long)(spent / kept));
        }
        json_raw("]");
    }
    free(times);
    free(whole);
    free(sorted);
    return good;
}

// --- numbers --------------------------------------------------------------------------------------------------------

typedef struct {
    double error, largest;
    uint64_t bad; // NaN on one side only, or unlike infinities
} Difference;

static Difference difference(const float *found, const float *wanted, uint64_t count) {
    Difference all = {0};
    for (uint64_t at = 0; at < count; at++) {
        double ours = found[at], theirs = wanted[at];
        if (!isfinite(ours) || !isfinite(theirs)) {
            all.bad += !(isnan(ours) ? isnan(theirs) : ours == theirs);
            continue;
        }
        all.error = fmax(all.error, fabs(ours - theirs));
        all.largest = fmax(all.largest, fabs(theirs));
    }
    return all;
}

static void json_difference(Difference all) {
    json_raw("\"max_abs_error\": ");
    json_number(all.error);
    json_raw(", \"largest\": ");
    json_number(all.largest);
    json_raw(", \"bad\": %llu", (unsigned long long)all.bad);
}

static void json_ports(const char *member, const Port *ports, uint32_t count) {
    json_raw(", \"%s\": [", member);
    for (uint32_t at = 0; at < count; at++)
        json_raw("%s%s", at ? ", " : "", ports[at].json);
    json_raw("]");
}

// --- serving --------------------------------------------------------------------------------------------------------

static bool take_bytes(void *to, uint64_t bytes) { // to NULL: leave them out
    char rest[4096];
    while (bytes) {
        uint64_t part = to || bytes < sizeof rest ? bytes : sizeof rest;
        size_t got = fread(to ? to : rest, 1, part, stdin);
        if (!got)
            return false;
        to = to ? (char *)to + got : NULL;
        bytes -= got;
    }
    return true;
}

// `feed` and `check`: the bytes that follow belong to an input or stand for an output.
static bool take_tensor(bool is_input, unsigned long long index, unsigned long long bytes) {
    uint64_t wanted = 0;
    uint32_t count = is_input ? model.input_count : model.output_count;
    float *data = NULL, *held = NULL;
    if (index < count)
        data = is_input ? instance_input(instance, (uint32_t)index, &wanted) : (float *)instance_output(instance, (uint32_t)index, &wanted);
    bool fits = index < count && bytes == wanted;
    if (fits && !is_input)
        fits = (held = malloc(bytes + 1)) != NULL;
    if (!take_bytes(fits ? (is_input ? data : held) : NULL, bytes))
        exit(0);
    if (index >= count)
        return fail("there is no %s %llu, the model has %u", is_input ? "input" : "output", index, count);
    if (!fits)
        return fail("%s %llu has %llu bytes, found %llu", is_input ? "input" : "output", index,
                    (unsigned long long)wanted, bytes);
    if (held) {
        json_difference(difference(data, held, bytes / sizeof(float)));
        free(held);
    }
    return true;
}

// The members of one answer.
static bool obey(const char *line) {
    unsigned long long one, other;
    int end = -1;
    size_t count;
#define IS(format, ...) (end = -1, sscanf(line, format "%n", __VA_ARGS__, &end), end >= 0 && !line[end])
    if (!strcmp(line, "load")) {
        const char *missing = missing_instruction();
        if (missing)
            return fail("this CPU has no %s, which the kernels use", missing);
        json_raw("\"engine\": \"native\", \"threads\": %d, \"load_ns\": %lld, \"baseline_rss_bytes\": %lld, %s",
                 options.threads, (long long)load_ns, (long long)baseline_bytes, model.facts);
        json_ports("inputs", model.inputs, model.input_count);
        json_ports("outputs", model.outputs, model.output_count);
        return true;
    }
    if (!strcmp(line, "facts"))
        return json_facts(options.threads), true;
    if (!strcmp(line, "state"))
        return json_state(), true;
    if (!strcmp(line, "memory"))
        return json_raw("\"peak_rss_bytes\": %lld", (long long)resident_bytes(true)), true;
    if (IS("feed %llu %llu", &one, &other))
        return take_tensor(true, one, other);
    if (IS("check %llu %llu", &one, &other))
        return take_tensor(false, one, other);
    if (IS("run %llu %llu", &one, &other)) {
        if (!run_timed((int64_t)one, (int64_t)other, &count))
            return false;
        return json_samples(count), true;
    }
    if (IS("ops %llu", &one))
        return json_ops((int64_t)one);
    if (IS("output %llu", &one)) {
        uint64_t bytes;
        if (one >= model.output_count)
            return fail("there is no output %llu, the model has %u", one, model.output_count);
        const float *data = instance_output(instance, (uint32_t)one, &bytes);
        json_raw("\"base64\": ");
        json_base64(data, bytes);
        return true;
    }
#undef IS
    return fail("unknown command: %.80s", line);
}

static int serve(void) {
    char *line = NULL;
    size_t room = 0;
    for (ssize_t length; (length = getline(&line, &room, stdin)) > 0;) {
        line[strcspn(line, "\r\n")] = 0;
        json_raw("{\"ok\": {");
        bool good = obey(line);
        if (good) {
            json_raw("}}");
        } else {
            json_forget();
            json_error(strcmp(line, "load") ? "BackendError" : "BackendUnavailable", failure);
            continue;
        }
        if (!json_flush())
            break;
    }
    free(line);
    return 0;
}

// --- once -----------------------------------------------------------------------------------------------------------

static bool read_file(const char *path, void *to, uint64_t bytes) {
    FILE *file = fopen(path, "re");
    if (!file)
        return fail("%s cannot be read: %s", path, strerror(errno));
    bool whole = fread(to, 1, bytes, file) == bytes && fgetc(file) == EOF;
    fclose(file);
    return whole ? true : fail("%s: expected exactly %llu bytes of float32", path, (unsigned long long)bytes);
}

static bool once(bool *checked) {
    uint64_t bytes;
    size_t count;
    if (options.input_count && options.input_count != model.input_count)
        return fail("--input: the model has %u inputs, found %u files", model.input_count, options.input_count);
    if (options.check_count && options.check_count != model.output_count)
        return fail("--check: the model has %u outputs, found %u files", model.output_count, options.check_count);
    instance_fill(instance, options.seed);
    for (uint32_t at = 0; at < options.input_count; at++) {
        float *data = instance_input(instance, at, &bytes);
        if (!read_file(options.inputs[at], data, bytes))
            return false;
    }
    json_raw("{\"facts\": {");
    json_facts(options.threads);
    json_raw("}, \"load_ns\": %lld, \"baseline_rss_bytes\": %lld", (long long)load_ns, (long long)baseline_bytes);
    json_ports("inputs", model.inputs, model.input_count);
    json_ports("outputs", model.outputs, model.output_count);
    if (!run_timed(1, 0, &count))
        return false;
    json_raw(", \"first_run_ns\": %lld", (long long)samples[0].duration_ns);
    if (!run_timed(0, options.warmup_ns, &count))
        return false;
    json_raw(", \"warmup_runs\": %zu, \"before\": {", count);
    json_state();
    json_raw("}, ");
    if (!run_timed(options.runs, 0, &count))
        return false;
    json_samples(count);
    json_raw(", \"after\": {");
    json_state();
    json_raw("}, \"peak_rss_bytes\": %lld", (long long)resident_bytes(true));
    if (options.per_op) {
        json_raw(", \"per_op\": {");
        if (!json_ops(options.runs))
            return false;
        json_raw("}");
    }
    for (uint32_t at = 0; at < options.check_count; at++) {
        const float *data = instance_output(instance, at, &bytes);
        float *wanted = malloc(bytes + 1);
        if (!wanted || !read_file(options.checks[at], wanted, bytes))
            return false;
        Difference all = difference(data, wanted, bytes / sizeof(float));
        free(wanted);
        *checked &= !all.bad && all.error <= options.tolerance * fmax(all.largest, 1e-30);
        json_raw("%s{", at ? ", " : ", \"checks\": [");
        json_difference(all);
        json_raw("}%s", at + 1 == options.check_count ? "]" : "");
    }
    for (uint32_t at = 0; options.output && at < model.output_count; at++) {
        const float *data = instance_output(instance, at, &bytes);
        json_raw("%s", at ? ", " : ", \"base64\": [");
        json_base64(data, bytes);
        json_raw("%s", at + 1 == model.output_count ? "]" : "");
    }
    json_raw("}");
    return true;
}

// --- options --------------------------------------------------------------------------------------------------------

static const char HELP[] =
    "usage: model [options]        runs the model that is inside and tells of it in JSON\n"
    "  --threads N        threads (default: the cores it may use)\n"
    "  --pin CPU[,CPU..]  bind threads to these cores, in turn\n"
    "  --runs N           timed runs (default 100)\n"
    "  --warmup-ms N      untimed runs before them, for that long (default 500)\n"
    "  --per-op           the time of each kernel too\n"
    "  --input FILE       float32 numbers of an input, one option for each; random ones without\n"
    "  --seed N           of the random ones (default 0)\n"
    "  --check FILE       what an output must be, one option for each: exit 3 where it is not\n"
    "  --tolerance X      largest error over the largest number (default 1e-4)\n"
    "  --output           the outputs of the last run, in base64\n"
    "  --serve            answer commands on standard input, a line each, until it ends\n";

static bool number(const char *text, const char *option, int64_t low, int64_t high, int64_t *found) {
    char *end;
    errno = 0;
    long long value = text ? strtoll(text, &end, 10) : 0;
    if (!text || end == text || *end || errno || value < low || value > high)
        return fail("%s: expected a whole number from %lld to %lld, found %s", option, (long long)low, (long long)high,
                    text ? text : "nothing");
    *found = value;
    return true;
}

static bool core_list(const char *text) {
    char part[16];
    for (const char *at = text ? text : ""; options.core_count < MOST_CORES; at++) {
        size_t length = strcspn(at, ",");
        int64_t core;
        snprintf(part, sizeof part, "%.*s", (int)(length < 15 ? length : 15), at);
        if (!number(part, "--pin", 0, 4095, &core))
            return false;
        options.cores[options.core_count++] = (int)core;
        at += length;
        if (!*at)
            return true;
    }
    return fail("--pin: more than %d cores", MOST_CORES);
}

static bool file_option(const char *option, const char *value, const char **files, uint32_t *count) {
    if (!value)
        return fail("%s needs a file", option);
    if (*count == MOST_FILES)
        return fail("%s: more than %d files", option, MOST_FILES);
    files[(*count)++] = value;
    return true;
}

static bool read_option(char **at, int *used) {
    const char *name = at[0], *value = at[1];
    int64_t whole;
    *used = 2;
#define NUMBER(text, low, high, to) \
    if (!strcmp(name, text)) \
        return number(value, text, low, high, &whole) && ((to), true)
    NUMBER("--threads", 1, 256, options.threads = (int)whole);
    NUMBER("--runs", 1, 100000000, options.runs = whole);
    NUMBER("--warmup-ms", 0, 86400000, options.warmup_ns = whole * 1000000);
    NUMBER("--seed", 0, INT64_MAX, options.seed = (uint64_t)whole);
#undef NUMBER
    if (!strcmp(name, "--pin"))
        return core_list(value);
    if (!strcmp(name, "--input"))
        return file_option(name, value, options.inputs, &options.input_count);
    if (!strcmp(name, "--check"))
        return file_option(name, value, options.checks, &options.check_count);
    if (!strcmp(name, "--tolerance")) {
        char *end = NULL;
        options.tolerance = value ? strtod(value, &end) : 0;
        return value && end != value && !*end && options.tolerance >= 0 ? true : fail("--tolerance: expected a number");
    }
    *used = 1;
    if (!strcmp(name, "--per-op"))
        return options.per_op = true;
    if (!strcmp(name, "--output"))
        return options.output = true;
    if (!strcmp(name, "--serve"))
        return options.serve = true;
    return fail("unknown option %.80s", name);
}

int main(int count, char **arguments) {
    int64_t begun = now_ns();
    baseline_bytes = resident_bytes(false);
    usable_cores(); // before threads are bound to some of them
    signal(SIGPIPE, SIG_IGN);
    signal(SIGILL, end_of_an_illegal_instruction);
    for (int at = 1, used; at < count; at += used) {
        if (!strcmp(arguments[at], "--help")) {
            fputs(HELP, stdout);
            return 0;
        }
        if (!read_option(&arguments[at], &used)) {
            json_error("UsageError", failure);
            return EXIT_USAGE;
        }
    }
    if (!options.threads)
        options.threads = usable_cores();
    instance = instance_open(options.threads, options.cores, options.core_count);
    if (!instance) {
        json_error("BackendError", failure);
        return 1;
    }
    instance_fill(instance, options.seed);
    load_ns = now_ns() - begun;
    if (options.serve)
        return serve();
    const char *missing = missing_instruction();
    bool checked = true;
    if (missing)
        fail("this CPU has no %s, which the kernels use", missing);
    if (missing || !once(&checked)) {
        json_forget();
        json_error(missing ? "BackendUnavailable" : "BackendError", failure);
        return 1;
    }
    if (!json_flush())
        return 1;
    return checked ? 0 : EXIT_CHECK;
}
