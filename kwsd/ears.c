/* The audio callback, without Python: it never waits for the interpreter lock, whatever other threads are busy with,
   and costs half. It does what Inlet.append and RingBuffer.appender do, and keeps ring.py's invariant: the index that is
   about to be reached is claimed before a sample is touched, and the end is moved after the last is in place. */

#include <stdint.h>
#include <string.h>
#include <time.h>

enum { OVERFLOWED = 2, GOES_ON = 0 }; /* PortAudio's paInputOverflow and paContinue */
enum { TIMES = 512 };                 /* as in ears.py */

typedef struct { /* an inlet's ring, and what it counts */
    char *ring;
    int64_t size, frame; /* bytes: of the ring, and of a sample of all channels */
    int64_t *end, *claimed, *unbroken_from;
    int64_t *blocks, *overflows;
    double *wrote_at; /* monotonic s */
} Ear;

typedef struct {
    const Ear *ears;
    int64_t count;
    int32_t closed, busy;
    int64_t heard;         /* blocks */
    float took_us[TIMES];  /* the last of them, block n at n % TIMES */
} Ears;

/* What Python must have been written for. */
int64_t ears_interface(void) { return (int64_t)(65536 * sizeof(Ear) + sizeof(Ears)); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void append(const Ear *e, const char *block, int64_t bytes) {
    const int64_t end = *e->end + bytes / e->frame;
    __atomic_store_n(e->claimed, end, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* before the samples */
    if (bytes > e->size) {
        block += bytes - e->size;
        bytes = e->size;
    }
    const int64_t stop = end * e->frame % e->size, tail = bytes < stop ? bytes : stop; /* up to `stop` */
    memcpy(e->ring + stop - tail, block + bytes - tail, (size_t)tail);
    memcpy(e->ring + e->size - (bytes - tail), block, (size_t)(bytes - tail)); /* over the ring's edge */
    ++*e->blocks;
    *e->wrote_at = now(); /* before the end: who sees that sees when it came */
    __atomic_store_n(e->end, end, __ATOMIC_RELEASE);
}

/* A gap, before the block that is appended next. */
static void overflow(const Ear *e) {
    ++*e->overflows;
    __atomic_store_n(e->unbroken_from, *e->end, __ATOMIC_RELEASE);
}

/* PortAudio calls it with every block of float32. */
int ears_hear(const void *block, void *nothing, unsigned long frames, const void *time, unsigned long flags,
              void *given) {
    (void)nothing, (void)time;
    Ears *ears = given;
    __atomic_store_n(&ears->busy, 1, __ATOMIC_SEQ_CST);
    if (block && !__atomic_load_n(&ears->closed, __ATOMIC_SEQ_CST)) {
        const double begun = now();
        const int64_t count = __atomic_load_n(&ears->count, __ATOMIC_ACQUIRE);
        for (const Ear *e = ears->ears; e < ears->ears + count; e++) {
            if (flags & OVERFLOWED) overflow(e);
            append(e, block, (int64_t)frames * e->frame);
        }
        ears->took_us[ears->heard++ % TIMES] = (float)(1e6 * (now() - begun));
    }
    __atomic_store_n(&ears->busy, 0, __ATOMIC_SEQ_CST);
    return GOES_ON;
}

/* From when this returns 0 on no block is taken; until then, one still is. */
int32_t ears_close(Ears *ears) {
    __atomic_store_n(&ears->closed, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&ears->busy, __ATOMIC_SEQ_CST);
}

/* What Python reads and writes before is done before what it does after: the callback knows no interpreter lock. */
void ears_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
