// What the machine says of itself, as far as it lets anybody read it. A member that cannot be read is left out.
#define _GNU_SOURCE
#include "runner.h"

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 256, MOST = 512 };

static bool first_line(const char *path, char line[LINE]) {
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool read = fgets(line, LINE, file) != NULL;
    fclose(file);
    if (read)
        line[strcspn(line, "\n")] = 0;
    return read && line[0];
}

int64_t resident_bytes(bool highest) {
    char text[LINE];
    return line_of("/proc/self/status", highest ? "VmHWM:" : "VmRSS:", text, sizeof text) ? atoll(text) * 1024 : -1;
}

int usable_cores(void) {
    static int count;
    cpu_set_t set;
    if (!count)
        count = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return count;
}

// --- lists of files of one kind -------------------------------------------------------------------------------------

static int by_number(const void *one, const void *other) { return *(const int *)one - *(const int *)other; }

// The numbers N of entries prefixN of a folder, in order.
static int numbered(const char *folder, const char *prefix, int found[MOST]) {
    DIR *directory = opendir(folder);
    int count = 0;
    size_t length = strlen(prefix);
    for (struct dirent *entry; directory && count < MOST && (entry = readdir(directory));)
        if (!strncmp(entry->d_name, prefix, length) && isdigit((unsigned char)entry->d_name[length]))
            found[count++] = atoi(entry->d_name + length);
    if (directory)
        closedir(directory);
    qsort(found, (size_t)count, sizeof *found, by_number);
    return count;
}

typedef struct {
    const char *member, *folder, *prefix, *name, *value; // files below folder/prefixN; name NULL: N itself
    bool is_text;
} List;

// "member": [{"name": ..., "value": ...}, ...] of all that can be read
static void json_list(const List *list) {
    int found[MOST], told = 0;
    int count = numbered(list->folder, list->prefix, found);
    for (int at = 0; at < count; at++) {
        char path[2 * LINE], name[LINE], value[LINE];
        snprintf(path, sizeof path, "%s/%s%d/%s", list->folder, list->prefix, found[at], list->value);
        if (!first_line(path, value))
            continue;
        snprintf(path, sizeof path, "%s/%s%d/%s", list->folder, list->prefix, found[at], list->name ? list->name : "");
        if (!list->name || !first_line(path, name))
            snprintf(name, sizeof name, "%s%d", list->prefix, found[at]);
        json_raw(told++ ? ", " : "");
        if (told == 1)
            json_raw(", \"%s\": [", list->member);
        json_raw("{\"name\": ");
        json_string(name);
        json_raw(", \"value\": ");
        if (list->is_text)
            json_string(value);
        else
            json_raw("%lld", atoll(value));
        json_raw("}");
    }
    if (told)
        json_raw("]");
}

static void json_word(const char *member, const char *text) {
    json_raw(", \"%s\": ", member);
    json_string(text);
}

static void json_memory(const char *member, const char *word) {
    char text[LINE];
    if (line_of("/proc/meminfo", word, text, sizeof text))
        json_raw(", \"%s\": %lld", member, atoll(text) * 1024);
}

void json_facts(int threads) {
    struct utsname system = {0};
    uname(&system);
    json_raw("%s, \"threads\": %d, \"cores\": %ld, \"usable_cores\": %d", model.facts, threads,
             sysconf(_SC_NPROCESSORS_CONF), usable_cores());
    json_word("machine", system.machine);
    json_word("system", system.sysname);
    json_word("release", system.release);
    char text[LINE];
    if (line_of("/proc/cpuinfo", "model name", text, sizeof text) || line_of("/proc/cpuinfo", "Hardware", text, LINE) ||
        first_line("/proc/device-tree/model", text))
        json_word("processor", text);
    json_memory("memory_bytes", "MemTotal:");
    static const List lists[] = {
        {"highest_khz", "/sys/devices/system/cpu", "cpu", NULL, "cpufreq/cpuinfo_max_freq", false},
        {"part", "/sys/devices/system/cpu", "cpu", NULL, "regs/identification/midr_el1", true},
    };
    for (size_t at = 0; at < sizeof lists / sizeof lists[0]; at++)
        json_list(&lists[at]);
}

void json_state(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    json_raw("\"time_s\": %lld, \"monotonic_ns\": %lld", (long long)time.tv_sec, (long long)now_ns());
    char text[LINE];
    if (first_line("/proc/loadavg", text))
        json_raw(", \"load_1min\": %.2f", atof(text));
    json_memory("available_memory_bytes", "MemAvailable:");
    if (line_of("/proc/stat", "cpu ", text, sizeof text)) {
        long long ticks[8] = {0}, sum = 0;
        char *at = text;
        for (int column = 0; column < 8; column++)
            sum += ticks[column] = strtoll(at, &at, 10);
        double second = (double)sysconf(_SC_CLK_TCK);
        json_raw(", \"cpu_s\": %.2f, \"steal_s\": %.2f", (double)sum / second, (double)ticks[7] / second);
    }
    static const List lists[] = {
        {"governors", "/sys/devices/system/cpu", "cpu", NULL, "cpufreq/scaling_governor", true},
        {"khz", "/sys/devices/system/cpu", "cpu", NULL, "cpufreq/scaling_cur_freq", false},
        {"limit_khz", "/sys/devices/system/cpu", "cpu", NULL, "cpufreq/scaling_max_freq", false},
        {"core_throttles", "/sys/devices/system/cpu", "cpu", NULL, "thermal_throttle/core_throttle_count", false},
        {"millidegrees", "/sys/class/thermal", "thermal_zone", "type", "temp", false},
        {"cooling", "/sys/class/thermal", "cooling_device", "type", "cur_state", false},
    };
    for (size_t at = 0; at < sizeof lists / sizeof lists[0]; at++)
        json_list(&lists[at]);
    if (first_line("/sys/devices/platform/soc/soc:firmware/get_throttled", text)) // Raspberry Pi
        json_word("throttled_bits", text);
    if (first_line("/sys/class/power_supply/battery/status", text) || first_line("/sys/class/power_supply/BAT0/status", text))
        json_word("battery", text);
}
