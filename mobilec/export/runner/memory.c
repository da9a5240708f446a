// Memory on huge pages, where the system has them: one look into the page tables then serves 2 MB, which weights that
// stream through once a run feel.
#define _GNU_SOURCE
#include "runner.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20 }; // the second belongs to the first

static uint64_t whole_pages(uint64_t bytes) {
    return bytes < HUGE_PAGE ? bytes : (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

unsigned char *take_room(uint64_t bytes) {
    uint64_t spare = bytes < HUGE_PAGE ? 0 : HUGE_PAGE; // to begin with a page
    bytes = whole_pages(bytes);
    unsigned char *found = mmap(NULL, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED)
        return NULL;
    uint64_t before = spare ? -(uintptr_t)found % HUGE_PAGE : 0;
    if (before)
        munmap(found, before);
    if (spare > before)
        munmap(found + before + bytes, spare - before);
    madvise(found + before, bytes, MADV_HUGEPAGE); // where the system has none, nothing changes
    return found + before;
}

void give_room(unsigned char *room, uint64_t bytes) {
    if (room)
        munmap(room, whole_pages(bytes));
}

static bool huge_pages(void) {
    char text[64] = "";
    FILE *file = sysconf(_SC_PAGESIZE) == PAGE ? fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r") : NULL;
    if (!file)
        return false;
    bool read = fgets(text, sizeof text, file);
    fclose(file);
    return read && !strstr(text, "[never]");
}

static const unsigned char *found = weights;
static unsigned char *copy;

static void copy_weights(void) {
    if (model.weight_bytes < HUGE_PAGE || !huge_pages() || !(copy = take_room(model.weight_bytes)))
        return;
    for (uint64_t at = 0; at < model.weight_bytes; at += HUGE_PAGE) {
        uint64_t left = model.weight_bytes - at, size = left < HUGE_PAGE ? left : HUGE_PAGE;
        memcpy(copy + at, weights + at, size);
        madvise((void *)(weights + at), size, MADV_DONTNEED); // the file's pages, which nobody reads any more
    }
    mprotect(copy, model.weight_bytes, PROT_READ);
    found = copy;
}

const unsigned char *near_weights(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, copy_weights);
    return found;
}

__attribute__((destructor)) static void forget_weights(void) { give_room(copy, model.weight_bytes); }
