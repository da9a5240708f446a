// Threads that share out the loops of kernels, and the few functions that kernels call.
//
// A loop is handed out in chunks. Every thread has a run of neighbouring chunks of its own, the same one in every loop,
// so that it finds in its caches what it wrote itself; one that is done takes from the end of the others' runs. So
// nobody waits for a thread that the system has given no core, only for a chunk that has been begun.
#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    void *sync_handle;
    int32_t num_task;
} Group; // TVMParallelGroupEnv
typedef int (*Task)(int number, Group *group, void *data);

enum {
    STACK_BYTES = 8 << 20, // C libraries differ in how much a thread has
    CHUNKS = 4,            // for each thread, about
    PARTS = 64,            // that all loops have (mobilec.export.kernels.loops)
    SPINS = 20000,         // before a thread sleeps: kernels follow one another within microseconds
};

typedef struct {
    _Alignas(64) atomic_uint_fast64_t left; // round << 32 | first chunk << 16 | end
} Share;

struct Pool {
    int threads, chunks, started;
    pid_t process; // that has the threads: one that was forked from it cannot end them
    Task task;
    void *data;
    atomic_bool ending;
    pthread_t workers[MOST_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Alignas(64) atomic_uint round;
    _Alignas(64) atomic_int finished; // chunks
    _Alignas(64) atomic_int sleeping;
    atomic_int broken;
    Share shares[MOST_THREADS];
};

typedef struct {
    Pool *pool;
    int number;
} Worker;

static _Thread_local Pool *here; // that the calling thread hands loops to

static void breathe(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// The first chunk of a share, or the last one; -1 where nothing is left of that round.
static int take(Share *share, uint32_t round, bool last) {
    uint64_t seen = atomic_load_explicit(&share->left, memory_order_relaxed);
    for (;;) {
        uint32_t first = seen >> 16 & 0xffff, end = seen & 0xffff;
        if ((uint32_t)(seen >> 32) != round || first >= end)
            return -1;
        uint64_t rest = last ? seen - 1 : seen + (1u << 16);
        if (atomic_compare_exchange_weak_explicit(&share->left, &seen, rest, memory_order_acquire, memory_order_relaxed))
            return (int)(last ? end - 1 : first);
    }
}

// A round lasts until its chunks are finished, so whoever has taken one may read what the round is.
static void help(Pool *pool, int number, uint32_t round) {
    int done = 0;
    for (int at = 0; at < pool->threads; at++) {
        Share *share = &pool->shares[(number + at) % pool->threads];
        for (int chunk; (chunk = take(share, round, at > 0)) >= 0; done++) {
            Group group = {NULL, pool->chunks};
            if (pool->task(chunk, &group, pool->data))
                atomic_store(&pool->broken, 1);
        }
    }
    if (done)
        atomic_fetch_add_explicit(&pool->finished, done, memory_order_release);
}

static void *work(void *argument) {
    Worker self = *(Worker *)argument;
    free(argument);
    Pool *pool = self.pool;
    for (uint32_t seen = 0, round;; seen = round) {
        for (int spin = 0; atomic_load_explicit(&pool->round, memory_order_acquire) == seen && spin < SPINS; spin++)
            breathe();
        if (atomic_load(&pool->round) == seen) {
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->sleeping, 1); // before looking again: who starts a round looks here afterwards
            while (atomic_load(&pool->round) == seen)
                pthread_cond_wait(&pool->wake, &pool->lock);
            atomic_fetch_sub(&pool->sleeping, 1);
            pthread_mutex_unlock(&pool->lock);
        }
        round = atomic_load_explicit(&pool->round, memory_order_acquire);
        if (pool->ending)
            return NULL;
        help(pool, self.number, round);
    }
}

static void begin_round(Pool *pool) {
    atomic_fetch_add(&pool->round, 1);
    if (atomic_load(&pool->sleeping)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static int launch(Task task, void *data, int count) {
    (void)count; // loops divide themselves by the group's size
    Pool *pool = here;
    if (!pool || pool->threads == 1) {
        Group alone = {NULL, 1};
        return task(0, &alone, data);
    }
    pool->task = task;
    pool->data = data;
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    uint32_t round = atomic_load_explicit(&pool->round, memory_order_relaxed) + 1;
    for (int at = 0; at < pool->threads; at++) {
        uint64_t first = (uint64_t)(at * pool->chunks / pool->threads);
        uint64_t end = (uint64_t)((at + 1) * pool->chunks / pool->threads);
        atomic_store_explicit(&pool->shares[at].left, (uint64_t)round << 32 | first << 16 | end, memory_order_release);
    }
    begin_round(pool);
    help(pool, 0, round);
    for (int spin = 0; atomic_load_explicit(&pool->finished, memory_order_acquire) < pool->chunks; spin++) {
        if (spin < SPINS)
            breathe();
        else
            sched_yield(); // fewer cores than threads
    }
    return atomic_exchange(&pool->broken, 0) ? -1 : 0;
}

// For the calling thread; those that it starts are bound as it is.
static bool bind(int core) {
    cpu_set_t only;
    CPU_ZERO(&only);
    if (core >= 0 && core < CPU_SETSIZE)
        CPU_SET(core, &only);
    int error = sched_setaffinity(0, sizeof only, &only) ? errno : 0;
    return error ? fail("a thread cannot be bound to core %d: %s", core, strerror(error)) : true;
}

static bool start(Pool *pool, int number) {
    pthread_attr_t roomy;
    pthread_attr_init(&roomy);
    pthread_attr_setstacksize(&roomy, STACK_BYTES);
    Worker *worker = malloc(sizeof *worker);
    int error = ENOMEM;
    if (worker) {
        *worker = (Worker){pool, number};
        error = pthread_create(&pool->workers[number], &roomy, work, worker);
        if (error)
            free(worker);
    }
    pthread_attr_destroy(&roomy);
    return error ? fail("thread %d cannot be started: %s", number, strerror(error)) : true;
}

Pool *pool_open(int threads, const int *cores, int core_count) {
    if (threads < 1 || threads > MOST_THREADS)
        return fail("threads: expected 1 to %d, found %d", MOST_THREADS, threads), NULL;
    Pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool)
        return fail("no memory for %d threads", threads), NULL;
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = threads;
    pool->process = getpid();
    int parts = PARTS / (threads * CHUNKS) > 1 ? PARTS / (threads * CHUNKS) : 1; // of a chunk
    pool->chunks = (PARTS + parts - 1) / parts;
    bool good = true;
    for (pool->started = 1; good && pool->started < threads; pool->started++)
        good = (!core_count || bind(cores[pool->started % core_count])) && start(pool, pool->started);
    pool->started -= !good;
    good = good && (!core_count || bind(cores[0]));
    if (good)
        return pool;
    char reason[FAILURE];
    memcpy(reason, failure, sizeof reason);
    pool_close(pool);
    memcpy(failure, reason, sizeof reason);
    return NULL;
}

void pool_close(Pool *pool) {
    if (!pool || pool->process != getpid())
        return;
    pool->ending = true;
    begin_round(pool);
    for (int number = 1; number < pool->started; number++)
        pthread_join(pool->workers[number], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool);
}

void pool_use(Pool *pool) { here = pool; }

// --- what kernels call: TVM's names, through pointers that their object file holds ----------------------------------

enum { KEPT = 32, KERNEL_ALIGNMENT = 64 };
typedef struct {
    void *data;
    uint64_t bytes;
    bool taken;
} Workspace;
static _Thread_local Workspace kept[KEPT];
static pthread_key_t kept_key;

static void forget(void *mine) { // at the end of a thread
    for (Workspace *each = mine; each < (Workspace *)mine + KEPT; each++)
        free(each->data);
}

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
        pthread_setspecific(kept_key, kept);
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
    pthread_key_create(&kept_key, forget);
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
