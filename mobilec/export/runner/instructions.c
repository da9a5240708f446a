// Whether this CPU has the instructions that kernels use.
#define _GNU_SOURCE
#include "runner.h"

#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>

// The rest of the line of a file that begins with a word; an empty text where there is none.
bool line_of(const char *path, const char *word, char *rest, size_t room) {
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    static _Thread_local char line[8192];
    bool found = false, begins = true; // longer lines come in parts
    while (!found && fgets(line, sizeof line, file)) {
        bool wanted = begins && !strncmp(line, word, strlen(word));
        begins = strchr(line, '\n') != NULL;
        if (!wanted)
            continue;
        char *begin = line + strlen(word);
        begin += strspn(begin, " \t:");
        begin[strcspn(begin, "\n")] = 0;
        snprintf(rest, room, "%s", begin);
        found = true;
    }
    fclose(file);
    return found;
}

#if defined(__aarch64__)
static bool has_instruction(const char *name) { // /proc/cpuinfo may be another machine's under an emulator
    static const struct {
        const char *name;
        int word, bit; // of the kernel's asm/hwcap.h
    } bits[] = {
        {"fp", 1, 0},        {"asimd", 1, 1},     {"aes", 1, 3},   {"atomics", 1, 8}, {"fphp", 1, 9},
        {"asimdhp", 1, 10},  {"asimdrdm", 1, 12}, {"lrcpc", 1, 15}, {"asimddp", 1, 20}, {"sve", 1, 22},
        {"asimdfhm", 1, 23}, {"sve2", 2, 1},      {"i8mm", 2, 13}, {"bf16", 2, 14},
    };
    for (size_t at = 0; at < sizeof bits / sizeof bits[0]; at++)
        if (!strcmp(bits[at].name, name))
            return getauxval(bits[at].word == 1 ? AT_HWCAP : AT_HWCAP2) >> bits[at].bit & 1;
    return true; // not one that Linux tells of
}
#else
static bool has_instruction(const char *name) {
    static char flags[8192];
    if (!flags[0] && !line_of("/proc/cpuinfo", "flags", flags, sizeof flags))
        return true; // not told; an illegal instruction will be
    size_t length = strlen(name);
    for (const char *at = flags; (at = strstr(at, name)); at += length)
        if ((at == flags || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return true;
    return false;
}
#endif

const char *missing_instruction(void) {
    for (const char *const *name = model.instructions; *name; name++)
        if (!has_instruction(*name))
            return *name;
    return NULL;
}
