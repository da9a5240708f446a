// Threads that share out the loops of kernels, and the few functions that kernels call.
#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    void *sync_handle;
    int32_t num_task;
} Group; // TVMParallelGroupEnv
typedef int (*Task)(int number, Group *group, void *data);

enum { MOST_THREADS = 256, STACK_BYTES = 8 << 20, SPINS = 20000 }; // spins: kernels follow one another within microseconds
static int threads = 1;
static pthread_t workers[MOST_THREADS];

static Task task;
static void *task_data;
static _Alignas(64) atomic_uint round_now;
static _Alignas(64) atomic_int unfinished;
static _Alignas(64) atomic_int sleeping;
static atomic_int broken;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static void breathe(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void do_part(int number) {
    Group group = {NULL, threads};
    if (task(number, &group, task_data))
        atomic_store(&broken, 1);
}

static void *work(void *argument) {
    int number = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        for (int spin = 0; atomic_load_explicit(&round_now, memory_order_acquire) == seen && spin < SPINS; spin++)
            breathe();
        if (atomic_load(&round_now) == seen) {
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&sleeping, 1); // before looking again: who starts a round looks here afterwards
            while (atomic_load(&round_now) == seen)
                pthread_cond_wait(&wake, &lock);
            atomic_fetch_sub(&sleeping, 1);
            pthread_mutex_unlock(&lock);
        }
        seen++;
        do_part(number);
        atomic_fetch_sub_explicit(&unfinished, 1, memory_order_release);
    }
    return NULL;
}

static int launch(Task wanted, void *data, int count) {
    (void)count; // the loops divide themselves by the group's size
    if (threads == 1) {
        Group alone = {NULL, 1};
        return wanted(0, &alone, data);
    }
    task = wanted;
    task_data = data;
    atomic_store(&broken, 0);
    atomic_store(&unfinished, threads - 1);
    atomic_fetch_add(&round_now, 1);
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    do_part(0);
    for (int spin = 0; atomic_load_explicit(&unfinished, memory_order_acquire); spin++) {
        if (spin < SPINS)
            breathe();
        else
            sched_yield(); // fewer cores than threads
    }
    return atomic_load(&broken) ? -1 : 0;
}

bool pool_open(int wanted, const int *cores, int core_count) {
    if (wanted < 1 || wanted > MOST_THREADS)
        return fail("threads: expected 1 to %d, found %d", MOST_THREADS, wanted);
    threads = wanted;
    pthread_attr_t roomy; // C libraries differ in how much stack a thread has
    pthread_attr_init(&roomy);
    pthread_attr_setstacksize(&roomy, STACK_BYTES);
    for (int number = 0; number < wanted; number++) {
        if (number) {
            int error = pthread_create(&workers[number], &roomy, work, (void *)(intptr_t)number);
            if (error)
                return fail("thread %d cannot be started: %s", number, strerror(error));
        } else {
            workers[0] = pthread_self();
        }
        if (!core_count)
            continue;
        int core = cores[number % core_count];
        cpu_set_t only;
        CPU_ZERO(&only);
        if (core >= 0 && core < CPU_SETSIZE)
            CPU_SET(core, &only);
        int error = pthread_setaffinity_np(workers[number], sizeof only, &only);
        if (error)
            return fail("a thread cannot be bound to core %d: %s", core, strerror(error));
    }
    return true;
}

int pool_threads(void) { return threads; }

// --- what kernels call: TVM's names, through pointers that their object file holds ----------------------------------

enum { KEPT = 32, KERNEL_ALIGNMENT = 64 };
static _Thread_local struct {
    void *data;
    uint64_t bytes;
    bool taken;
} kept[KEPT];

static void *take_workspace(int device, int number, uint64_t bytes, int code, int bits) {
    (void)device, (void)number, (void)code, (void)bits;
    int place = -1;
    for (int at = 0; at < KEPT; at++) {
        if (kept[at].taken)
            continue;
        place = at;
        if (kept[at].bytes >= bytes)
            break;
    }
    if (place < 0)
        return NULL;
    if (kept[place].bytes < bytes) {
        free(kept[place].data);
        uint64_t rounded = (bytes + KERNEL_ALIGNMENT - 1) / KERNEL_ALIGNMENT * KERNEL_ALIGNMENT;
        kept[place].data = aligned_alloc(KERNEL_ALIGNMENT, rounded);
        kept[place].bytes = kept[place].data ? rounded : 0;
        if (!kept[place].data)
            return NULL;
    }
    kept[place].taken = true;
    return kept[place].data;
}

static int give_workspace(int device, int number, void *data) {
    (void)device, (void)number;
    for (int at = 0; at < KEPT; at++)
        if (kept[at].data == data && kept[at].taken) {
            kept[at].taken = false;
            return 0;
        }
    return -1;
}

__attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void *, int) = launch;
__attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = take_workspace;
__attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *) = give_workspace;

__attribute__((constructor)) static void introduce(void) { // the object file's own pointers win, and are empty
    __TVMBackendParallelLaunch = launch;
    __TVMBackendAllocWorkspace = take_workspace;
    __TVMBackendFreeWorkspace = give_workspace;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    char message[400] = "";
    for (int32_t at = 0; at < count; at++)
        if (parts[at])
            strncat(message, parts[at], sizeof message - strlen(message) - 1);
    fail("%s: %s", kind, message);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}
